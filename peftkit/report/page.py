"""One HTML page that holds all it needs: no script, and nothing that a browser would have to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from peftkit.adapters.card import proof_rows
from peftkit.metrics import size, small
from peftkit.redaction import redact
from peftkit.report import comparing, facts
from peftkit.report.content import ComparisonContent, RunContent
from peftkit.report.plots import comparison_plot, loss_plot, norms_plot, overlay_plot, schedule_plots

__all__ = ["comparison_page", "run_page", "runs_page"]

_FOLDER = Path(__file__).parent
_LONGEST_TEXT = 3_000
"""Characters of a sample or a document; what is longer ends in an ellipsis."""


def run_page(run: RunContent) -> str:
    """The report of one run."""
    return _render("run.html.j2", title=f"{run.manifest.name}: {_method(run)}", view=_view(run, "run"))


def runs_page(runs: Sequence[RunContent]) -> str:
    """The report of several runs that are no comparison."""
    views = [_view(run, f"run{number}") for number, run in enumerate(runs, start=1)]
    return _render("runs.html.j2", title=f"{len(views)} runs", views=views, table=comparing.runs_table(list(runs)))


def comparison_page(content: ComparisonContent) -> str:
    """The report of a comparison."""
    comparison = content.comparison
    return _render(
        "comparison.html.j2",
        title=f"Comparison: {content.name}",
        content=content,
        headline=comparing.headline(comparison),
        warnings=[*comparison.warnings, *comparing.missing(content)],
        table=comparing.comparison_table(comparison),
        costs=comparing.cost_table(comparison),
        expected=comparing.expected_rows(comparison),
        tried=comparing.tried_rows(comparison),
        plots=[plot for plot in (comparison_plot(content, "entries"), overlay_plot(content, "curves")) if plot],
        views=[_view(run, f"run{number}") for number, run in enumerate(content.runs.values(), start=1)],
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
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
        "method": _method(run),
        "sentence": facts.sentence(run),
        "figures": facts.key_figures(run),
        "curves": [plot for plot in curves if plot],
        "norms": norms_plot(run.updates, f"{key}-norms"),
        "audit": facts.audit_table(run.audit) if run.audit else None,
        "documents": [document["runs"] for document in run.audit["shown"]] if run.audit else [],
        "groups": facts.groups(run),
        "notes": facts.notes(run),
        "evaluations": facts.evaluations(run),
        "scores": list(facts.scores(run)),
        "merge": list(proof_rows(run.merge)) if run.merge else [],
        "hardware": facts.hardware(run.manifest.hardware),
        "versions": [(name, version) for name, version in run.manifest.versions.items() if version],
    }


def _method(run: RunContent) -> str:
    return facts.METHODS.get(run.manifest.method, run.manifest.method)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} …"
