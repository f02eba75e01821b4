"""The report of runs or of a comparison, put together from what their folders hold and written as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.adapters.files import WEIGHTS_NAME, read_adapter
from peftkit.adapters.inspect import inspect_modules
from peftkit.adapters.record import RECEIPT_NAME
from peftkit.errors import InputError, TargetError
from peftkit.report.content import LayerUpdate, RunContent, read_comparison, read_run
from peftkit.report.page import comparison_page, run_page, runs_page
from peftkit.runs.comparison import COMPARISON_NAME
from peftkit.runs.folder import ADAPTER_FOLDER, RunFolder
from peftkit.storage import read_json, write_fault, write_text

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], output: Path | None = None, merged: Path | None = None) -> Path:
    """Write the report of a run, of several, or of a comparison's folder; give its place.

    Without `output` it is `report.html` in the folder that it is about. `merged` is a model that the run's adapter was
    merged into, whose receipt is shown too.

    Raises:
        TargetError: a folder is not what is needed, or the page cannot be written there.
        InputError: several runs without `output`, or `merged` with anything but one run.
    """
    if not runs:
        raise InputError("there is no run to report on.", remedy="Name the folder of a run or of a comparison.")
    comparison = next((path for path in runs if (path / COMPARISON_NAME).is_file()), None)
    if len(runs) > 1:
        if comparison is not None:
            remedy = "Name it alone; its report has all of its runs."
            raise InputError(
                "is a comparison, and cannot stand beside other runs.", where=str(comparison), remedy=remedy
            )
        if output is None:
            raise InputError("the report of several runs has no place of its own.", remedy="Name a file with --output.")
    if merged is not None and (len(runs) > 1 or comparison is not None):
        raise InputError("is of one run's adapter.", where="--merged", remedy="Name that run alone.")
    place = output or RunFolder(runs[0]).report
    text = _page(runs, comparison, merged)
    _write(place, text)
    return place


def _page(runs: Sequence[Path], comparison: Path | None, merged: Path | None) -> str:
    if comparison is not None:
        content = read_comparison(comparison)
        known = {name: _with_updates(run, comparison / name) for name, run in content.runs.items()}
        return comparison_page(replace(content, runs=known))
    read = [_with_updates(read_run(path), path) for path in runs]
    if len(read) > 1:
        return runs_page(read)
    run = read[0]
    return run_page(replace(run, merge=_receipt(merged, runs[0], run)) if merged is not None else run)


def _with_updates(run: RunContent, path: Path) -> RunContent:
    """The run with how far its adapter moves each weight, once it has one that was proven."""
    if not any(name.startswith(f"{ADAPTER_FOLDER}/") for name in run.manifest.outputs):
        return run
    if not (path / ADAPTER_FOLDER / WEIGHTS_NAME).is_file():
        return run  # moved away: the manifest still tells what it was
    modules = inspect_modules(read_adapter(path / ADAPTER_FOLDER), lambda _: None)
    return replace(run, updates=[LayerUpdate(each.layer, each.target, each.norm) for each in modules])


def _receipt(merged: Path, path: Path, run: RunContent) -> dict[str, Any]:
    """The receipt of a model that this run's adapter was merged into.

    Raises:
        TargetError: there is none, or it is of other adapters.
    """
    place = merged / RECEIPT_NAME
    if not place.is_file():
        remedy = "Name the output of peftkit merge."
        raise TargetError(f"holds no merged model: there is no {RECEIPT_NAME}.", where=str(merged), remedy=remedy)
    try:
        receipt: dict[str, Any] = read_json(place)
        digests = {each["files"].get(WEIGHTS_NAME) for each in receipt["adapters"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TargetError("is damaged.", where=str(place), remedy="Merge the adapter again.") from error
    if run.manifest.outputs.get(f"{ADAPTER_FOLDER}/{WEIGHTS_NAME}") not in digests - {None}:
        raise TargetError(f"was not made from the adapter of {path}.", where=str(merged), remedy="Name another folder.")
    return receipt


def _write(place: Path, text: str) -> None:
    if not place.parent.is_dir():
        raise TargetError(
            "there is no such folder.", where=str(place.parent), remedy="Name another file with --output."
        )
    if place.is_dir():
        raise TargetError("is a folder.", where=str(place), remedy="Name a file with --output.")
    try:
        write_text(place, text)
    except OSError as error:
        known = write_fault(error, place)
        what = known.what if known else f"cannot be written: {error.strerror}."
        raise TargetError(what, where=str(place), remedy="Name another file with --output.") from error
