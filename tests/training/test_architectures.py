"""A run of any architecture resumes, picks its best step and exports without a wrong tensor, whatever the names are."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftkit.adapters.proof import Agreement, Sample, compare, logits_of
from peftkit.errors import Stopped
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder, checkpoint_place
from peftkit.training import output
from peftkit.training.processes import ALONE, StopRequest
from peftkit.training.run import RunOptions, run
from tests import zoo
from tests.conftest import write_recipe

USUAL = ("gpt2", "gpt_neox", "falcon", "gemma3_text", "mixtral")
"""What names can be: the model's own; another for the head; of other modules; of parts of a tensor."""

RECIPE = [
    "data.packing=false", "generation.samples=0", "lora.lora_dropout=0",
    "training.max_steps=3", "training.eval_strategy=steps", "training.eval_steps=1", "training.save_strategy=steps",
    "training.save_steps=1",
    "training.load_best_model_at_end=true", "training.metric_for_best_model=eval_loss",
    "training.greater_is_better=true", "training.save_total_limit=9",
]  # fmt: skip
"""The best step is the worst, so that it is not the last."""

MAMBA, ATTENTION = ["in_proj", "x_proj"], ["o_proj"]
TARGETS = {
    **dict.fromkeys(("mamba", "falcon_mamba"), MAMBA), "mamba2": ["in_proj"],
    **dict.fromkeys(("falcon_h1", "gemma3n_text", "phimoe", "qwen3_next", "deepseek_v2", "deepseek_v3"), ATTENTION),
}  # fmt: skip
"""Where PEFT cannot adapt every linear layer."""

LAST, STOPPED = 3, 2


class StopAfter(StopRequest):
    """A signal that comes during a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    def __getattribute__(self, name: str) -> Any:
        if name != "number":
            return super().__getattribute__(name)
        self._left -= 1
        return signal.SIGTERM.value if self._left <= 0 else None


@pytest.fixture(autouse=True)
def _opening_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open an exported model in this process: another one takes longer than all of the rest."""

    def compare_here(folder: Path, expected: Sequence[torch.Tensor], sample: Sample) -> Agreement:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return compare(logits_of(model, sample), expected, sample)

    monkeypatch.setattr(output, "compare_in_fresh_process", compare_here)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder by name, and nothing of an optimizer."""
    files = (*folder.glob("model*.safetensors"), *folder.glob("adapter_model.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are in one alone, or are not the same in both."""
    shared = {*found} & {*expected}
    return sorted({*found} ^ {*expected} | {name for name in shared if not torch.equal(found[name], expected[name])})


def worst_step(run: RunFolder) -> int:
    """The trained step with the greatest validation loss."""
    lines = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    losses: dict[int, float] = {}
    for line in lines:
        if line["step"] and "eval_loss" in line:
            losses.setdefault(line["step"], line["eval_loss"])  # the last step has that of the best one, too
    return max(losses, key=losses.__getitem__)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in zoo.NAMES]
)
def test_every_tensor_of_a_run_that_was_stopped_is_that_of_an_undisturbed_one(
    name: str, method: str, tmp_path: Path
) -> None:
    zoo.make(name, tmp_path / "base")
    path = write_recipe(tmp_path)
    few = (tmp_path / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:4]
    (tmp_path / "validation.jsonl").write_text("".join(few), encoding="utf-8")
    targets = f"lora.target_modules={json.dumps(TARGETS.get(name, 'all-linear'))}"
    changes = [f"base.model={tmp_path / 'base'}", targets, *RECIPE]
    files = {each: load_recipe(path, method=method, overrides=changes, output=tmp_path / each) for each in "ab"}

    run(files["a"])
    with pytest.raises(Stopped):
        run(files["b"], RunOptions(), ALONE, StopAfter(STOPPED))
    run(files["b"], RunOptions(resume=True))

    whole, stopped = (RunFolder(tmp_path / each) for each in "ab")
    shipped = tensors_in(tmp_path / "a" / ("model" if method == "full" else "adapter"))
    last = tensors_in(checkpoint_place(whole.checkpoints, LAST))
    assert checkpoint_place(stopped.checkpoints, STOPPED).is_dir()
    assert differing(tensors_in(checkpoint_place(stopped.checkpoints, LAST)), last) == []
    assert differing(tensors_in(tmp_path / "b" / ("model" if method == "full" else "adapter")), shipped) == []
    assert differing(tensors_in(checkpoint_place(whole.checkpoints, worst_step(whole))), shipped) == []
    assert differing(last, shipped) != []
