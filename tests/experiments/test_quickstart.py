"""The quickstart shows what it promises, and the shipped adapter is one that it made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import peftkit as package
from peftkit.metrics import METRICS

SHIPPED = Path(package.__file__).parents[1] / "adapters" / "quickstart"

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_method_is_clearly_better_than_the_untouched_base(peftkit: Command, tmp_path: Path) -> None:
    done = peftkit("quickstart", "--output", "quick", "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    base, quantised, *trained = result["comparison"]["entries"]
    assert (base["name"], quantised["name"]) == ("base", "base in nf4")
    assert base["metrics"]["exact_match"]["mean"] == 0
    assert [entry["method"] for entry in trained] == ["full", "lora", "qlora"]
    for entry in trained:
        assert entry["metrics"]["perplexity"]["mean"] < 1.1 < 100 < base["metrics"]["perplexity"]["mean"]
        assert entry["metrics"]["exact_match"]["mean"] > 0.9
    assert result["merge"]["proof"]["relative_error"] < 1e-5
    assert [sample["written"] for sample in result["samples"]] == [sample["wanted"] for sample in result["samples"]]
    assert (tmp_path / "quick" / "report.html").is_file()
    assert (tmp_path / "quick" / "merged-qlora" / "model.safetensors").is_file()


@pytest.mark.skipif(
    not SHIPPED.is_dir(), reason="the example adapter stands in a checkout, not in an installed package"
)
def test_the_shipped_adapter_reproduces_its_cards_figure(peftkit: Command) -> None:
    recorded = json.loads((SHIPPED / "peftkit.json").read_text(encoding="utf-8"))["metrics"]["perplexity"]
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")

    measured = json.loads(peftkit("evaluate", str(SHIPPED), "--json").stdout)["perplexity"]

    assert f"| perplexity | {METRICS['perplexity'].text(recorded)} |" in card
    assert measured == pytest.approx(recorded, rel=1e-3)


def test_a_place_in_use_is_refused_at_once(peftkit: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()

    done = peftkit("quickstart", "--output", ".")

    assert done.returncode == 2
    assert "never writes over a run" in done.stderr
