"""Runs and a comparison to report on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.report.content import RunContent, read_run
from peftkit.runs.comparison import COMPARISON_NAME, Against, Comparison, Entry, Expected, Statistic
from peftkit.storage import write_json


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a finished run of LoRA, to be changed."""
    return Path(shutil.copytree(runs["lora"], tmp_path / "first"))


@pytest.fixture
def content(runs: dict[str, Path]) -> RunContent:
    """What the finished run of LoRA tells."""
    return read_run(runs["lora"])


@pytest.fixture
def comparison() -> Comparison:
    """A made-up comparison of the three methods, of which one is best, one is worse and one may be as good."""

    def entry(name: str, loss: float, against: Against, **changes: float) -> Entry:
        metrics = {"eval_loss": Statistic(loss, 0.012, [loss]), "peak_memory_bytes": Statistic(2e9, None, [2e9])}
        return Entry(name, name, dict(changes), [name], metrics, against)

    return Comparison(
        recipe="small.yaml",
        by="eval_loss",
        higher_is_better=False,
        seeds=[42, 43],
        entries=[
            Entry("base", None, {}, [], {"eval_loss": Statistic(6.2, None, [6.2])}),
            entry("full", 1.5, Against(0.0, None, None, "best")),
            entry("lora", 1.51, Against(0.01, -0.02, 0.04, "noise")),
            entry("qlora", 2.5, Against(1.0, 0.9, 1.1, "worse")),
        ],
        warnings=["full still fell when it ended."],
        expected=[
            Expected("lora", "eval_loss", "at most 2", "a measurement", 1.51, 0.0),
            Expected("qlora", "eval_loss", "at most 2", "a measurement", 2.5, 0.5),
            Expected("full", "bleu", "at least 60", "a paper", None, None),
        ],
        tried=[{"entry": "lora", "learning_rate": "3e-3", "run": "lora", "eval_loss": 1.51, "chosen": True}],
    )


@pytest.fixture
def compared(runs: dict[str, Path], tmp_path: Path, comparison: Comparison) -> Path:
    """The comparison's folder with its runs."""
    folder = tmp_path / "compared"
    for name, place in runs.items():
        shutil.copytree(place, folder / name)
    write_json(folder / COMPARISON_NAME, comparison.to_json())
    return folder


@pytest.fixture
def text_of() -> Callable[[str], str]:
    """The text that a page shows, with single spaces."""
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[str] = []

        def handle_data(self, data: str) -> None:
            self.parts.append(data)

    def read(page: str) -> str:
        reader = Reader()
        reader.feed(page.partition("</style>")[2])
        return " ".join(" ".join(reader.parts).split())

    return read
