"""The functions for programs and notebooks: what the commands do, without a word on the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import peftkit
from peftkit.adapters.merge import MergeSettings
from peftkit.errors import InputError, RecipeError, RunError
from peftkit.evaluation.evaluate import Measures
from peftkit.experiments.compare import CompareOptions
from tests.conftest import write_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
LIGHT = "import sys, peftkit; sys.exit(any(name in sys.modules for name in ('torch', 'click', 'pydantic', 'rich')))"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    """An adapter that was trained by the API."""
    recipe = peftkit.load_recipe(small, output=tmp_path_factory.mktemp("api") / "run")
    folder, _ = peftkit.train(recipe)
    return folder.adapter


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file with its data beside it."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def test_importing_the_package_imports_no_library() -> None:
    assert subprocess.run([sys.executable, "-c", LIGHT], check=False).returncode == 0


def test_the_first_function_imports_the_libraries_without_their_notes() -> None:
    code = "import peftkit; peftkit.base_folder('builtin:tiny-gpt2')"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_every_function_is_there_and_nothing_else() -> None:
    assert all(callable(getattr(peftkit, name)) for name in peftkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        peftkit.trian  # noqa: B018


def test_training_prints_nothing_handles_no_signal_and_reports_to_a_function(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    handlers = set()
    before = signal.getsignal(signal.SIGTERM)

    def listen(message: str) -> None:
        heard.append(message)
        handlers.add(signal.getsignal(signal.SIGTERM))

    folder, manifest = peftkit.train(peftkit.load_recipe(small, output=tmp_path / "run"), on_message=listen)

    assert capfd.readouterr() == ("", "")
    assert any("validation loss" in message for message in heard)
    assert not any("\x1b" in message for message in heard)
    assert handlers == {before}
    assert manifest.status == "finished"
    assert (folder.adapter / "adapter_model.safetensors").is_file()


def test_a_finished_run_is_resumed_as_finished(small: Path, adapter: Path) -> None:
    heard: list[str] = []

    peftkit.train(peftkit.load_recipe(small, output=adapter.parent), resume=True, on_message=heard.append)

    assert heard == [f"{adapter.parent} is finished: nothing is left to do."]


def test_audit_and_plan_say_what_a_recipe_is_and_takes(small: Path, tmp_path: Path) -> None:
    recipe = peftkit.load_recipe(small, output=tmp_path / "run")

    found = peftkit.audit(recipe, show=1)
    plan = peftkit.plan(recipe, seconds=None)

    assert found.train.counts.documents == 24
    assert len(found.shown) == 1
    assert plan.steps == 6
    assert plan.trainable_parameters > 0
    assert not (tmp_path / "run").exists()


def test_what_was_trained_is_evaluated_generates_and_is_merged(
    adapter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = peftkit.evaluate(adapter)
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n', encoding="utf-8")
    other = peftkit.evaluate(adapter, tmp_path / "held-out.jsonl", measures=Measures(max_length=32))
    texts = peftkit.generate(adapter, ["the red box"], max_new_tokens=4)
    receipt = peftkit.merge(adapter, tmp_path / "merged", settings=MergeSettings(dtype="float32"))
    mixed = peftkit.merge({adapter: 0.5}, tmp_path / "half")

    assert own.perplexity > 1
    assert (other.documents, other.max_length) == (1, 32)
    assert len(texts) == 1
    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-5
    assert mixed.adapters[0]["weight"] == 0.5
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_methods_are_compared_and_their_processes_are_heard(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []

    comparison = peftkit.compare(small, CompareOptions(("full", "lora")), tmp_path / "out", on_message=heard.append)

    assert capfd.readouterr() == ("", "")
    assert sum("validation loss" in line for line in heard) == 2
    assert len(comparison.entries) >= 2


def test_errors_are_raised_with_what_to_do(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a recipe file nor a shipped recipe"):
        peftkit.load_recipe("quickstrat")
    with pytest.raises(RecipeError, match="learning_rte"):
        peftkit.load_recipe(small, overrides=["training.learning_rte=1"])
    with pytest.raises(InputError):
        peftkit.evaluate(tmp_path)


def test_after_an_error_messages_go_to_the_terminal_again(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peftkit import console

    recipe = peftkit.load_recipe(small, overrides=["training.learning_rate=1e30"], output=tmp_path / "run")
    with pytest.raises(RunError):
        peftkit.train(recipe)
    console.info("heard again")

    assert "heard again" in capsys.readouterr().err


def test_the_embedded_base_is_a_folder_that_transformers_opens() -> None:
    assert (peftkit.base_folder("builtin:tiny-gpt2") / "config.json").is_file()


def test_the_snippet_of_a_card_on_the_embedded_base_opens_the_adapter(adapter: Path) -> None:
    card = (adapter / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}

    exec(snippet.replace("FOLDER", str(adapter)), names)

    assert names["model"].peft_config["default"].r == 4
    assert next(names["model"].parameters()).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_every_cell_of_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = io.StringIO()

    with contextlib.redirect_stdout(printed):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)

    assert "perplexity" in printed.getvalue()
