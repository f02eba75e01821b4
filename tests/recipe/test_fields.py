"""Fields are found by their names and documented; what a recipe sets, who set it, and whether that is usual."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import InputError
from peftkit.recipe.fields import (
    Explained,
    documented_fields,
    explain_field,
    explain_recipe,
    find_fields,
    set_fields,
)
from peftkit.recipe.hyperparameters import Lora, Quantization, Training
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.methods import METHODS, sections, unused_sections


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("learning_rate", ["training.learning_rate"]),
        ("training.learning_rate", ["training.learning_rate"]),
        ("lora.r", ["lora.r"]),
        ("n_layer", ["base.init.n_layer"]),
        ("seed", ["data.seed", "training.seed"]),
        ("data.validation.path", ["data.validation.path"]),
        ("split", ["data.train.split"]),
        ("data.train.1.split", ["data.train.split"]),
        ("training", ["training"]),
        ("save_steps", ["training.save_steps"]),
        ("method", ["method"]),
        ("name", ["name"]),
    ],
)
def test_a_field_is_found_by_its_name_or_its_path(name: str, paths: list[str]) -> None:
    assert [field.path for field in find_fields(name)] == paths


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("learning_rat", "Did you mean learning_rate?"),
        ("training.learning_rat", "Did you mean training.learning_rate?"),
        ("lr", "Use learning_rate."),
        ("training.evaluation_strategy", "Use eval_strategy."),
        ("bf16", "Set precision: fp32, fp16 or bf16 at the top level of the recipe."),
        ("learning_rate.x", "Did you mean training.learning_rate?"),
        ("", "`peftkit explain` lists the fields."),
        ("a\nb", "`peftkit explain` lists the fields."),
    ],
)
def test_an_unknown_name_is_an_error_with_what_to_write(name: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        find_fields(name)

    assert caught.value.remedy == remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [Training, Lora, Quantization])
def test_every_argument_that_is_passed_on_has_its_librarys_documentation(section: type[Training]) -> None:
    undocumented = [name for name in section.passed_through_types() if not section.library.argument(name).help]

    assert undocumented == []


def test_an_argument_that_is_passed_on_has_its_librarys_default() -> None:
    (steps,), (threshold,), (init,) = map(find_fields, ("save_steps", "llm_int8_threshold", "init_lora_weights"))

    assert (steps.default, threshold.default, init.default) == (500, 6.0, True)
    assert steps.library is not None
    assert steps.library.name == "TrainingArguments"
    assert "checkpoint saves" in steps.meaning


@pytest.mark.parametrize("section", [Training, Lora, Quantization])
def test_every_default_of_a_library_can_be_shown(section: type[Training]) -> None:
    defaults = {name: section.library.argument(name).default for name in section.passed_through_types()}

    assert json.loads(json.dumps(defaults, allow_nan=False)) == defaults


def test_every_documented_field_has_a_summary_of_one_sentence() -> None:
    summaries = [field.summary for fields in documented_fields().values() for field in fields]

    assert [text for text in summaries if not text.endswith(".") or "\n" in text] == []


def explained(path: Path, field: str, *overrides: str, method: str | None = None) -> Explained:
    """What is said of one field of a recipe."""
    (found,) = find_fields(field)
    (line,) = explain_field(load_recipe(path, method=method, overrides=overrides), found)
    return line


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ("training.learning_rate=2e-4", "usual", "as usual, 1e-4 to 5e-4 (Hu et al. 2021"),
        ("training.learning_rate=3e-3", "above", "above the usual 1e-4 to 5e-4"),
        ("training.learning_rate=1e-6", "below", "too low, the run ends before it has learned"),
        ("training.gradient_accumulation_steps=8", "usual", "effective batch on one device 32: as usual, 8 to 128"),
        ("training.gradient_accumulation_steps=1", "below", "effective batch on one device 4: below"),
        ("training.warmup_steps=3", "above", "share of all steps 0.5: above the usual 0 to 0.1"),
        ("training.max_grad_norm=0", "below", "no clipping at all"),
        ("training.optim=sgd", "other", "other than the usual adamw_torch_fused or adamw_torch"),
        ("lora.lora_alpha=4", "usual", "lora_alpha / r 1: as usual, 0.25 to 8"),
        ("lora.use_dora=true", "other", "better at low ranks"),
        ("base.dropout=null", None, "Probability with which values are dropped"),
        ("training.save_total_limit=3", None, "Checkpoints to keep"),
    ],
)
def test_a_value_is_judged_beside_the_usual_ones(
    change: str, verdict: str | None, words: str, recipe_path: Path
) -> None:
    line = explained(recipe_path, change.partition("=")[0], change)

    assert line.verdict == verdict
    assert words in line.why
    assert line.set_by == f"--set {line.field}"


@pytest.mark.parametrize(
    ("field", "changes", "words"),
    [
        ("num_train_epochs", [], "not used: max_steps says"),
        ("max_steps", ["training.max_steps=-1"], "not set: num_train_epochs says"),
        ("adam_beta1", ["training.optim=sgd"], "not used by optim: sgd"),
        ("bnb_4bit_quant_type", ["method=qlora", "quantization.load_in_8bit=true"], "not used: load_in_8bit"),
        ("bnb_4bit_quant_type", [], "not used by method: lora"),
        ("lora.r", ["method=full"], "not used by method: full"),
    ],
)
def test_a_field_that_does_not_act_is_said_not_to(
    field: str, changes: list[str], words: str, recipe_path: Path
) -> None:
    line = explained(recipe_path, field, *changes)

    assert line.verdict is None
    assert words in line.why


def test_the_usual_values_are_those_of_what_is_trained(recipe_path: Path) -> None:
    whys = [explained(recipe_path, "learning_rate", method=method).why for method in ("full", "lora", "qlora")]
    new = explained(find_recipe("gpt2-from-scratch"), "learning_rate")

    assert [why.partition("the usual ")[2].partition(" (")[0] for why in whys] == [
        "2e-5 to 5e-5", "1e-4 to 5e-4", "1e-4 to 2e-4"]  # fmt: skip
    assert new.why.startswith("as usual, 6e-5 to 6e-4")


def test_a_share_of_steps_that_the_recipe_does_not_give_is_not_judged() -> None:
    line = explained(find_recipe("gpt2-wikitext2"), "warmup_steps")

    assert line.verdict is None
    assert line.why.endswith("known once the data is read")


def test_every_line_says_who_set_it(recipe_path: Path) -> None:
    text = recipe_path.read_text(encoding="utf-8") + "methods: {qlora: {lora: {r: 16}}}\n"
    recipe_path.write_text(text, encoding="utf-8")
    file = load_recipe(recipe_path, method="qlora", overrides=["training.seed=7"])

    lines = {line.field: line for line in explain_recipe(file)}

    assert lines["method"].set_by == "--method"
    assert lines["training.seed"].set_by == "--set training.seed"
    assert lines["training.learning_rate"].set_by == f"{recipe_path}:12"
    assert (lines["lora.r"].value, lines["lora.r"].set_by) == (16, f"{recipe_path}:{text.count(chr(10))}")
    assert lines["training.weight_decay"].set_by == "default"
    assert "base.revision" not in lines


def test_fields_of_sources_and_arguments_that_are_passed_on_have_lines_too(recipe_path: Path) -> None:
    folder = recipe_path.parent
    mixed = f"[{{path: {folder}/train.jsonl, weight: 1}}, {{path: {folder}/validation.jsonl, weight: 2}}]"
    file = load_recipe(recipe_path, overrides=[f"data.train={mixed}", "training.eval_delay=1"])

    lines = {line.field: line.value for line in explain_recipe(file)}
    of_train = explain_field(file, find_fields("data.train")[0])

    assert (lines["data.train.1.weight"], lines["training.eval_delay"]) == (2, 1)
    assert [line.field for line in of_train] == [
        "data.train.0.path", "data.train.0.weight", "data.train.1.path", "data.train.1.weight"]  # fmt: skip


SCHEMA = json.loads(files("peftkit").joinpath("assets/recipe.schema.json").read_text(encoding="utf-8"))
HEADINGS = {"name", "description", "method"}
SET = "a value that nothing has by default"


def fields_of(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every field that a recipe may have, those that are passed on to a library included."""
    found: list[tuple[str, ...]] = []
    for name, field in schema["properties"].items():
        parts = (field, *field.get("anyOf", ()), field.get("items", {}))
        inner: dict[str, Any] = next(
            (SCHEMA["$defs"][part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part), {}
        )
        found += fields_of(inner, (*path, name)) if inner else [(*path, name)]
    return found


FIELDS = [path for path in fields_of(SCHEMA) if path[0] not in HEADINGS]


def recipe_with(path: tuple[str, ...], value: object) -> dict[str, Any]:
    users = [method for method in METHODS if path[0] not in unused_sections(method)]
    recipe: dict[str, Any] = {"method": users[-1] if path[0] in sections() else "qlora"}
    place = recipe
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value
    return recipe


def test_the_schema_has_all_kinds_of_fields() -> None:
    assert {("training", "lr_scheduler_kwargs"), ("base", "init", "n_layer"), ("precision",)} <= set(FIELDS)
    assert len(FIELDS) > 150


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_that_is_set_is_found(path: tuple[str, ...]) -> None:
    groups = set_fields(recipe_with(path, SET))

    home, name = ("recipe", path[0]) if len(path) == 1 else (path[0], ".".join(path[1:]))
    assert groups[home][name] == SET


def test_fields_of_each_item_of_a_list_are_found() -> None:
    sources = [{"path": "a.jsonl", "weight": 1.0}, {"path": "b.jsonl", "limit": 5}]

    assert set_fields(recipe_with(("data", "train"), sources))["data"] == {
        "train.0.path": "a.jsonl",
        "train.0.weight": 1.0,
        "train.1.path": "b.jsonl",
        "train.1.limit": 5,
    }


def test_a_field_that_the_schema_does_not_know_is_found_too() -> None:
    assert set_fields(recipe_with(("training", "renamed_since"), 3))["training"] == {"renamed_since": 3}


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "full", "lora": {"r": 4}},
        {"method": "lora", "quantization": {"load_in_8bit": True}},
        {"training": {"max_steps": -1}},
        {"training": {"logging_steps": 10, "save_total_limit": 2}},
        {"data": {"columns": {}, "truncation": None}},
    ],
    ids=str,
)
def test_what_does_not_act_and_defaults_that_are_no_hyperparameters_are_left_out(recipe: dict[str, Any]) -> None:
    assert set_fields(recipe) == {}
