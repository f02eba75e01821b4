"""`peftkit report` and `peftkit metrics` as users meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftkit.cli.app import main


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a finished run, to write into."""
    return Path(shutil.copytree(runs["lora"], tmp_path / "first"))


def test_report_prints_where_the_page_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["report", str(run)])

    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_report_tells_programs_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "page.html"

    with pytest.raises(SystemExit):
        main(["report", str(run), str(run), "--output", str(place), "--json"])

    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(place), "runs": [str(run), str(run)], "bytes": place.stat().st_size}


def test_a_report_of_what_is_no_run_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["report", str(tmp_path)])

    assert leaving.value.code == 2
    assert "manifest.json: is missing or damaged. Name the folder of a run." in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_metrics_draws_curves_and_lists_the_evaluations(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["metrics", str(run)])

    printed = capsys.readouterr().out
    assert leaving.value.code == 0
    assert printed.isascii()
    assert "loss, nats a token: * training, o validation" in printed
    assert "learning rate" in printed
    assert "perplexity" in printed


def test_metrics_gives_the_lines_of_the_file_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["metrics", str(run), "--json"])

    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(capsys.readouterr().out) == [json.loads(line) for line in lines]


def test_metrics_of_a_run_that_measured_nothing_yet_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()

    with pytest.raises(SystemExit) as leaving:
        main(["metrics", str(run)])

    captured = capsys.readouterr()
    assert leaving.value.code == 0
    assert captured.out == ""
    assert "nothing is measured yet" in captured.err
