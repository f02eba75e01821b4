"""What an installed library lacks of what a recipe names is said by name, with the version that has it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from runpy import run_path

import pytest

from peftkit.errors import FieldError
from peftkit.recipe import libraries
from peftkit.recipe.libraries import (
    LISTING,
    LORA_CONFIG,
    OPTIMIZERS,
    TRAINING_ARGUMENTS,
    check_installed,
    installed_arguments,
    listed_versions,
)
from peftkit.recipe.loader import load_recipe
from peftkit.runs.versions import pinned_versions

_GENERATOR = run_path(str(Path(__file__).resolve().parents[2] / "docs" / "generate.py"))

OLDER = '''
class TrainingArguments:
    """An older one.

    Args:
        gradient_checkpointing_kwargs (`dict`, *optional*):
            What it takes.
    """

    eval_delay: float = field(default=0, metadata={"help": "Before the first\\n evaluation."})
    gradient_checkpointing_kwargs: dict | None = None

class OptimizerNames:
    ADAMW_TORCH_FUSED = "adamw_torch_fused"

class LoraConfig:
    r: int = 8
'''


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Libraries with three arguments and one optimizer, in the place of the installed ones."""
    tree = libraries._source_tree
    modules = (TRAINING_ARGUMENTS.module, LORA_CONFIG.module)
    installed_arguments.cache_clear()
    libraries.installed_values.cache_clear()
    monkeypatch.setattr(
        libraries,
        "_source_tree",
        lambda module: ast.parse(OLDER) if module in modules else tree(module),
    )
    yield
    installed_arguments.cache_clear()
    libraries.installed_values.cache_clear()


@pytest.mark.skipif(
    any(version(library) != pin for library, pin in listed_versions().items()), reason="other versions are listed"
)
def test_the_list_is_what_the_libraries_that_it_names_say() -> None:
    assert json.loads(LISTING.read_text(encoding="utf-8")) == json.loads(json.dumps(_GENERATOR["installed_listing"]()))


def test_the_list_is_of_the_versions_that_everything_is_tested_with() -> None:
    pins = pinned_versions()

    assert listed_versions() == {library: pins[library] for library in ("peft", "transformers")}


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.dataloader_in_order=false", r"training\.dataloader_in_order: transformers .* has no argument"),
        ("training.optim=adafactor", r"training\.optim: transformers .* has no optimizer adafactor"),
    ],
)
def test_what_an_older_version_lacks_is_an_error_that_names_one_that_has_it(
    change: str, message: str, recipe_path: Path
) -> None:
    recipe = load_recipe(recipe_path, overrides=[change]).recipe

    with pytest.raises(FieldError, match=message) as caught:
        check_installed(recipe)

    assert f"pip install 'transformers=={listed_versions()['transformers']}'" in str(caught.value.remedy)


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("change", ["training.eval_delay=1", "training.activation_checkpointing_kwargs={a: 1}"])
def test_what_an_older_version_has_by_this_name_or_its_older_one_is_taken(change: str, recipe_path: Path) -> None:
    check_installed(load_recipe(recipe_path, overrides=[change]).recipe)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_biases_that_an_older_peft_would_not_save_are_refused_where_they_are_trained(
    method: str, recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.compatibility.version", {"peft": "0.20.0"}.__getitem__)
    recipe = load_recipe(recipe_path, method=method, overrides=["lora.bias=lora_only"]).recipe

    with pytest.raises(FieldError, match=r"does not save the biases") if method == "lora" else nullcontext():
        check_installed(recipe)


@pytest.mark.usefixtures("older")
def test_only_the_sections_that_the_method_uses_need_their_library(recipe_path: Path) -> None:
    full, lora = (
        load_recipe(recipe_path, method=method, overrides=["lora.layers_to_transform=[0]"]).recipe
        for method in ("full", "lora")
    )

    check_installed(full)
    with pytest.raises(FieldError, match=r"lora\.layers_to_transform: peft .* has no argument layers_to_transform"):
        check_installed(lora)


@pytest.mark.usefixtures("older")
def test_an_argument_is_read_with_its_type_default_and_documentation() -> None:
    found = {
        name: (said.type, said.default, said.help) for name, said in installed_arguments(TRAINING_ARGUMENTS).items()
    }

    assert found == {
        "eval_delay": ("float", 0, "Before the first evaluation."),
        "gradient_checkpointing_kwargs": ("dict | None", None, "What it takes."),
    }
    assert "adafactor" in OPTIMIZERS.values()
