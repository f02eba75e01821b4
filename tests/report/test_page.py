"""The page: what it says, that it needs nothing else, and that nothing of a run can act in it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.errors import InputError, TargetError
from peftkit.report.content import RunContent
from peftkit.report.page import run_page, write_report
from peftkit.storage import read_json, write_json

TextOf = Callable[[str], str]
SECTIONS = [
    "Key figures",
    "Curves",
    "What it writes",
    "Training data",
    "Hyperparameters",
    "How far each weight moved",
    "Machine and versions",
    "Files",
    "The same again",
]


def page(place: Path) -> str:
    return place.read_text(encoding="utf-8")


def test_a_runs_page_has_its_sections_in_the_order_that_people_ask(run: Path) -> None:
    written = page(write_report([run]))

    assert re.findall(r"<h2[^>]*>([^<]+)</h2>", written) == SECTIONS


def test_a_run_of_every_weight_has_no_adapter_to_show(runs: dict[str, Path], tmp_path: Path) -> None:
    written = page(write_report([runs["full"]], tmp_path / "full.html"))

    assert "How far each weight moved" not in written
    assert "Full fine-tuning trained all " in written


def test_a_page_loads_nothing_and_runs_nothing(run: Path) -> None:
    written = page(write_report([run]))

    assert "<script" not in written
    assert "url(http" not in written
    assert not re.findall(r"\s(?:src|srcset|action)=", written)
    assert {link[:5] for link in re.findall(r'\shref="([^"]+)"', written) if not link.startswith("#")} == {"data:"}


def test_the_same_folder_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = write_report([run], tmp_path / "a.html").read_bytes()

    assert write_report([run], tmp_path / "b.html").read_bytes() == first


def test_every_name_in_a_page_is_given_once(compared: Path) -> None:
    names = re.findall(r'\sid="([^"]+)"', page(write_report([compared])))

    assert len(names) == len(set(names))


def test_what_a_comparison_measured_of_a_run_stands_in_its_own_page(run: Path, tmp_path: Path) -> None:
    measured = {"bleu": 61.5, "exact_match": 0.25, "prompts": 12, "references": 30}
    shutil.copytree(run, tmp_path / "run")
    write_json(tmp_path / "run" / "evaluation.json", {"text": measured})

    written = page(write_report([tmp_path / "run"]))

    assert "<td>61.5</td>" in written
    assert "12 completions, 30 references" in written


def test_a_text_of_the_data_stays_a_text(content: RunContent) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    sample = {"prompt": evil, "wanted": evil, "before": evil, "after": evil}
    manifest = replace(content.manifest, name=evil, warnings=[evil], error=evil)

    written = run_page(replace(content, samples=[sample], manifest=manifest, recipe_text=evil, name=evil))

    assert "<script" not in written
    assert "<img" not in written
    assert written.count("&lt;script&gt;") >= 8


def test_no_token_is_in_a_page(content: RunContent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-this-place")
    secrets = f"hf_{'a' * 30} and a-token-of-this-place"

    written = run_page(replace(content, recipe_text=f"description: {secrets}"))

    assert f"hf_{'a' * 30}" not in written
    assert "a-token-of-this-place" not in written
    assert "description: [hidden] and [hidden]" in written


def test_taught_text_is_marked(content: RunContent) -> None:
    assert content.audit is not None
    shown = content.audit["shown"][0]["runs"]

    written = run_page(content)

    taught = next(text for is_taught, text in shown if is_taught)
    assert f"<mark>{taught.replace('<', '&lt;').replace('>', '&gt;')}</mark>" in written


def test_a_very_long_text_is_shortened(content: RunContent) -> None:
    sample = {**content.samples[0], "after": "word " * 10_000}

    assert len(run_page(replace(content, samples=[sample]))) < len(run_page(content)) + 5_000


def test_an_unfinished_run_has_a_page_too(run: Path, text_of: TextOf) -> None:
    manifest = read_json(run / "manifest.json")
    metrics = dict.fromkeys(manifest["metrics"])
    write_json(
        run / "manifest.json",
        {**manifest, "status": "failed", "error": "no memory", "metrics": metrics, "outputs": {}, "files": {}},
    )
    for name in ("audit.json", "samples.json", "metrics.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "adapter")

    text = text_of(page(write_report([run])))

    assert "LoRA of builtin:tiny-gpt2: the run is failed." in text
    assert "no memory" in text
    assert "Training data" not in text


def test_the_recipe_and_the_commands_that_train_it_again_are_in_the_page(run: Path, text_of: TextOf) -> None:
    text = text_of(page(write_report([run])))

    assert "peftkit train recipe.yaml peftkit reproduce first" in text
    assert " ".join((run / "recipe.yaml").read_text(encoding="utf-8").split()) in text


def test_a_comparisons_page_has_tables_expectations_and_each_run(compared: Path, text_of: TextOf) -> None:
    place = write_report([compared])

    written = page(place)
    text = text_of(written)
    assert place == compared / "report.html"
    assert "full has the lowest validation loss" in text
    assert "full still fell when it ended." in text
    assert "0.5 too high" in text
    assert written.count("<details>") == 3
    assert len(written.encode()) < 1_000_000


def test_several_runs_come_onto_one_page(runs: dict[str, Path], tmp_path: Path) -> None:
    written = page(write_report(list(runs.values()), tmp_path / "all.html"))

    assert "<h1>3 runs</h1>" in written
    assert re.findall(r"<h2[^>]*>([^<]+)</h2>", written) == ["Side by side", "full", "lora", "qlora"]


@pytest.fixture
def merged(run: Path, tmp_path: Path) -> Path:
    """A merged model's folder as far as the report looks."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    outputs = read_json(run / "manifest.json")["outputs"]
    files = {name: outputs[f"adapter/{name}"] for name in names}
    proof = {
        "sample": "validation data",
        "tokens": 428,
        "largest_difference": 1e-5,
        "relative_error": 6.1e-7,
        "kl_divergence": 5e-13,
        "same_next_token": 1.0,
        "expected_perplexity": 2.5,
        "found_perplexity": 2.5,
    }
    receipt = {
        "adapters": [{"adapter": str(run / "adapter"), "weight": 1.0, "files": files}],
        "base": {},
        "quantization": None,
        "onto": "dequantized",
        "dtype": "float32",
        "proof": proof,
        "tolerance": 1e-5,
        "outputs": {"model.safetensors": "f" * 64},
        "versions": {},
    }
    (tmp_path / "merged").mkdir()
    write_json(tmp_path / "merged" / "merge.json", receipt)
    return tmp_path / "merged"


def test_the_receipt_of_a_merge_is_shown(run: Path, merged: Path, text_of: TextOf) -> None:
    text = text_of(page(write_report([run], merged=merged)))

    assert "merged onto the dequantized base, as float32" in text
    assert "relative error of the logits 6.1e-07, 1e-05 allowed" in text
    assert "f" * 64 in text


def test_a_merge_of_another_adapter_is_refused(runs: dict[str, Path], merged: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="was not made from the adapter of"):
        write_report([runs["qlora"]], tmp_path / "page.html", merged)


def test_what_cannot_be_reported_is_refused_in_one_line(runs: dict[str, Path], compared: Path, tmp_path: Path) -> None:
    refused = [
        ([], None, None),
        ([runs["lora"], runs["full"]], None, None),
        ([runs["lora"], compared], tmp_path / "page.html", None),
        ([runs["lora"], runs["full"]], tmp_path / "page.html", tmp_path),
        ([compared], None, tmp_path),
        ([tmp_path], None, None),
        ([runs["lora"]], tmp_path / "page.html", tmp_path),
        ([runs["lora"]], tmp_path / "none" / "page.html", None),
        ([runs["lora"]], tmp_path, None),
    ]

    for paths, output, of in refused:
        with pytest.raises(InputError) as error:
            write_report(paths, output, of)
        assert "\n" not in str(error.value)
