"""A study file: strict like a recipe, and checked against the recipe that it varies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.errors import InputError, RecipeError
from peftkit.recipe.study import Range, Scalar, Study, holds, load_study, read_study, settings

RECIPE = """\
name: searched
method: lora
base: {model: "builtin:tiny-gpt2"}
data:
  train: {path: rows.txt}
  validation: {path: rows.txt}
training:
  learning_rate: 1e-3
  eval_strategy: epoch
"""
GOOD = """\
n_trials: 12
time_limit_minutes: 30
seed: 3
pruning: true
space:
  training.learning_rate: {low: 1e-5, high: 1e-2, log: true}
  training.num_train_epochs: {low: 1, high: 5, step: 1}
  lora.r: [4, 8, 16]
"""
# what is replaced, by what, the line, the field, and words of the message and its remedy
BROKEN = {
    "typo at the top": ("n_trials", "n_trails", 1, "n_trails", "Did you mean n_trials?"),
    "typo in a range": ("low: 1e-5", "lwo: 1e-5", 6, "space.training.learning_rate.lwo", "Did you mean low?"),
    "missing bound": ("low: 1e-5, ", "", 6, "space.training.learning_rate.low", "is missing."),
    "typo in a field": ("learning_rate:", "learning_rte:", 6, "space.training.learning_rte", "mean learning_rate?"),
    "typo in a section": ("lora.r", "lroa.r", 8, "space.lroa.r", "there is no lroa in a recipe. Did you mean lora?"),
    "removed name": ("num_train_epochs", "warmup_ratio", 7, "space.training.warmup_ratio", "Use warmup_steps"),
    "duplicate field": ("lora.r:", "training.learning_rate:", 8, "space.training.learning_rate", "line 6 already"),
    "section in place of a field": (
        "training.learning_rate: {", "training: {learning_rate: {}}\n  lora.lora_alpha: {", 6, "space.training",
        "Write the name of a field whole, as training.learning_rate."),
    "no trial": ("n_trials: 12", "n_trials: 0", 1, "n_trials", "must be greater than 0"),
    "no number of trials": ("n_trials: 12", "n_trials: many", 1, "n_trials", "must be a whole number"),
    "no time": ("minutes: 30", "minutes: 0", 2, "time_limit_minutes", "must be greater than 0"),
    "pruning by a word": ("pruning: true", "pruning: median", 4, "pruning", "must be true or false"),
    "bound that the recipe refuses": ("low: 1, high", "low: -1, high", 7, "space.training.num_train_epochs", "is -1"),
    "choice that the recipe refuses": ("[4, 8, 16]", "[4, 0]", 8, "space.lora.r", "is 0, but must be greater than 0"),
    "choice of the wrong type": ("[4, 8, 16]", "[4, big]", 8, "space.lora.r", "must be a whole number"),
    "unknown name as a choice": (
        "lora.r: [4, 8, 16]", "training.optim: [sgd, adamw_trch]", 8, "space.training.optim", "mean adamw_torch"),
    "one choice": ("[4, 8, 16]", "[4]", 8, "space.lora.r", "must name two values or more"),
    "a choice twice": ("[4, 8, 16]", "[4, 8, 4]", 8, "space.lora.r", "each once"),
    "neither range nor choices": ("[4, 8, 16]", "4", 8, "space.lora.r", "must be a mapping of fields"),
    "bounds that are turned round": (
        "low: 1e-5, high: 1e-2", "low: 1e-2, high: 1e-5", 6, "space.training.learning_rate.high", "not above low"),
    "logarithm of nothing": ("low: 1e-5", "low: 0", 6, "space.training.learning_rate.low", "above 0 for log"),
    "log with a step": (
        "log: true", "log: true, step: 1e-3", 6, "space.training.learning_rate.step", "cannot act with log"),
    "step that does not lead to high": (
        "high: 5, step: 1", "high: 5, step: 3", 7, "space.training.num_train_epochs.step", "does not lead"),
    "quoted bound": ("low: 1e-5", "low: '1e-5'", 6, "space.training.learning_rate.low", "Write it without quotes."),
    "endless bound": ("high: 5", "high: .inf", 7, "space.training.num_train_epochs.high", "must be a finite number"),
    "data": ("lora.r: [4, 8, 16]", "data.max_length: [64, 128]", 8, "space.data.max_length", "on the same data"),
    "base": ("lora.r: [4, 8, 16]", "base.model: [a, b]", 8, "space.base.model", "at the same base"),
    "name": ("lora.r: [4, 8, 16]", "name: [a, b]", 8, "space.name", "cannot be varied"),
    "output": ("lora.r: [4, 8, 16]", "output: [a, b]", 8, "space.output", "cannot be varied"),
    "seed": ("lora.r: [4, 8, 16]", "training.seed: [1, 2]", 8, "space.training.seed", "the luckiest one"),
    "field that the method does not use": (
        "lora.r: [4, 8, 16]", "quantization.load_in_8bit: [true, false]", 8, "space.quantization.load_in_8bit",
        "is not used by method: lora. Remove it, or add method to space."),
    "anchor": ("[4, 8, 16]", "&ranks [4, 8]", 8, "space.lora.r", "has an anchor"),
    "no YAML": ("[4, 8, 16]", "[4, 8", 8, "", "is not valid YAML"),
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.txt").write_text("one\ntwo\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def write(recipe: Path, text: str) -> Path:
    path = recipe.with_name("study.yaml")
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_told_with_line_field_and_remedy(case: str, recipe: Path) -> None:
    old, new, line, field, words = BROKEN[case]
    assert old in GOOD
    path = write(recipe, GOOD.replace(old, new, 1))

    with pytest.raises(RecipeError) as caught:
        load_study(path, recipe)

    told = [problem for problem in caught.value.problems if problem.field == field]
    assert told, caught.value.lines()
    assert told[0].where == f"{path}:{line}"
    assert words in str(told[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty. `peftkit tune --help` shows a study."),
        ("- 1\n", "is not a mapping of fields. `peftkit tune --help` shows a study."),
        ("n_trials: 3\n", "space: is missing."),
        ("space: {}\n", "space: names no field."),
    ],
)
def test_a_file_that_is_no_study_is_told(text: str, words: str, recipe: Path) -> None:
    with pytest.raises(RecipeError, match=words.replace("?", "\\?")):
        read_study(write(recipe, text))


def test_a_study_that_is_not_there_is_told(recipe: Path) -> None:
    with pytest.raises(InputError, match=r"there is no such study\. `peftkit tune --help`"):
        load_study(recipe.with_name("nowhere.yaml"), recipe)


def test_everything_that_is_wrong_is_told_together(recipe: Path) -> None:
    text = GOOD.replace("1e-5", "-1").replace("log: true", "log: false").replace("[4, 8, 16]", "[4, 0]")

    with pytest.raises(RecipeError) as caught:
        load_study(write(recipe, text), recipe)

    assert [problem.field for problem in caught.value.problems] == ["space.training.learning_rate", "space.lora.r"]


def test_a_recipe_without_validation_data_cannot_be_searched(recipe: Path) -> None:
    text = RECIPE.replace("  validation: {path: rows.txt}\n", "").replace("  eval_strategy: epoch\n", "")
    recipe.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"data\.validation: is missing: trials are compared by it"):
        load_study(write(recipe, GOOD), recipe)


def test_trials_cannot_be_ended_early_without_evaluations(recipe: Path) -> None:
    given = ["training.eval_strategy=no"]

    with pytest.raises(RecipeError, match=r"study\.yaml:4: pruning: needs the recipe's training\.eval_strategy"):
        load_study(write(recipe, GOOD), recipe, overrides=given)
    searched = load_study(write(recipe, GOOD.replace("pruning: true", "pruning: false")), recipe, overrides=given)
    assert not searched.study.pruning


def test_the_method_is_varied_or_given_but_not_both(recipe: Path) -> None:
    text = "space: {method: [full, lora], quantization.load_in_8bit: [true, false]}\n"

    assert load_study(write(recipe, text), recipe).study.space["method"] == ["full", "lora"]
    with pytest.raises(RecipeError, match=r"space\.method: cannot be varied with --method qlora"):
        load_study(write(recipe, text), recipe, method="qlora")


def test_a_range_is_of_whole_numbers_where_the_field_or_the_step_says_so(recipe: Path) -> None:
    text = (
        "space:\n  lora.r: {low: 1, high: 8}\n  training.num_train_epochs: {low: 1, high: 5, step: 1}\n"
        "  training.weight_decay: {low: 0, high: 1}\n  base.dropout: {low: 0, high: 0.5}\n"
    )

    space = load_study(write(recipe, text), recipe).study.space

    ranges = {name: span.is_whole for name, span in space.items() if isinstance(span, Range)}
    assert ranges == {
        "lora.r": True,
        "training.num_train_epochs": True,
        "training.weight_decay": False,
        "base.dropout": False,
    }


def test_the_recipes_own_values_are_those_that_are_set(recipe: Path) -> None:
    more = "  training.adam_beta2: {low: 0.9, high: 0.999}\n  training.neftune_noise_alpha: {low: 1.0, high: 9.0}\n"

    searched = load_study(write(recipe, GOOD + more), recipe, overrides=["lora.r=16"])

    assert searched.own_values() == {
        "training.learning_rate": 1e-3,
        "training.num_train_epochs": 3.0,
        "lora.r": 16,
        "training.adam_beta2": 0.999,
    }


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ([4, 8, None, "auto"], [4, None, "auto"], [5, "none", 4.5]),
        (Range(low=1, high=5, step=1), [1, 5, 3.0], [0, 6, 2.5, True, "3", None]),
        (Range(low=0.0, high=1.0, step=0.1), [0, 0.3, 1], [0.35, 1.1]),
        (Range(low=1e-5, high=1e-3, log=True), [1e-5, 5e-4, 1e-3], [9e-6, 2e-3]),
    ],
)
def test_a_value_is_inside_or_outside(span: Range | list[Scalar], inside: list[object], outside: list[object]) -> None:
    assert [value for value in inside if not holds(span, value)] == []
    assert [value for value in outside if holds(span, value)] == []


@given(st.one_of(st.floats(min_value=1e-12, max_value=1e6), st.integers(1, 10**6)))
def test_a_value_reaches_the_recipe_as_it_is(value: float) -> None:
    from peftkit.recipe.document import parse_override

    _, found = parse_override(settings({"training.learning_rate": value})[0])

    assert (found, type(found)) == (value, type(value))


def test_every_field_of_a_study_is_documented() -> None:
    fields = [*Study.model_fields.items(), *Range.model_fields.items()]

    assert [name for name, field in fields if not field.description] == []
