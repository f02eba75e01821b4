"""A recipe from a few answers: what it holds follows from the data, the base and the memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import peftkit
from peftkit.data.grammar import task
from peftkit.errors import InputError
from peftkit.planning.hardware import Hardware
from peftkit.recipe.document import parse_document
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Recipe, Source
from peftkit.training.new_recipe import (
    BATCH,
    Reasoned,
    choose_method,
    draft_text,
    in_words,
    length_for,
    rows_that_fit,
    write_new_recipe,
)
from peftkit.training.run import run

GB = 10**9
CPU = Hardware(device="cpu", name="cpu", memory_bytes=16 * GB, device_count=1, cpu_cores=2)
TINY = "builtin:tiny-gpt2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a data file."""
    rows = task("train")[:40]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def written(folder: Path, data: str, base: str, **answers: Any) -> Recipe:
    """The recipe that the answers give, read again."""
    write_new_recipe(data, base, folder / "new.yaml", CPU, **answers)
    return load_recipe(folder / "new.yaml").recipe


def test_a_small_base_on_a_file_is_trained_whole(folder: Path) -> None:
    recipe = written(folder, f"{folder}/rows.jsonl", TINY)

    assert (recipe.name, recipe.method, recipe.base.model) == ("new", "full", TINY)
    assert (recipe.data.format, recipe.data.max_length, recipe.data.validation) == ("completion", 64, 0.1)
    assert recipe.training.eval_strategy == "epoch"
    assert recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps == 16


def test_paths_are_written_from_the_recipes_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    shutil.copytree(Path(peftkit.__file__).parent / "assets" / "tiny-gpt2", folder / "base")

    write_new_recipe(f"{folder}/rows.jsonl", f"{folder}/base", folder / "sub" / "new.yaml", CPU)

    text = (folder / "sub" / "new.yaml").read_text(encoding="utf-8")
    assert "path: ../rows.jsonl\n" in text
    assert "model: ../base # 0.941 million parameters, by its configuration\n" in text
    assert load_recipe(folder / "sub" / "new.yaml").recipe.base.model == str(folder / "base")


def test_documents_that_are_longer_than_the_base_sees_are_said_to_be_cut(folder: Path) -> None:
    row = {"prompt": "name: Red Fox\n", "completion": "The inn. " * 80}
    (folder / "long.jsonl").write_text((json.dumps(row) + "\n") * 3, encoding="utf-8")

    recipe = written(folder, f"{folder}/long.jsonl", TINY)

    assert recipe.data.max_length == 128
    assert "and the base sees no more: the rest is cut" in (folder / "new.yaml").read_text(encoding="utf-8")


def test_rows_that_cannot_be_used_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("{broken\n")

    written(folder, f"{folder}/rows.jsonl", TINY)

    assert "1 of the first 41 rows" in " ".join(capsys.readouterr().err.split())


def test_a_validation_part_beside_the_training_part_is_taken(folder: Path) -> None:
    for name in ("my-train.jsonl", "my-dev.jsonl"):
        shutil.copy(folder / "rows.jsonl", folder / name)

    recipe = written(folder, f"{folder}/my-train.jsonl", TINY)

    assert isinstance(recipe.data.validation, Source)
    assert recipe.data.validation.path == str(folder / "my-dev.jsonl")


def test_where_nothing_can_be_held_out_nothing_is_evaluated(folder: Path) -> None:
    (folder / "same.txt").write_text("one line\n" * 5 + "another\n" * 5, encoding="utf-8")

    recipe = written(folder, f"{folder}/same.txt", TINY)

    assert (recipe.data.validation, recipe.training.eval_strategy) == (None, "no")
    assert (recipe.data.format, recipe.data.max_length) == ("text", 128)


@pytest.mark.parametrize(
    ("base", "gigabytes", "method", "dtype", "rate"),
    [
        ("someone/model-0.5b", 24, "full", "auto", 3e-5),
        ("someone/Model-3.1-8B-Instruct", 24, "lora", "bfloat16", 2e-4),
        ("someone/model_13b", 12, "qlora", "auto", 1e-4),
        ("gpt2", 12, "lora", "auto", 2e-4),
    ],
)
def test_a_base_that_is_not_here_is_sized_by_its_name(
    base: str, gigabytes: int, method: str, dtype: str, rate: float, folder: Path
) -> None:
    recipe = written(folder, f"{folder}/rows.jsonl", base, memory_bytes=gigabytes * GB)

    assert (recipe.method, recipe.base.dtype, recipe.training.learning_rate) == (method, dtype, rate)
    assert recipe.data.max_length == 512
    assert (recipe.training.per_device_train_batch_size, recipe.training.gradient_accumulation_steps) == (4, 4)


def test_a_cached_hub_model_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = folder / "hub" / "models--someone--tiny"
    shutil.copytree(Path(peftkit.__file__).parent / "assets" / "tiny-gpt2", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))

    recipe = written(folder, f"{folder}/rows.jsonl", "someone/tiny")

    assert (recipe.method, recipe.data.max_length, recipe.base.model) == ("full", 64, "someone/tiny")


def test_a_base_that_is_too_large_for_one_row_recomputes_its_activations(folder: Path) -> None:
    recipe = written(folder, f"{folder}/rows.jsonl", TINY, memory_bytes=0.001 * GB, method="lora")

    training = recipe.training
    assert (training.per_device_train_batch_size, training.activation_checkpointing) == (1, True)
    assert training.per_device_eval_batch_size == 1


def test_a_data_set_of_the_hub_is_named_with_its_configuration(folder: Path) -> None:
    recipe = written(folder, "Salesforce/wikitext:wikitext-2-raw-v1", "gpt2", format="text")

    (source,) = recipe.data.train_sources
    assert (source.dataset, source.name, source.split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "train")
    assert (recipe.data.format, recipe.data.validation) == ("text", 0.05)


def test_peftkits_own_data_has_a_validation_part(folder: Path) -> None:
    recipe = written(folder, "builtin:grammar", TINY)

    (source,) = recipe.data.validation_sources
    assert (source.dataset, source.name, source.split) == ("builtin:grammar", "task", "validation")


@pytest.mark.parametrize(
    ("data", "base", "words"),
    [
        ("nowhere.jsonl", TINY, "there is no such file"),
        (".", TINY, "is a folder, not a file"),
        ("other.csv", TINY, "set data.columns in a copy of a shipped recipe"),
        ("new.xml", TINY, "is of no kind that can be read"),
        ("rows.jsonl", "./nowhere", "there is no such folder"),
        ("rows.jsonl", "builtin:huge", "there is no builtin:huge"),
        ("rows.jsonl", " ", "is empty"),
        (" ", TINY, "is empty"),
    ],
)
def test_what_cannot_be_used_is_an_error_and_nothing_is_written(
    data: str, base: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "other.csv").write_text("inquiry,reply\na,b\n", encoding="utf-8")
    (folder / "new.xml").write_text("<a/>", encoding="utf-8")

    with pytest.raises(InputError, match=words):
        write_new_recipe(data, base, folder / "new.yaml", CPU)

    assert not (folder / "new.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_recipe_trains(method: str, folder: Path) -> None:
    written(folder, f"{folder}/rows.jsonl", TINY, method=method)

    file = load_recipe(folder / "new.yaml", overrides=["training.max_steps=2"], output=folder / "run")
    _, manifest = run(file)

    assert (manifest.status, manifest.method) == ("finished", method)


@pytest.mark.parametrize(
    "value",
    ["train.jsonl", "builtin:tiny-gpt2", "../a b/rows: 1.csv", "true", "Null", "7", "1e-4", "#x", "-", "é", "a#b", "a:",
     "no", "~", "[a]", "x\ny", "x\x85y", "./a", 'say "hi"', 3e-4, 16, 0.05, True],
)  # fmt: skip
def test_a_value_is_read_as_what_it_is(value: str | float | bool) -> None:
    text = draft_text({"section": {"field": Reasoned(value, "a reason")}}, "heading")

    assert parse_document(text, "draft").values == {"section": {"field": value}}


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1))
def test_any_text_is_read_as_it_is(value: str) -> None:
    text = draft_text({"field": Reasoned(value)}, "heading")

    assert parse_document(text, "draft").values == {"field": value}


def test_a_reason_stands_beside_its_value_or_above_it_where_it_is_long() -> None:
    text = draft_text({"a": Reasoned(1, "short"), "section": {"b": Reasoned(2, "long " * 40)}}, "heading")

    lines = text.splitlines()
    assert lines[:4] == ["# heading", "a: 1 # short", "", "section:"]
    assert lines[4].startswith("  # long long")
    assert lines[-1] == "  b: 2"
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("parameters", "memory", "half", "method", "dtype"),
    [
        (124 * 10**6, 16, False, "full", "auto"),
        (10**9, 20, False, "full", "auto"),
        (10**9 + 1, 20, False, "lora", "auto"),
        (4 * 10**9, 20, False, "lora", "auto"),
        (7 * 10**9, 24, True, "lora", "bfloat16"),
        (7 * 10**9, 24, False, "qlora", "auto"),
        (70 * 10**9, 80, True, "qlora", "auto"),
    ],
)
def test_the_first_method_that_fits_into_four_fifths_is_chosen(
    parameters: int, memory: int, half: bool, method: str, dtype: str
) -> None:
    choice = choose_method(parameters, memory * GB, half=half)

    assert (choice.method, choice.dtype, choice.fits) == (method, dtype, True)
    assert f"fit into 80% of {memory} GB" in choice.why


def test_what_fits_nowhere_is_trained_in_the_least_memory_and_said_not_to_fit() -> None:
    choice = choose_method(70 * 10**9, 24 * GB, half=True)

    assert (choice.method, choice.fits) == ("qlora", False)
    assert "70 billion parameters at 0.6 bytes" in choice.why
    assert "do not fit into" in choice.why


def test_a_method_that_is_wanted_is_taken_and_held_as_it_fits() -> None:
    choice = choose_method(7 * 10**9, 24 * GB, half=True, wanted="lora")
    full = choose_method(7 * 10**9, 24 * GB, half=True, wanted="full")

    assert (choice.method, choice.dtype) == ("lora", "bfloat16")
    assert (full.method, full.fits) == ("full", False)


def test_of_an_unknown_size_the_memory_says_how_large_it_may_be() -> None:
    choice = choose_method(None, 16 * GB, half=False)

    assert (choice.method, choice.held_bytes) == ("lora", None)
    assert "16 GB hold up to 3.2 billion parameters" in choice.why
    assert choose_method(None, 16 * GB, half=False, wanted="qlora").method == "qlora"


def test_rows_are_a_power_of_two_up_to_a_batch() -> None:
    fitting = [rows_that_fit(10**8, (2 * GB + rows * 10**8) / 0.9 + 1, 2 * GB) for rows in (0, 1, 3, 4, 99)]

    assert fitting == [0, 1, 2, 4, BATCH]
    assert rows_that_fit(10**8, GB, 2 * GB) == 0


@pytest.mark.parametrize(
    ("longest", "positions", "length"), [(59, 128, 64), (64, None, 64), (65, None, 96), (999, 512, 512)]
)
def test_a_length_is_rounded_up_and_never_more_than_the_base_sees(
    longest: int, positions: int | None, length: int
) -> None:
    assert length_for(longest, positions) == length


def test_parameters_are_told_in_words() -> None:
    assert [in_words(number) for number in (941_000, 124_439_808, 8 * 10**9)] == [
        "0.941 million", "124 million", "8 billion"]  # fmt: skip
