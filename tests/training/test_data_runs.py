"""Data of every format trains from a file; data that would teach the wrong thing is caught before the first step."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.prompts import prompt_of
from peftkit.errors import InputError
from peftkit.recipe.loader import load_recipe
from peftkit.runs.manifest import RunManifest
from peftkit.training.run import run

Command = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """\
name: formats
base: {model: builtin:tiny-gpt2}
lora: {r: 2, lora_alpha: 4}
data:
  train: {path: rows.jsonl}
  max_length: 64
training: {learning_rate: 1e-3, per_device_train_batch_size: 4, max_steps: 2, save_strategy: "no"}
"""
SAID = [(f"Where is house {number}?", f"By mill {number}.") for number in range(12)]


def turns(prompt: str, answer: str, names: tuple[str, str, str, str]) -> list[dict[str, str]]:
    role, content, user, assistant = names
    return [{role: user, content: prompt}, {role: assistant, content: answer}]


ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"{prompt} {answer}"} for prompt, answer in SAID],
    "completion": [{"prompt": prompt, "completion": answer} for prompt, answer in SAID],
    "instruction": [{"instruction": prompt, "input": "", "output": answer} for prompt, answer in SAID],
    "chat": [{"messages": turns(*said, ("role", "content", "user", "assistant"))} for said in SAID],
    "chat of ShareGPT": [{"conversations": turns(*said, ("from", "value", "human", "gpt"))} for said in SAID],
    "tokens": [{"input_ids": [300, 301, 302, number], "labels": [-100, 301, 302, number]} for number in range(12)],
}


def write(folder: Path, rows: list[dict[str, Any]], recipe: str = RECIPE) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "formats.yaml"
    path.write_text(recipe, encoding="utf-8")
    return path


def trained(path: Path, *overrides: str) -> tuple[RunManifest, Path]:
    folder, manifest = run(load_recipe(path, overrides=overrides, output=path.parent / "run"))
    return manifest, folder.path


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_recognised_and_trains(name: str, tmp_path: Path) -> None:
    manifest, folder = trained(write(tmp_path, ROWS[name]))

    assert manifest.status == "finished"
    assert manifest.data["train"]["formats"] == [name.split()[0]]
    assert manifest.data["train"]["documents"] == 12
    assert manifest.metrics.train_tokens
    resolved = load_recipe(folder / "recipe.yaml").recipe
    assert resolved.data.format == name.split()[0]


def test_a_chat_run_saves_the_template_that_it_was_trained_with(tmp_path: Path) -> None:
    _, folder = trained(write(tmp_path, ROWS["chat"]))

    assert "### Assistant:" in (folder / "adapter" / "chat_template.jinja").read_text(encoding="utf-8")


def test_sources_are_mixed_by_weight_and_a_share_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, ROWS["completion"])
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS["chat"] + ROWS["chat"]), encoding="utf-8"
    )
    sources = "[{path: rows.jsonl, weight: 3}, {path: chat.jsonl, weight: 1}]"
    path = write(tmp_path, ROWS["completion"], RECIPE.replace("{path: rows.jsonl}", f"{sources}\n  validation: 0.25"))

    manifest, _ = trained(path)

    assert manifest.data["train"]["formats"] == ["completion", "chat"]
    assert manifest.data["validation"]["documents"] == 9
    assert manifest.data["train"]["documents"] == 27
    assert manifest.metrics.perplexity


def test_each_source_may_say_itself_what_its_rows_are(tmp_path: Path) -> None:
    rows = [{"text": "both", "instruction": prompt, "output": answer} for prompt, answer in SAID]
    path = write(tmp_path, rows)
    other = [{"question": prompt, "reply": answer} for prompt, answer in SAID]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other), encoding="utf-8")
    first = {"path": "rows.jsonl", "format": "instruction", "template": "Do: {instruction}\n"}
    second = {"path": "other.jsonl", "columns": {"prompt": "question", "completion": "reply"}}
    path.write_text(RECIPE.replace("{path: rows.jsonl}", json.dumps([first, second])), encoding="utf-8")

    manifest, folder = trained(path)

    assert manifest.data["train"]["formats"] == ["instruction", "completion"]
    assert manifest.data["train"]["documents"] == 24
    stored = load_recipe(folder / "recipe.yaml").recipe.data
    assert prompt_of("Sing.", stored, None) == "Do: Sing.\n"


def test_bad_rows_that_are_skipped_are_in_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, [*ROWS["completion"], {"prompt": "q"}])

    with pytest.raises(InputError, match=r"rows\.jsonl:13: completion is missing"):
        trained(path)
    manifest, _ = trained(path, "data.on_bad_rows=skip")

    assert manifest.data["train"]["bad_rows"] == 1


def test_a_stream_trains_over_several_epochs_and_counts_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS["text"])

    manifest, _ = trained(path, "data.streaming=true", "training.max_steps=5")

    assert manifest.metrics.train_tokens
    assert manifest.data["train"]["rows"] == 12


CAUGHT: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], str]] = {
    "every label is masked": (
        [{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}] * 4,
        (),
        "no token would be in the loss: of 4 rows, 0 are empty, 4 have no label",
    ),
    "no label is left after cutting": (ROWS["completion"], ("data.max_length=4",), "have none within max_length 4"),
    "validation rows are trained on": (
        ROWS["completion"],
        ("data.validation={path: rows.jsonl}",),
        "12 validation documents, 100.0% of the tokens, are trained on too",
    ),
    "a template eats the end token": (
        ROWS["chat"],
        ("data.template='{% for m in messages %}{{ m.content }}{% endfor %}'",),
        "the chat template writes no end token",
    ),
    "formats are mixed": (ROWS["text"] + ROWS["chat"], (), "has rows of several formats"),
    "the format is unknown": ([{"question": "q", "reply": "a"}], (), "has rows of no known format"),
}


@pytest.mark.parametrize("case", CAUGHT)
def test_data_that_would_teach_the_wrong_thing_is_caught_before_the_first_step(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, overrides, message = CAUGHT[case]
    path = write(tmp_path, rows)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InputError, match=message):
        trained(path, *overrides)

    assert not (tmp_path / "run").exists()


def test_bad_rows_end_the_command_with_a_line_for_each(peftkit: Command, tmp_path: Path) -> None:
    write(tmp_path, [*ROWS["completion"], {"prompt": "q"}, {"prompt": "", "completion": "a"}])

    done = peftkit("train", "formats.yaml", "--output", "run")

    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert [line.rpartition("rows.jsonl")[2] for line in errors] == [
        ":13: completion is missing.",
        ":14: prompt is empty.",
        ": 2 of 14 rows cannot be used. Fix or remove them, or set data.on_bad_rows: skip.",
    ]
    assert not (tmp_path / "run").exists()
