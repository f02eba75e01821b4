"""What a recipe asks of a base is checked against its structure, before a weight is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import peftkit
from peftkit.errors import FieldError
from peftkit.models.start import new_start, padding_id, pretrained_start
from peftkit.recipe.schema import Recipe

EMBEDDED = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"


def recipe_of(model: str, **fields: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "x", "base": {"model": model}, "data": {"train": {"path": "a.txt"}, "max_length": 64}, **fields}
    )


def test_targets_and_lengths_are_checked_where_there_are_no_weights_at_all(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    base = str(tmp_path / "base")

    with pytest.raises(FieldError, match=r"lora\.target_modules"):
        pretrained_start(recipe_of(base, lora={"target_modules": ["nothing"]}))
    with pytest.raises(FieldError, match=r"data\.max_length: is 500, but the base sees at most 128"):
        pretrained_start(recipe_of(base, data={"train": {"path": "a.txt"}, "max_length": 500}))
    with pytest.raises(FieldError, match=r"base\.model: .* holds no \.safetensors file"):
        pretrained_start(recipe_of(base))


def test_the_same_seed_makes_the_same_adapter() -> None:
    start = pretrained_start(recipe_of("builtin:tiny-gpt2"))

    first, second = (start.load(recipe_of("builtin:tiny-gpt2"), "float32", "cpu") for _ in range(2))

    weights = [[p for name, p in model.named_parameters() if "lora_A" in name] for model in (first, second)]
    assert len(weights[0]) == 4
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_new_base_may_take_a_tokenizer_that_exists() -> None:
    fields = {
        "base": {"init": {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 1024, "tokenizer": str(EMBEDDED)}}
    }
    recipe = recipe_of("", method="full", **fields)
    assert recipe.base.init is not None

    start = new_start(recipe, recipe.base.init, [])

    assert len(start.tokenizer) == 1024
    assert start.load(recipe, "float32", "cpu").config.eos_token_id == start.tokenizer.eos_token_id


def test_a_vocabulary_smaller_than_the_tokenizer_is_an_error() -> None:
    init = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 500, "tokenizer": str(EMBEDDED)}
    recipe = recipe_of("", method="full", base={"init": init})
    assert recipe.base.init is not None
    start = new_start(recipe, recipe.base.init, [])

    with pytest.raises(FieldError, match=r"is 500, but the tokenizer has 1024 tokens\. Set it to 1024"):
        start.load(recipe, "float32", "cpu")


def test_padding_falls_back_on_the_end_token() -> None:
    tokenizer = pretrained_start(recipe_of("builtin:tiny-gpt2")).tokenizer
    assert padding_id(tokenizer) == tokenizer.pad_token_id != tokenizer.eos_token_id

    tokenizer.pad_token = None

    assert padding_id(tokenizer) == tokenizer.eos_token_id
