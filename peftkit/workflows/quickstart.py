"""The whole job on the embedded base: three methods with the same hyperparameters, a merge, and a sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from peftkit import console
from peftkit.data.prepare import pairs, prepare_validation
from peftkit.errors import RunError
from peftkit.merging.merge import merge
from peftkit.merging.receipt import MergeReceipt
from peftkit.models.base import locate_base
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Base, Data, Method
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunMetrics
from peftkit.workflows.evaluate import Measures, evaluate_target
from peftkit.workflows.generate import generate

__all__ = ["MAX_NEW_TOKENS", "Quickstart", "Row", "Sample", "quickstart"]

MAX_NEW_TOKENS = 40
_MEASURES = Measures(exact_match=True, max_new_tokens=MAX_NEW_TOKENS)
"""Enough for every sentence of the task, which have at most 30."""

_RECIPE = "quickstart"
_MERGED = "merged-qlora"
_SAMPLES = 3


@dataclass(frozen=True)
class Row:
    """What one method made of the base."""

    method: Method
    output: str
    exact_match: float
    output_bytes: int
    metrics: RunMetrics


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, what the merged model writes, and what is right."""

    prompt: str
    written: str
    wanted: str


@dataclass(frozen=True)
class Quickstart:
    """Everything that the quickstart shows."""

    base: str
    base_exact_match: float
    rows: list[Row]
    merged: str
    merge: MergeReceipt
    samples: list[Sample]


def quickstart(output: Path) -> Quickstart:
    """Train `full`, `lora` and `qlora` from the shipped recipe, compare them, merge the qlora adapter and try it.

    Each method is trained in a process of its own, so that its peak memory is its own.

    Raises:
        TargetError: the output folder is in use.
        RunError: a step failed, or fine-tuning did not help.
    """
    RunFolder(output).check_free()
    recipe = load_recipe(find_recipe(_RECIPE)).recipe
    base = str(recipe.base.model)
    console.info(f"First, what {base} does before any fine-tuning.")
    untouched = evaluate_target(base, recipe.data, _MEASURES)
    rows = list(_trained(output, recipe.data))
    for row in rows:
        _check_helped(row, untouched.exact_match or 0.0)
    merged = output / _MERGED
    console.info("Merging the qlora adapter into a model that needs neither PEFT nor bitsandbytes.")
    receipt = merge([(output / "qlora" / "adapter", 1.0)], merged)
    return Quickstart(base, untouched.exact_match or 0.0, rows, str(merged), receipt, _samples(merged, recipe.data))


def _trained(output: Path, data: Data) -> Iterator[Row]:
    for method in get_args(Method):
        folder = RunFolder(output / method)
        command = [sys.executable, "-m", "peftkit", "train", _RECIPE, "--method", method, "--output", str(folder.path)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise RunError(f"training {method} failed; its message stands above.", where=str(folder.path))
        result = evaluate_target(str(folder.path), data, _MEASURES)
        place = folder.model if method == "full" else folder.adapter
        weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        yield Row(method, str(place), result.exact_match or 0.0, weights, folder.read().metrics)


def _check_helped(row: Row, base_exact_match: float) -> None:
    """See that the table shows what it is there to show."""
    before, after = row.metrics.base_perplexity, row.metrics.perplexity
    if before is None or after is None or not after < before or not row.exact_match > base_exact_match:
        raise RunError(
            f"{row.method} did not make the base better: perplexity {before} to {after}, "
            f"exact match {base_exact_match:.2f} to {row.exact_match:.2f}.",
            where=row.output,
        )


def _samples(merged: Path, data: Data) -> list[Sample]:
    tokenizer = locate_base(Base(model=str(merged)), weights=False).tokenizer()
    prepared = prepare_validation(data, tokenizer)
    assert prepared is not None  # evaluate_target has seen to it
    chosen = pairs(prepared, tokenizer, _SAMPLES)
    written = generate(str(merged), [prompt for prompt, _ in chosen], max_new_tokens=MAX_NEW_TOKENS, raw=True)
    return [
        Sample(prompt.strip(), text.strip(), wanted) for (prompt, wanted), text in zip(chosen, written, strict=True)
    ]
