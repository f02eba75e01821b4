"""A recipe's values come from file, method and command line, and the resolved one trains the same run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftkit.errors import FieldError, InputError, RecipeError
from peftkit.recipe.library import find_recipe, shipped_recipes
from peftkit.recipe.loader import load_recipe

TEXT = """\
name: mine
base: {model: gpt2}
data:
  train: {path: data/rows.txt}
  max_length: 32
training:
  learning_rate: 1e-4
methods:
  full:
    training: {learning_rate: 1e-5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.txt").write_text("text\n", encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_numbers_are_those_of_yaml_1_2(path: Path) -> None:
    assert load_recipe(path).recipe.training.learning_rate == 1e-4


def test_data_is_found_beside_the_recipe(path: Path, tmp_path: Path) -> None:
    assert load_recipe(path).recipe.data.train_sources[0].path == str(tmp_path / "data" / "rows.txt")


def test_a_method_has_its_own_values_and_the_command_line_the_last_word(path: Path) -> None:
    own = load_recipe(path, method="full")
    last = load_recipe(path, method="full", overrides=["training.learning_rate=3e-5"])

    assert own.recipe.training.learning_rate == 1e-5
    assert own.recipe.data.max_length == 32
    assert last.recipe.training.learning_rate == 3e-5


def test_a_field_knows_where_it_was_written(path: Path) -> None:
    file = load_recipe(path, method="full", overrides=["data.max_length=16", "lora.target_modules=[c_attn, c_proj]"])

    assert file.where("base.model") == f"{path}:2"
    assert file.where("training.learning_rate") == f"{path}:10"
    assert file.where("data.max_length") == "--set data.max_length"
    assert file.where("method") == "--method"
    assert file.where("lora.target_modules") == "--set lora.target_modules"
    assert file.where("data.packing") == f"{path}:3"
    assert file.recipe.lora.target_modules == ["c_attn", "c_proj"]


def test_an_error_about_a_field_gets_the_place_of_the_field(path: Path) -> None:
    with (
        pytest.raises(RecipeError, match=rf"{path}:5: data\.max_length: is too long\. Shorten it\."),
        load_recipe(path).locating(),
    ):
        raise FieldError("data.max_length", "is too long.", remedy="Shorten it.")


def test_all_errors_are_told_at_once(path: Path) -> None:
    path.write_text(TEXT.replace("1e-4", "-1").replace("max_length: 32", "max_len: 32"), encoding="utf-8")

    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides=["training.optim=adamx", "nonsense"])

    assert {problem.field for problem in error.value.problems} == {
        "training.learning_rate", "data.max_len", "training.optim", ""}  # fmt: skip


def test_a_missing_recipe_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["", "- a list", "just text", "a: 1\n---\nb: 2\n"])
def test_a_file_that_is_no_recipe_is_an_error(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", ["lora is checked, and not used by method: full."]),
        ("lora", []),
        ("qlora", []),
    ],
)
def test_sections_that_a_method_does_not_use_are_noted(path: Path, method: str, expected: list[str]) -> None:
    file = load_recipe(path, method=method, overrides=["lora.r=4"])

    assert file.notes() == expected
    assert all(f"# {note}" in file.resolved_yaml() for note in expected)


def test_the_output_is_what_is_asked_for_first(path: Path) -> None:
    assert load_recipe(path).output == Path("runs/mine")
    assert load_recipe(path, overrides=["output=elsewhere"]).output == Path("elsewhere")
    assert load_recipe(path, output=Path("here"), overrides=["output=elsewhere"]).output == Path("here")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    learning_rate=st.floats(1e-12, 1.0),
    seed=st.integers(0, 2**32 - 1),
    template=st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="{}")),
    targets=st.lists(st.text("abc_.0e-1", min_size=1), min_size=1, max_size=3),
    method=st.sampled_from(["full", "lora", "qlora"]),
)
def test_a_resolved_recipe_is_the_same_recipe(
    path: Path, tmp_path: Path, learning_rate: float, seed: int, template: str, targets: list[str], method: str
) -> None:
    quoted = "'" + template.replace("'", "''") + "'"
    listed = ", ".join(f"'{target}'" for target in targets)
    file = load_recipe(
        path,
        method=method,
        overrides=[
            f"training.learning_rate={learning_rate!r}", f"training.seed={seed}", "data.format=completion",
            f"data.template={quoted}", f"lora.target_modules=[{listed}]"],
    )  # fmt: skip
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(file.resolved_yaml(), encoding="utf-8")

    again = load_recipe(resolved).recipe

    assert again.model_dump(exclude={"methods"}) == file.recipe.model_dump(exclude={"methods"})


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_shipped_recipe_loads_for_every_method_that_can_train_it(name: str, method: str) -> None:
    path = find_recipe(name)
    if "init:" in path.read_text(encoding="utf-8"):
        method = "full"

    recipe = load_recipe(path, method=method).recipe

    assert recipe.name == name
    assert recipe.description


def test_a_shipped_recipe_is_found_by_name_and_a_typo_gets_the_nearest() -> None:
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml")
    with pytest.raises(InputError, match=r"Did you mean quickstart\?"):
        find_recipe("quikstart")


def test_checking_a_recipe_loads_no_torch(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from peftkit.recipe.loader import load_recipe\n"
        f"load_recipe(Path({str(path)!r})); print('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
