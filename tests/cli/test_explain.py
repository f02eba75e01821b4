"""`peftkit explain`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_alone_it_lists_the_fields_in_groups(peftkit: Command) -> None:
    done = peftkit("explain")

    assert done.returncode == 0
    titles = [line.strip() for line in done.stdout.splitlines() if line.strip() in ("recipe", "lora", "base.init")]
    assert titles == ["recipe", "base.init", "lora"]
    assert "\n  learning_rate " in done.stdout


def test_a_field_is_explained_whole(peftkit: Command) -> None:
    done = peftkit("explain", "lora.r")

    starts = [line.split()[0] for line in done.stdout.splitlines()]
    assert starts == ["lora.r", "Rank:", "default", "usual", "higher", "lower"]
    assert "Hu et al. 2021, appendix H.2" in done.stdout


def test_an_argument_of_a_library_is_explained_in_its_words(peftkit: Command) -> None:
    done = peftkit("explain", "save_steps")

    assert "from     TrainingArguments, whose own words these are" in done.stdout


def test_a_metric_is_explained_with_its_unit_and_direction(peftkit: Command) -> None:
    assert (
        peftkit("explain", "eval_loss").stdout.splitlines()[-1] == "  validation loss, in nats/token: lower is better"
    )
    assert json.loads(peftkit("explain", "bleu", "--json").stdout)["better"] == "higher"


def test_a_recipes_value_stands_below_its_field(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("explain", "learning_rate", "--recipe", str(recipe_path), "--method", "full")

    assert f"here     0.003, set by {recipe_path}:12: above the usual 2e-5 to 5e-5" in done.stdout


def test_a_recipe_is_walked_line_by_line(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("explain", "--recipe", str(recipe_path), "--set", "lora.r=16")

    assert done.stdout.startswith(f"# {recipe_path}, method: lora\n")
    assert "\nlora.r: 16  # --set lora.r\n    as usual, 4 to 64" in done.stdout
    assert "\ntraining.max_steps: 6  # line 14\n" in done.stdout


def test_a_section_lists_its_fields(peftkit: Command, recipe_path: Path) -> None:
    alone = peftkit("explain", "quantization").stdout
    with_recipe = peftkit("explain", "lora", "--recipe", str(recipe_path)).stdout

    assert "load_in_8bit " in alone
    assert "lora.lora_alpha: 8  # line 5" in with_recipe
    assert "training." not in with_recipe


def test_json_has_what_the_text_says(peftkit: Command, recipe_path: Path) -> None:
    everything = json.loads(peftkit("explain", "--json").stdout)
    one = json.loads(peftkit("explain", "weight_decay", "--recipe", str(recipe_path), "--json").stdout)

    assert everything["recipe"] is None
    assert {"training.learning_rate", "lora.r", "base.init.n_layer"} <= {
        field["field"] for field in everything["fields"]
    }
    (field,), (line,) = one["fields"], one["recipe"]
    assert (field["default"], field["documented_by"], sorted(field["effects"])) == (0.0, "peftkit", ["higher", "lower"])
    assert (line["field"], line["set_by"], line["verdict"]) == ("training.weight_decay", "default", "usual")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learning_rat"], "learning_rat: is not a field of a recipe. Did you mean learning_rate?"),
        (["training.lr"], "training.lr: is not a field of training. Use learning_rate."),
        (["lora.r", "--recipe", "nowhere.yaml"], "is neither a recipe file nor a shipped recipe"),
        (["lora.r", "--recipe", "quickstart", "--set", "lora.r=0"], "--set lora.r: lora.r: is 0"),
        (["lora.r", "--method", "full"], "--method and --set change a recipe: give --recipe."),
    ],
)
def test_what_cannot_be_explained_is_one_line_and_status_2(arguments: list[str], words: str, peftkit: Command) -> None:
    done = peftkit("explain", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
