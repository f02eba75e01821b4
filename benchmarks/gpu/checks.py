"""The parts that ask whether what is computed on this device is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.gpu.harness import Bench, JobError, Row

__all__ = ["COMMAND", "isolation", "loss", "nf4", "quickstart", "resume", "succeeded", "trained"]

COMMAND: Final = "benchmarks.gpu.commands:peftkit"
_PRECISIONS: Final = ("fp32", "bf16", "fp16")
_LOSS_BOUND = 1e-5
"""Relative, in every precision: sums are in fp32, and what goes in is exact."""

_GRADIENT_BOUNDS: Final = {"fp32": 1e-4, "bf16": 4e-3, "fp16": 1e-3}
"""Relative norms: 16-bit gradients are rounded to 8 and 11 bits, twice."""

_SPREADS: Final = {"usual logits": 1.0, "logits near 90": 20.0}
_MERGE_BOUND = 1e-4
_CODES_BOUND = 1e-4
"""Share of NF4 codes: bitsandbytes compiles its kernels with fast arithmetic, so that a weight between two codes may
go to the other one."""

_RESUME_BOUND = 1e-3
"""Of the loss, relative: kernels that add in any order make no two runs on a GPU the same."""


def loss(bench: Bench) -> Iterator[Row]:
    """Loss and gradients in each precision against fp64."""
    scale = bench.scale
    sizes = {"tokens": scale.loss_tokens, "width": scale.loss_width, "vocabulary": scale.loss_vocabulary}
    for precision in _PRECISIONS:
        for name, spread in _SPREADS.items():
            found = bench.call("benchmarks.gpu.correctness:loss_errors", precision=precision, spread=spread, **sizes)
            bound = _GRADIENT_BOUNDS[precision]
            # a NaN fails every comparison
            right = all(found[each] <= _LOSS_BOUND for each in ("loss", "evaluation"))
            right = right and all(found[each] <= bound for each in ("hidden_gradient", "head_gradient"))
            figures = {
                "loss off": found["loss"],
                "evaluation off": found["evaluation"],
                "bound": _LOSS_BOUND,
                "gradients off": max(found["hidden_gradient"], found["head_gradient"]),
                "gradients' bound": bound,
            }
            yield Row(f"{precision}, {name}", figures, right)


def nf4(bench: Bench) -> Iterator[Row]:
    """NF4 codes of the same weight, quantised on the CPU and on the device."""
    rows, width = (64, 256) if bench.scale.smoke else (4096, 4096)
    found = bench.call("benchmarks.gpu.correctness:nf4_codes", rows=rows, width=width)
    figures = {
        "codes": int(found["codes"]),
        "differing share": found["differing"],
        "bound": _CODES_BOUND,
        "scales off": found["scale_difference"],
    }
    right = found["differing"] <= _CODES_BOUND and found["scale_difference"] <= 1e-5
    yield Row("NF4, GPU against CPU" if bench.has_gpu else "NF4, CPU against itself: no GPU", figures, right)


def isolation(bench: Bench) -> Iterator[Row]:
    """Documents that share a row, forward and backward, with each attention that there is for them."""
    precisions = ("bf16", "fp32") if bench.has_gpu else ("fp32",)
    for kind, dropout in (("gpt2", 0.0), ("gpt2", 0.1), ("llama", 0.0)):
        model = {"kind": kind, "width": 256, "dropout": dropout}
        name = f"{kind}, dropout {dropout:g}"
        for found in bench.call("benchmarks.gpu.correctness:isolation", **model, precisions=precisions):
            shown = {True: "alone", False: "mixed", None: "not applicable"}[found["isolated"]]
            what = f"{name}, {found['attention']}, {found['precision']}"
            yield Row(what, {"documents are": shown}, found["isolated"], found["reason"])
        chosen = bench.call("benchmarks.gpu.correctness:chosen_attention", **model)
        figures = {"documents are": chosen["chosen"]}
        yield Row(f"{name}, chosen", figures, chosen["chosen"] == chosen["first"], f"tried first: {chosen['first']}")


def quickstart(bench: Bench) -> Iterator[Row]:
    """The shipped recipe by each method, and its qlora adapter merged and proven."""
    changes = [word for change in bench.scale.quickstart for word in ("--set", change)]
    folder = bench.folder / "quickstart"
    for method in ("full", "lora", "qlora"):
        place = folder / method
        arguments = ["--method", method, "--output", str(place), *changes]
        metrics = trained(bench, "quickstart", *arguments)["metrics"]
        before, after = metrics["base_perplexity"], metrics["perplexity"]
        figures = {
            "perplexity before": before,
            "after": after,
            "tokens/s": metrics["tokens_per_second"],
            "peak GB": metrics["peak_memory_bytes"] / 1e9,
        }
        yield Row(method, figures, after < before)
    merge = ["merge", str(folder / "qlora" / "adapter"), str(folder / "merged"), "--json"]
    proof = json.loads(succeeded(bench.call(COMMAND, arguments=merge))["stdout"])["proof"]
    off = proof["relative_error"]
    yield Row("qlora, merged", {"logits off": off, "bound": _MERGE_BOUND}, off <= _MERGE_BOUND)


def resume(bench: Bench) -> Iterator[Row]:
    """A run that is killed after its first checkpoint, resumed, and compared with one that was not."""
    steps = "12" if bench.scale.smoke else "60"
    changes = [f"training.max_steps={steps}", "training.save_strategy=steps", "training.save_steps=3"]
    changes += ["training.eval_strategy=epoch", "data.validation.limit=32", "training.save_total_limit=2"]
    sets = [word for change in changes for word in ("--set", change)]
    whole, killed = bench.folder / "whole", bench.folder / "killed"
    runs = [trained(bench, "quickstart", "--output", str(whole), *sets)]
    command = ["train", "quickstart", "--no-report", "--output", str(killed), *sets]
    try:
        bench.call(COMMAND, arguments=command, killed_after=str(killed / "checkpoints"))
    except JobError as error:
        if "SIGKILL" not in str(error):
            raise
    runs.append(trained(bench, "quickstart", "--output", str(killed), "--resume", *sets))
    losses = [run["metrics"]["eval_loss"] for run in runs]
    off = abs(losses[1] - losses[0]) / losses[0]
    figures = {
        "resumed from step": runs[1]["resumed"][0]["step"],
        "loss": losses[1],
        "undisturbed": losses[0],
        "off": off,
        "bound": _RESUME_BOUND,
    }
    yield Row("lora, killed and resumed", figures, off <= _RESUME_BOUND)


def trained(bench: Bench, recipe: str, *arguments: str) -> dict[str, Any]:
    """What `peftkit train --json` prints of a finished run."""
    command = ["train", recipe, "--no-report", "--json", *arguments]
    manifest: dict[str, Any] = json.loads(succeeded(bench.call(COMMAND, arguments=command))["stdout"])
    return manifest


def succeeded(found: dict[str, Any]) -> dict[str, Any]:
    """What a command gave, if it ended well.

    Raises:
        JobError: it did not; the message is the last line that it said.
    """
    if found["status"]:
        lines = found["stderr"].strip().splitlines() or ["it said nothing"]
        raise JobError(f"peftkit ended with status {found['status']}: {lines[-1]}", found["stderr"])
    return found
