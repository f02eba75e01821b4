"""What a plan says of a run is what training takes and decides."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.models.device import detect_hardware
from peftkit.planning.hardware import device_named
from peftkit.planning.memory import CONTEXT_BYTES, WORKSPACE_BYTES
from peftkit.planning.plan import Plan
from peftkit.recipe.loader import load_recipe
from peftkit.training.arguments import training_arguments
from peftkit.training.plan import estimate, plan
from peftkit.training.prepare import prepare_run
from peftkit.training.run import run
from tests import zoo

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_steps_tokens_and_room_are_those_of_the_run(runs: dict[str, Path]) -> None:
    recipe, manifest = runs["lora"].parent / "small.yaml", json.loads((runs["lora"] / "manifest.json").read_text())

    found = estimate(prepare_run(load_recipe(recipe, method="lora", output=Path("elsewhere"))))

    assert found.steps == 6
    assert found.trainable_parameters == manifest["metrics"]["trainable_parameters"]
    assert found.total_parameters == manifest["metrics"]["total_parameters"]
    assert found.train_tokens == pytest.approx(manifest["metrics"]["train_tokens"], rel=0.1)
    assert (found.disk.checkpoints, found.fits, found.measured) == (0, True, False)


def test_what_is_measured_is_what_a_step_takes_and_nothing_is_left_behind(recipe_path: Path) -> None:
    before = sorted(path.name for path in recipe_path.parent.iterdir())

    found = plan(load_recipe(recipe_path, overrides=["training.save_strategy=epoch"]), seconds=0.5)

    assert found.measured
    assert sum(found.memory.values()) == found.peak_memory_bytes
    assert found.train_seconds is not None
    assert found.train_seconds.low is not None
    assert 0 < found.train_seconds.low <= found.train_seconds.seconds <= (found.train_seconds.high or 0)
    assert sorted(path.name for path in recipe_path.parent.iterdir()) == before


def test_what_cannot_be_counted_is_named_and_then_measured(recipe_path: Path, tmp_path: Path) -> None:
    zoo.make("jetmoe", tmp_path / "base")
    file = load_recipe(recipe_path, method="full", overrides=[f"base.model={tmp_path / 'base'}"])

    computed, measured = (plan(file, seconds=seconds) for seconds in (None, 0.1))

    assert "meta tensor" in (computed.what_is_missing() or "")
    assert "; at least " in computed.summary(4)
    assert computed.memory["optimizer"] > computed.memory["gradients"] > 0
    assert measured.what_is_missing() is None
    assert measured.memory["activations"] > computed.memory["activations"]  # there, those of the loss alone


def test_a_run_that_cannot_be_estimated_says_so_and_trains(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.make("jetmoe", tmp_path / "base")
    overrides = [f"base.model={tmp_path / 'base'}", "lora.target_modules=[kv_proj]", "training.max_steps=1"]

    _, manifest = run(load_recipe(recipe_path, overrides=overrides, output=tmp_path / "out"))

    assert manifest.status == "finished"
    assert "activations are not counted" in capsys.readouterr().err


def test_another_machine_decides_for_itself_and_has_its_own_limit(recipe_path: Path) -> None:
    old, new = (plan(load_recipe(recipe_path), seconds=None, elsewhere=device_named(name)) for name in ("t4", "h100"))

    assert [(each.device, each.precision, each.limit_bytes) for each in (old, new)] == [
        ("T4", "fp16", 16 * 10**9), ("H100", "bf16", 80 * 10**9)]  # fmt: skip
    assert old.train_seconds is not None
    assert new.train_seconds is not None
    assert new.train_seconds.seconds < old.train_seconds.seconds
    assert old.fits
    assert new.fits


def test_where_it_does_not_fit_each_change_that_is_named_would(recipe_path: Path) -> None:
    large = load_recipe(recipe_path, method="full", overrides=["training.per_device_train_batch_size=512"])

    found = plan(large, seconds=None, elsewhere=device_named("1GB"))

    assert not found.fits
    assert found.would_fit[0].change.startswith("training.per_device_train_batch_size=")
    assert all(fit.peak_bytes <= found.limit_bytes < found.peak_memory_bytes for fit in found.would_fit)


def test_more_processes_have_fewer_passes_each_and_as_many_steps(recipe_path: Path) -> None:
    full = load_recipe(recipe_path, method="full", overrides=["training.gradient_accumulation_steps=4"])
    alone, together = (plan(full, seconds=None, elsewhere=device_named("t4"), processes=count) for count in (1, 4))

    assert together.processes == 4
    assert (together.steps, together.train_tokens) == (alone.steps, alone.train_tokens)
    assert together.memory["activations"] == alone.memory["activations"]
    assert together.memory["gradients"] == 2 * alone.memory["gradients"]
    assert together.train_seconds is not None
    assert alone.train_seconds is not None
    assert together.train_seconds.seconds == pytest.approx(alone.train_seconds.seconds / 4)


def test_sharded_weights_need_less_in_each_process(recipe_path: Path) -> None:
    whole, sharded = (
        plan(load_recipe(recipe_path, method="full", overrides=[f"training.fsdp={fsdp}"]),
             seconds=None, elsewhere=device_named("a100"), processes=4)
        for fsdp in ("false", "true")
    )  # fmt: skip

    assert sharded.memory["optimizer"] == whole.memory["optimizer"] // 4
    assert sharded.memory["weights"] < whole.memory["weights"]


def test_processes_on_the_cores_of_one_machine_share_its_memory(recipe_path: Path) -> None:
    alone, together = (plan(load_recipe(recipe_path), seconds=None, processes=count) for count in (1, 2))

    elsewhere = plan(load_recipe(recipe_path), seconds=None, elsewhere=device_named("cpu"), processes=2)

    assert not together.measured
    assert together.limit_bytes == pytest.approx(alone.limit_bytes / 2, rel=0.1)
    assert elsewhere.limit_bytes == 8 * 10**9


def test_the_main_process_on_a_cpu_has_the_whole_model_that_it_saves(recipe_path: Path) -> None:
    full = load_recipe(recipe_path, method="full", overrides=["training.fsdp=true"])

    here, there = (plan(full, seconds=None, elsewhere=device, processes=2) for device in (None, device_named("a100")))

    assert here.memory["runtime"] > here.total_parameters * 4
    assert there.memory["runtime"] == CONTEXT_BYTES + WORKSPACE_BYTES


def test_what_processes_cannot_share_is_refused(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match="7 processes cannot share"):
        plan(load_recipe(recipe_path), seconds=None, processes=7)


def test_a_plan_is_read_again_from_its_json(recipe_path: Path) -> None:
    found = plan(load_recipe(recipe_path), seconds=None)

    values = json.loads(json.dumps(found.to_json()))

    assert Plan.from_json(values) == found
    assert {"peak_memory_bytes", "train_seconds", "trainable_parameters", "fits"} <= values.keys()


@pytest.mark.slow
def test_a_run_begins_by_saying_what_it_will_take(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("train", str(recipe_path), "--output", "out", "--no-report")

    assert "6 steps of 4 sequences, 1 epoch," in done.stderr, done.stderr


@pytest.mark.slow
def test_the_methods_stand_side_by_side(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("plan", str(recipe_path), "--all-methods", "--dry")

    head, *rows = done.stdout.splitlines()
    assert (done.returncode, head.split()) == (0, ["full", "lora", "qlora"]), done.stderr
    assert rows[0].split()[-3:] == ["940,800", "8,192", "8,192"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--all-methods", "--method", "full"], "leave --method out"),
        (["--set", "lora.rank=4", "--dry"], "Use r"),
        (["--seconds", "0"], "--seconds"),
        (["--nproc", "7"], "7 processes cannot share"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], words: str, peftkit: Command, recipe_path: Path
) -> None:
    done = peftkit("plan", str(recipe_path), *arguments)

    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_memory_that_is_planned_is_what_training_needs(method: str, peftkit: Command, recipe_path: Path) -> None:
    batch = ("--set", "training.per_device_train_batch_size=16", "--set", "training.max_steps=30")
    common = (str(recipe_path), "--method", method, *batch, "--json")

    planned = json.loads(peftkit("plan", *common, "--seconds", "2").stdout)["plans"][0]
    trained = json.loads(peftkit("train", *common, "--output", "out", "--no-report").stdout)

    assert planned["peak_memory_bytes"] == pytest.approx(trained["metrics"]["peak_memory_bytes"], rel=0.15)


def test_a_plan_tells_the_decisions_that_training_takes(recipe_path: Path, tmp_path: Path) -> None:
    file = load_recipe(recipe_path, overrides=["training.dataloader_num_workers=1"])

    planned = plan(file, seconds=None)

    arguments = training_arguments(file.recipe, detect_hardware(), "fp32", tmp_path)
    decisions = {decision.name: decision for decision in planned.decisions}
    assert decisions["workers"].reason == "the recipe sets training.dataloader_num_workers"
    assert decisions["workers"].choice == arguments.dataloader_num_workers == 1
    assert decisions["pinned memory"].choice == arguments.dataloader_pin_memory
    assert decisions["optimizer"].choice == arguments.optim
    assert decisions["attention"].choice == ("sdpa",)  # its documents do not share rows
    assert " of " in decisions["checkpointing"].reason  # with the figures of this recipe's step


@pytest.mark.skipif(detect_hardware().is_ampere, reason="this machine has TF32")
def test_what_the_machine_cannot_do_is_refused_at_its_line(recipe_path: Path) -> None:
    text = recipe_path.read_text(encoding="utf-8").replace("training:\n", "training:\n  tf32: true\n")
    recipe_path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"small\.yaml:12: training\.tf32: .* has no TF32"):
        prepare_run(load_recipe(recipe_path))
