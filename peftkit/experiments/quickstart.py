"""The whole job on the embedded base: three methods with the same hyperparameters, a merge, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftkit import console
from peftkit.adapters.merge import MergeReceipt, merge
from peftkit.data.prepare import prepare_validation
from peftkit.data.prompts import pairs
from peftkit.errors import RunError
from peftkit.evaluation.generation import generate
from peftkit.experiments.compare import CompareOptions, compare
from peftkit.models.base import locate_base
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.methods import COMPARED
from peftkit.recipe.schema import Base, Data
from peftkit.report.page import write_report
from peftkit.runs.comparison import Comparison, Entry
from peftkit.runs.folder import RunFolder

__all__ = ["Quickstart", "Sample", "quickstart"]

_RECIPE, _MERGED, _SAMPLES = "quickstart", "merged-qlora", 3


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, what the merged model writes, and what is right."""

    prompt: str
    written: str
    wanted: str


@dataclass(frozen=True)
class Quickstart:
    """Everything that the quickstart shows."""

    comparison: Comparison
    merged: str
    merge: MergeReceipt
    samples: list[Sample]
    report: str


def quickstart(output: Path) -> Quickstart:
    """Compare `full`, `lora` and `qlora` by the shipped recipe, merge the qlora adapter and try it.

    Raises:
        TargetError: the output folder is in use.
        RunError: a step failed, or fine-tuning did not help.
    """
    RunFolder(output).check_free()
    place = find_recipe(_RECIPE)
    comparison = compare(place, CompareOptions(methods=COMPARED, generates=True), output)
    base, *_ = (entry for entry in comparison.entries if entry.method is None)
    trained = [entry for entry in comparison.entries if entry.method]
    for entry in trained:
        _check_helped(entry, base)
    qlora = next(entry for entry in trained if entry.method == "qlora")
    merged = output / _MERGED
    console.info("Merging the qlora adapter into a model that needs neither PEFT nor bitsandbytes.")
    receipt = merge([(RunFolder(output / qlora.runs[0]).adapter, 1.0)], merged)
    report = write_report([output])
    samples = _samples(merged, load_recipe(place).recipe.data)
    return Quickstart(comparison, str(merged), receipt, samples, str(report))


def _check_helped(entry: Entry, base: Entry) -> None:
    """See that the table shows what it is there to show."""
    before, after = base.metrics["perplexity"].mean, entry.metrics["perplexity"].mean
    right_before, right = base.metrics["exact_match"].mean, entry.metrics["exact_match"].mean
    if not after < before or not right > right_before:
        found = f"perplexity {before} to {after}, exact match {right_before:.2f} to {right:.2f}"
        raise RunError(f"{entry.name} did not make the base better: {found}.", where=entry.runs[0])


def _samples(merged: Path, data: Data) -> list[Sample]:
    tokenizer = locate_base(Base(model=str(merged)), weights=False).tokenizer()
    prepared = prepare_validation(data, tokenizer)
    assert prepared is not None  # the comparison has seen to it
    chosen = pairs(prepared, tokenizer, _SAMPLES)
    written = generate(str(merged), [asked.prompt for asked in chosen], raw=True)
    texts = zip(chosen, written, strict=True)
    return [Sample(asked.prompt.strip(), text.strip(), asked.completion) for asked, text in texts]
