"""What is read of a run folder, and what is made of one that is not complete."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.errors import TargetError
from peftkit.report import facts
from peftkit.report.content import RunContent, read_comparison, read_metrics, read_run
from peftkit.report.page import comparison_page
from peftkit.runs.comparison import Comparison
from peftkit.storage import read_json, remove_folder, write_json


def test_a_finished_run_gives_all_that_it_wrote_down(runs: dict[str, Path]) -> None:
    content = read_run(runs["lora"])

    assert content.manifest.method == "lora"
    assert content.recipe["lora"]["r"] == 4
    assert content.audit is not None
    assert len(content.samples) == 3
    assert [line["step"] for line in content.steps] == [1, 2, 3, 4, 5, 6]
    assert content.evaluations[0]["step"] == 0
    assert content.output_bytes == sum(path.stat().st_size for path in (runs["lora"] / "adapter").iterdir())


def test_what_an_older_or_unfinished_run_lacks_is_empty(run: Path) -> None:
    for name in ("audit.json", "samples.json", "metrics.jsonl", "recipe.yaml"):
        (run / name).unlink()

    content = read_run(run)

    assert (content.audit, content.samples, content.metrics, content.recipe_text) == (None, [], [], "")


def test_a_run_whose_process_is_gone_is_interrupted(run: Path) -> None:
    manifest = read_json(run / "manifest.json")
    write_json(run / "manifest.json", {**manifest, "status": "running", "outputs": {}})

    assert read_run(run).manifest.status == "interrupted"


def test_a_line_that_a_killed_process_left_half_written_is_passed_over(run: Path) -> None:
    whole = read_metrics(run)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')

    assert read_metrics(run) == whole


@pytest.mark.parametrize(("name", "damage"), [("audit.json", "{"), ("samples.json", "{}"), ("recipe.yaml", "a: [")])
def test_a_damaged_file_is_named(run: Path, name: str, damage: str) -> None:
    (run / name).write_text(damage, encoding="utf-8")

    with pytest.raises(TargetError, match=f"{name}: is damaged"):
        read_run(run)


def test_a_comparison_tells_which_of_its_runs_are_gone(compared: Path) -> None:
    remove_folder(compared / "qlora")

    content = read_comparison(compared)

    assert list(content.runs) == ["full", "lora"]
    assert content.missing == ["qlora"]
    assert "qlora: its folder is not there" in comparison_page(content)


def test_the_sentence_says_what_was_trained_and_what_it_brought(content: RunContent) -> None:
    metrics = replace(content.manifest.metrics, base_perplexity=515.6, perplexity=1.49)
    changed = replace(content, manifest=replace(content.manifest, metrics=metrics))

    assert facts.sentence(changed) == (
        f"LoRA trained {metrics.trainable_parameters:,} of {metrics.total_parameters:,} parameters of "
        "builtin:tiny-gpt2; perplexity on held-out data fell from 515.6 to 1.49."
    )


def test_hyperparameters_are_those_that_the_method_uses(runs: dict[str, Path]) -> None:
    titles = {method: list(facts.groups(read_run(path))) for method, path in runs.items()}

    assert titles == {
        "full": ["base", "data", "training", "recipe", "as trained"],
        "lora": ["base", "lora", "data", "training", "recipe", "as trained"],
        "qlora": ["base", "lora", "quantization", "data", "training", "recipe", "as trained"],
    }


def test_whatever_the_recipe_sets_is_in_the_report(content: RunContent) -> None:
    recipe = {
        **content.recipe,
        "training": {"lr_scheduler_kwargs": {"num_cycles": 2}, "warmup_steps": 0.06, "renamed_since": "twice"},
        "precision": "fp32",
    }
    found = facts.groups(replace(content, recipe=recipe))

    assert found["training"] == [
        ("warmup_steps", "0.06"),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}'),
        ("renamed_since", "twice"),
    ]
    assert ("precision", "fp32") in found["recipe"]


def test_what_happened_on_the_way_is_told(content: RunContent) -> None:
    change = {"field": "training.num_train_epochs", "before": 3.0, "now": 4.0}
    manifest = replace(
        content.manifest,
        auto_batch={"recipe": [8, 1], "used": [4, 2]},
        resumed=[{"step": 1200, "passed_over": ["checkpoints/step-1300"], "changes": [change]}],
    )

    batch, resumed = facts.notes(replace(content, manifest=manifest))

    assert "did not fit into memory" in batch
    assert resumed.startswith("Resumed from step 1,200, past checkpoints that were not sound: checkpoints/step-1300")
    assert "training.num_train_epochs" in resumed


def test_the_headline_names_the_best_and_what_is_more_than_noise(comparison: Comparison) -> None:
    assert facts.headline(comparison) == (
        "full has the lowest validation loss, 1.500 ± 0.012 over 2 seeds. qlora is worse by more than noise. "
        "The difference to lora may be noise."
    )


def test_an_expectation_tells_by_how_much_it_is_missed(comparison: Comparison) -> None:
    assert [row[4] for row in facts.expected_rows(comparison)] == ["as expected", "0.5 too high", "not measured"]


def test_the_tables_have_a_line_for_each_entry_and_the_base_cost_nothing(comparison: Comparison) -> None:
    head, rows = facts.comparison_table(comparison)
    _, costs = facts.cost_table(comparison)

    assert head == ["", "validation loss", "verdict"]
    assert [row[0] for row in rows] == ["base", "full", "lora", "qlora"]
    assert rows[2] == ["lora", "1.510 ± 0.012", "may be noise: +0.01\n(-0.02 to +0.04)"]
    assert costs[0] == ["full", "2.0 GB"]


def test_a_comparison_is_read_as_it_was_written(compared: Path, comparison: Comparison) -> None:
    assert json.loads((compared / "comparison.json").read_text(encoding="utf-8")) == comparison.to_json()
    assert read_comparison(compared).comparison == comparison
