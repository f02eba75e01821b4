"""The report of runs or of a comparison: one HTML page that holds all it needs, without scripts or links to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from peftkit.adapters.card import proof_rows
from peftkit.adapters.files import RECEIPT_NAME, WEIGHTS_NAME, Adapter
from peftkit.adapters.inspect import inspect_modules
from peftkit.errors import InputError, TargetError
from peftkit.metrics import size, small
from peftkit.recipe.methods import title_of
from peftkit.redaction import redact
from peftkit.report import facts
from peftkit.report.content import ComparisonContent, LayerUpdate, RunContent, read_comparison, read_run
from peftkit.report.plots import comparison_plot, loss_plot, norms_plot, overlay_plot, schedule_plots
from peftkit.runs.comparison import COMPARISON_NAME
from peftkit.runs.folder import ADAPTER_FOLDER, RunFolder
from peftkit.storage import read_json, write_fault, write_text

__all__ = ["comparison_page", "run_page", "runs_page", "write_report"]


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
            what = "is a comparison, and cannot be reported with other runs."
            remedy = "Name it alone; its report has all of its runs."
            raise InputError(what, where=str(comparison), remedy=remedy)
        if output is None:
            raise InputError("the report of several runs has no place of its own.", remedy="Name a file with --output.")
    if merged is not None and (len(runs) > 1 or comparison is not None):
        raise InputError("is of one run's adapter.", where="--merged", remedy="Name that run alone.")
    place = output or RunFolder(runs[0]).report
    _write(place, _page(runs, comparison, merged))
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
        return run  # moved away: the manifest still says what it was
    modules = inspect_modules(Adapter.read(path / ADAPTER_FOLDER), lambda _: None)
    updates = [LayerUpdate(each.layer, each.target, each.norm) for each in modules if each.norm is not None]
    return replace(run, updates=updates)


def _receipt(merged: Path, path: Path, run: RunContent) -> dict[str, Any]:
    """The receipt of a model that this run's adapter was merged into; TargetError if there is none, or of others."""
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
    remedy = "Name another file with --output."
    if not place.parent.is_dir():
        raise TargetError("there is no such folder.", where=str(place.parent), remedy=remedy)
    if place.is_dir():
        raise TargetError("is a folder.", where=str(place), remedy="Name a file with --output.")
    try:
        write_text(place, text)
    except OSError as error:
        known = write_fault(error, place)
        what = known.what if known else f"cannot be written: {error.strerror}."
        raise TargetError(what, where=str(place), remedy=remedy) from error


_FOLDER = Path(__file__).parent
_GONE = ": its folder is not there, so this page has only its numbers."
_LONGEST_TEXT = 3_000
"""Characters of a sample or a document; what is longer ends in an ellipsis."""


def run_page(run: RunContent) -> str:
    """The report of one run."""
    return _render("run.html.j2", title=f"{run.manifest.name}: {title_of(run.manifest.method)}", view=_view(run, "run"))


def runs_page(runs: Sequence[RunContent]) -> str:
    """The report of several runs that are no comparison."""
    views = [_view(run, f"run{number}") for number, run in enumerate(runs, start=1)]
    return _render("runs.html.j2", title=f"{len(views)} runs", views=views, table=facts.runs_table(list(runs)))


def comparison_page(content: ComparisonContent) -> str:
    """The report of a comparison."""
    comparison = content.comparison
    return _render(
        "comparison.html.j2",
        title=f"Comparison: {content.name}",
        content=content,
        headline=facts.headline(comparison),
        warnings=[*comparison.warnings, *(f"{name}{_GONE}" for name in content.missing)],
        table=facts.comparison_table(comparison),
        costs=facts.cost_table(comparison),
        expected=facts.expected_rows(comparison),
        tried=facts.tried_rows(comparison),
        plots=[plot for plot in (comparison_plot(content, "entries"), overlay_plot(content, "curves")) if plot],
        views=[_view(run, f"run{number}") for number, run in enumerate(content.runs.values(), start=1)],
    )


def _render(template: str, **values: Any) -> str:
    layout: dict[str, Any] = dict.fromkeys(("trim_blocks", "lstrip_blocks", "keep_trailing_newline"), True)
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, **layout)
    environment.globals["evaluation_columns"] = facts.EVALUATION_COLUMNS
    environment.filters |= {"shortened": _shortened, "small": small, "bytes": size}
    style = (_FOLDER / "style.css").read_text(encoding="utf-8")
    return redact(environment.get_template(template).render(style=style, **values))


def _view(run: RunContent, key: str) -> dict[str, Any]:
    """A run with all that the templates say of it; `key` begins the names of its elements, unlike those of others."""
    curves = [loss_plot(run, f"{key}-loss"), *schedule_plots(run, key)]
    return {
        "key": key,
        "run": run,
        "method": title_of(run.manifest.method),
        "sentence": facts.sentence(run),
        "figures": facts.key_figures(run),
        "curves": [plot for plot in curves if plot],
        "norms": norms_plot(run.updates, f"{key}-norms"),
        "audit": facts.audit_table(run.audit) if run.audit else None,
        "sources": facts.sources(run.audit) if run.audit else [],
        "documents": [document["runs"] for document in run.audit["shown"]] if run.audit else [],
        "groups": facts.groups(run),
        "notes": facts.notes(run),
        "evaluations": facts.evaluations(run),
        "scores": list(facts.scores(run)),
        "merge": list(proof_rows(run.merge)) if run.merge else [],
        "hardware": facts.hardware(run.manifest.hardware),
        "versions": [(name, version) for name, version in run.manifest.versions.items() if version],
    }


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} …"
