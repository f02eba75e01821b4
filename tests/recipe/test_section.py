"""Each thing that is wrong is told once, at the place and under the name that it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftkit.errors import InputError, RecipeError
from peftkit.recipe.loader import load_recipe

TEXT = """\
name: mine
base: {model: gpt2}
data:
  train: {path: rows.txt}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rows.txt").write_text("text\n", encoding="utf-8")
    return tmp_path / "mine.yaml"


def problems(path: Path, text: str, *overrides: str, method: str | None = None) -> list[str]:
    """The messages of a recipe that is wrong, without the folder."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(path, method=method, overrides=overrides)
    return [line.removeprefix(f"{path.parent}/") for line in error.value.lines()]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("warmup_ratio: 0.1", "mine.yaml:5: warmup_ratio: there is no warmup_ratio in a recipe. In training, use"),
        ("epochs: 3", "mine.yaml:5: epochs: there is no epochs in a recipe. In training, use num_train_epochs."),
        ("fp16: true", "mine.yaml:5: fp16: there is no fp16 in a recipe. Set precision"),
        ("model: gpt2", "mine.yaml:5: model: there is no model in a recipe. It belongs in base."),
        ("training: {precision: bf16}", "mine.yaml:5: training.precision: there is no precision in training. It"),
        ("lora: {r: '8'}", "mine.yaml:5: lora.r: is the text '8', but must be a whole number. Write it without"),
        ("lora: {r: 1_000}", "mine.yaml:5: lora.r: is the text '1_000', but must be a whole number. Change the value."),
        ("lora: {target_modules: 3}", "mine.yaml:5: lora.target_modules: is 3, but must be a list or text."),
        ("lora:\n  target_modules:\n    - a\n    - 3", "mine.yaml:8: lora.target_modules.1: is 3, but must be text."),
        ("training: {eval_delay: .inf}", "mine.yaml:5: training.eval_delay: is inf, but must be a finite number."),
        ("training: {max_steps: 0}", "mine.yaml:5: training.max_steps: is 0, but must be a number of steps"),
        ("methods:\n  full: {method: lora}", "mine.yaml:6: methods.full.method: cannot differ"),
        ("methods:\n  full: 3", "mine.yaml:6: methods.full: is 3, but must be a mapping of fields."),
    ],
)  # fmt: skip
def test_one_mistake_is_one_message(lines: str, message: str, path: Path) -> None:
    found = problems(path, f"{TEXT}{lines}\n")

    assert len(found) == 1
    assert found[0].startswith(message)


def test_a_file_that_a_method_names_is_missing_under_that_methods_name(path: Path) -> None:
    text = f"{TEXT}methods:\n  qlora:\n    data: {{train: {{path: none.txt}}}}\n"

    assert problems(path, text)[0].startswith("mine.yaml:7: methods.qlora.data.train.path: there is no file")


def test_an_unknown_method_is_told_when_the_chosen_one_has_values_of_its_own(path: Path) -> None:
    text = f"{TEXT}methods:\n  full: {{training: {{seed: 1}}}}\n  ful: {{training: {{seed: 1}}}}\n"

    assert problems(path, text, method="full") == [
        "mine.yaml:7: methods.ful: there is no method ful. Did you mean full?"
    ]


def test_fields_that_do_not_fit_are_told_together(path: Path) -> None:
    text = TEXT.replace("{model: gpt2}", "{init: {n_positions: 64}}") + "training: {eval_strategy: epoch}\n"

    found = problems(path, text)

    assert [line.split(": ")[:2] for line in found] == [
        ["mine.yaml:2", "base.init"], ["mine.yaml:5", "training.eval_strategy"], ["mine.yaml:3", "data.max_length"]
    ]  # fmt: skip


def test_a_missing_field_is_told_at_the_section_around_it(path: Path) -> None:
    assert problems(path, "name: mine\nbase: {model: gpt2}\ndata:\n  max_length: 8\n") == [
        "mine.yaml:3: data.train: is missing. Add it."
    ]


def test_an_option_that_replaces_a_value_of_the_file_takes_the_blame(path: Path) -> None:
    assert problems(path, TEXT, "name.x=3")[0].startswith("--set name.x: name: is a mapping, but must be text.")


def test_a_removed_name_in_an_option_names_its_successor(path: Path) -> None:
    assert problems(path, TEXT, "training.evaluation_strategy=no")[0].endswith("Use eval_strategy.")


@pytest.mark.parametrize(
    ("content", "message"), [(b"name: a\nx: \xff\n", ":2: is not UTF-8 text."), (None, ": is a folder, not a recipe.")]
)
def test_a_file_that_holds_no_text_is_an_input_error(content: bytes | None, message: str, path: Path) -> None:
    target = path.parent if content is None else path
    path.write_bytes(content or b"")

    with pytest.raises(InputError) as error:
        load_recipe(target)

    assert str(error.value).startswith(f"{target}{message}")
    assert error.value.exit_status == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    description=st.text(st.characters(exclude_categories=["Cs"]), max_size=120).map(lambda text: "x" + text)
    | st.sampled_from(["no", "1e-4", "0o7", "1_000", "0b1", "null", "~", "2026-01-01", ".inf", "<<", "1:30", "a # b"]),
    alpha=st.floats(1e-300, 1e300),
    method=st.sampled_from(["full", "lora", "qlora"]),
)
def test_a_resolved_recipe_is_equal_to_the_recipe_whatever_its_text(
    path: Path, description: str, alpha: float, method: str
) -> None:
    path.write_text(f"{TEXT}methods: {{qlora: {{training: {{seed: 7}}}}}}\n", encoding="utf-8")
    file = load_recipe(path, method=method, overrides=[f"lora.lora_alpha={alpha!r}"])
    told = file.recipe.model_copy(update={"description": description})
    object.__setattr__(file, "recipe", told)
    resolved = path.parent / "resolved.yaml"
    resolved.write_text(file.resolved_yaml(), encoding="utf-8", newline="")

    assert load_recipe(resolved).recipe == told


def test_a_long_text_with_escapes_is_resolved_without_another_space(path: Path) -> None:
    told = "\x1f\U00010000\U0001f600\xa0\x1f \uffff\\\U00010000\x7f\U00010000\ue000a \x7f"
    escaped = told.encode("unicode_escape").decode("ascii")  # as YAML writes them too
    path.write_text(f'{TEXT}description: "{escaped}"\n', encoding="utf-8")
    resolved = path.parent / "resolved.yaml"
    resolved.write_text(load_recipe(path).resolved_yaml(), encoding="utf-8")

    assert load_recipe(resolved).recipe.description == told
