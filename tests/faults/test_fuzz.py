"""Whatever the bytes of a file are, it is read or refused: with one line for each thing that is wrong, and no more."""

from __future__ import annotations

import datetime
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import peftkit
from peftkit.data.files import Row, file_rows
from peftkit.data.prepare import prepare
from peftkit.errors import DataError, InputError, TargetError
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Base, Data, Init, Recipe, Source
from peftkit.recipe.section import LibrarySection, Section
from peftkit.runs.folder import PROGRESS_NAME, RunFolder, newest_sound
from peftkit.runs.manifest import RunManifest
from peftkit.storage import MANIFEST_NAME, atomic_folder, write_json

RECIPE = b"""\
# why
name: small
method: lora
base: {model: builtin:tiny-gpt2}
lora:
  r: 4
  target_modules: [c_attn, "c_proj"]
data:
  train:
    - {path: rows.txt}
    - {path: rows.jsonl, format: completion, limit: 3}
  validation: 0.1
  max_length: 64
  columns: {prompt: question}
training:
  learning_rate: 3e-3
  max_steps: 6
  lr_scheduler_kwargs: {}
methods:
  full:
    training: {learning_rate: 1e-5, seed: 0x1F}
  qlora: {quantization: {load_in_8bit: true}}
description: |
  Two
  lines.
"""
ODD = (
    "\0", "\x85", "\u2028", "\ufeff", "\t", "\r", "\x1b[31m", "\n", "\n\n", " " * 300, "é", "²",
    "!!python/object:os.system ", "!%0A ", "!", "&a ", "*a ", "<<: ", "<<: *a", "? ", "- ", ": ", "# ", "|\n", ">-\n ",
    "---\n", "...\n", "%YAML 1.9\n---\n", "%TAG ! !a\n---\n", "'", '"', "[", "]", "{", "}", ",", "[" * 2000, "null",
    "{a: " * 400, "9" * 5000, "-1", "1e999", "0x" + "f" * 5000, "0o17", "1:30:00", ".nan", "-.inf", "2026-01-01",
    '"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', '"\\x"', '"a\\nb": ', "~nobody-of-this-name/a.txt", "../", "/", "a" * 300,
    "name: other\n", "1_000", '{"text": "a"}\n', "a,a\n", '"role": [], ', '"\\ud83d\\ude00"', "{{ 1/0 }}", "Infinity",
)  # fmt: skip
HALVES = (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xfe\xff", b"\xf4\x90\x80\x80", b"\xe2\x80")
ODD_BYTES = st.sampled_from([*(text.encode() for text in ODD), *HALVES])
SECTIONS: dict[str, type[Section]] = {
    "": Recipe, "base.": Base, "base.init.": Init, "data.": Data, "data.train.": Source, "data.validation.": Source,
    **{f"{name}.": type(Recipe.model_fields[name].default) for name in ("lora", "quantization", "training")},
}  # fmt: skip


def fields() -> Iterator[str]:
    """Every field of a recipe, those that are passed on to a library too."""
    for prefix, section in SECTIONS.items():
        names = section.passed_through_types() if issubclass(section, LibrarySection) else {}
        yield from (f"{prefix}{name}" for name in [*section.model_fields, *names])


def values() -> st.SearchStrategy[Any]:
    """Anything that YAML and JSON can say, and what a field could be mistaken for."""
    texts = st.text() | st.text(st.characters(categories=["Cs", "Cc", "Zl"])) | st.sampled_from(ODD)
    known = st.sampled_from(["auto", "no", "steps", "rows.txt", ".", "/", "builtin:x", "lora", "{x}", "train", "text"])
    numbers = st.integers() | st.sampled_from([0, 1, 10**30, 10**99, -(10**400)]) | st.floats()
    plain = st.none() | st.booleans() | numbers | texts | known
    names = texts | known | st.sampled_from(sorted({name.rpartition(".")[2] for name in fields()}))
    return st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=12)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file after some accidents: to its lines, its words or its bytes."""
    content = good
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        parts = re.findall(draw(st.sampled_from([rb"[^\n]*\n|[^\n]+", rb"[\w.-]+|[^\w.-]+", rb"(?s)."])), content)
        begin = draw(st.integers(0, len(parts)))
        end = begin + draw(st.sampled_from([0, 1, 1]) | st.integers(0, len(parts) - begin))
        before, middle, after = parts[:begin], parts[begin:end], parts[end:]
        odd = [draw(ODD_BYTES | st.binary(min_size=1, max_size=4))]
        lost, twice, moved = [*before, *after], [*parts[:end], *middle, *after], [*before, *after, *middle]
        added, replaced = [*before, *odd, *middle, *after], [*before, *odd, *after]
        content = b"".join(draw(st.sampled_from([lost, twice, moved, added, replaced, replaced])))
    return content


def table_bytes() -> bytes:
    """A Parquet file with a column of every kind."""
    columns: dict[str, list[Any]] = {
        "text": ["one", None, "three"],
        "number": [1, 2, 3],
        "when": [datetime.datetime(2026, 1, 1), None, None],
        "messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 3,
    }
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


ROWS = {
    "text": '{"text": "one line", "other": 1}',
    "completion": '{"prompt": "ask", "completion": "yes"}',
    "instruction": '{"instruction": "do", "input": "this", "output": "done"}',
    "chat": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    "tokens": '{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}',
}
GOOD: list[tuple[str, bytes]] = [
    (".txt", b"one line\n\nand another\r\nthe last"),
    (".csv", b'prompt,completion\nask,"yes, ""please"""\n"two\nlines",no\n'),
    (".tsv", b"text\tother\none line\t1\nand another\t2\n"),
    (".parquet", table_bytes()),
    *((".jsonl", f"{row}\n{row}\n\n{row}\n".encode()) for row in ROWS.values()),
    *((".json", f"[{row},\n{row}]".encode()) for row in ROWS.values()),
]


def data_options() -> st.SearchStrategy[dict[str, Any]]:
    """The fields of `data` that say how rows are read."""
    return st.fixed_dictionaries(
        {},
        optional={
            "format": st.sampled_from(["text", "completion", "instruction", "chat", "tokens"]),
            "on_bad_rows": st.just("skip"),
            "sample_by": st.sampled_from(["paragraph", "document"]),
            "streaming": st.just(True),
            "max_length": st.sampled_from([2, 8, 10**30]),
            "packing": st.booleans(),
            "validation": st.just(0.3),
        },
    ).filter(lambda options: not ("streaming" in options and "validation" in options))


def changed(field: str, value: Any) -> dict[str, Any]:
    """A good recipe but for the value of one field."""
    recipe: dict[str, Any] = {
        "name": "small",
        "base": {"model": "builtin:tiny-gpt2"},
        "data": {"train": {"path": "rows.txt"}, "max_length": 64},
    }
    *sections, name = field.split(".")
    place = recipe
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    return recipe


def contents() -> st.SearchStrategy[tuple[str, bytes]]:
    """A suffix, and what a file of it holds: anything, or something that was good once."""
    changed = st.sampled_from(GOOD).flatmap(lambda good: st.tuples(st.just(good[0]), mutated(good[1])))
    return changed | st.tuples(st.sampled_from([suffix for suffix, _ in GOOD]), st.binary())


def refusal(act: Callable[[], object], kind: type[InputError] = InputError) -> list[str]:
    """What is refused when something is done, line by line; any other error is not held up."""
    try:
        act()
    except kind as error:
        return error.lines()
    return []


examples = pytest.mark.parametrize("factor", [1, pytest.param(15, marks=pytest.mark.faults)])
"""A few examples in the main suite, and many where there is time."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(peftkit.__file__).parent / "assets" / "tiny-gpt2")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The place of a recipe, beside its data."""
    for name in ("rows.txt", "rows.jsonl"):
        (tmp_path / name).touch()
    return tmp_path / "recipe.yaml"


@examples
def test_a_recipe_is_read_or_refused_whatever_its_bytes(factor: int, recipe: Path) -> None:
    @settings(max_examples=250 * factor)
    @given(mutated(RECIPE) | st.binary() | st.text().map(str.encode))
    def holds(content: bytes) -> None:
        recipe.write_bytes(content)

        lines = refusal(lambda: load_recipe(recipe))

        assert all(line.startswith(str(recipe)) and line.isprintable() for line in lines)

    holds()


@examples
def test_a_recipe_is_read_or_refused_whatever_a_field_says(factor: int, recipe: Path) -> None:
    @settings(max_examples=250 * factor)
    @given(st.sampled_from(sorted(fields())), values(), st.sampled_from(["", "methods.full.", "methods.lora."]))
    def holds(field: str, value: Any, method: str) -> None:
        recipe.write_text(json.dumps(changed(f"{method}{field}", value)), encoding="utf-8")

        lines = refusal(lambda: load_recipe(recipe))

        assert all(line.startswith(str(recipe)) and line.isprintable() for line in lines)

    holds()


@examples
def test_an_option_is_taken_or_refused_whatever_it_says(factor: int, recipe: Path) -> None:
    named = st.tuples(st.sampled_from(sorted(fields())), values().map(json.dumps) | st.text())
    recipe.write_bytes(RECIPE)

    @settings(max_examples=250 * factor)
    @given(st.lists(named.map("=".join) | st.text() | st.sampled_from(ODD), min_size=1, max_size=3))
    def holds(overrides: list[str]) -> None:
        lines = refusal(lambda: load_recipe(recipe, overrides=overrides))

        assert all(line.startswith((str(recipe), "--set ")) and line.isprintable() for line in lines)

    holds()


@examples
def test_a_data_file_is_read_or_refused_whatever_its_bytes(factor: int, tmp_path: Path) -> None:
    @settings(max_examples=250 * factor)
    @given(contents(), data_options())
    def holds(content: tuple[str, bytes], options: dict[str, Any]) -> None:
        path = tmp_path / f"rows{content[0]}"
        path.write_bytes(content[1])
        data = Data.model_validate({"train": {"path": str(path)}, **options})
        rows: list[Row] = []

        lines = refusal(lambda: rows.extend(file_rows(path, data)), DataError)

        told = [f"{row.place}: {row.problem}" for row in rows if row.problem]
        assert all(row.place.startswith(str(path)) for row in rows)
        assert all(line.startswith(str(path)) and line.isprintable() for line in [*lines, *told])

    holds()


@examples
def test_data_is_prepared_or_refused_whatever_its_bytes(factor: int, tmp_path: Path, tokenizer: Any) -> None:
    @settings(max_examples=150 * factor)
    @given(contents(), data_options())
    def holds(content: tuple[str, bytes], options: dict[str, Any]) -> None:
        path = tmp_path / f"rows{content[0]}"
        path.write_bytes(content[1])
        data = Data.model_validate({"train": {"path": str(path)}, **options})

        lines = refusal(lambda: prepare(data, tokenizer))

        assert all(line.startswith((str(path), "data.")) and line.isprintable() for line in lines)

    holds()


@examples
def test_a_run_is_read_or_refused_whatever_its_manifest_holds(factor: int, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write(RunManifest("small", "lora", "abc", {"model": "gpt2"}, {}, {"python": "3"}, {"device": "cpu"}))
    good = folder.manifest.read_bytes()

    @settings(max_examples=150 * factor)
    @given(mutated(good) | st.binary() | values().map(json.dumps).map(str.encode))
    def holds(content: bytes) -> None:
        folder.manifest.write_bytes(content)

        lines = refusal(folder.read, TargetError)

        assert all(line.startswith(str(folder.manifest)) for line in lines)

    holds()


@examples
@pytest.mark.parametrize("name", [MANIFEST_NAME, PROGRESS_NAME])
def test_a_checkpoint_is_sound_or_passed_over_whatever_its_files_hold(factor: int, name: str, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step-10") as folder:
        write_json(folder / PROGRESS_NAME, {"run_id": "mine", "step": 10})
    good = (tmp_path / "step-10" / name).read_bytes()

    @settings(max_examples=150 * factor)
    @given(mutated(good) | st.binary() | values().map(json.dumps).map(str.encode))
    def holds(content: bytes) -> None:
        (tmp_path / "step-10" / name).write_bytes(content)

        sound, passed_over = newest_sound(tmp_path, "mine")

        assert (sound is None) == (len(passed_over) == 1)
        assert all(faults for _, faults in passed_over)

    holds()
