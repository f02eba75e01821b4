"""A base's tensors are found under its model's names, whatever its files call them, and only in its own folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import BaseError
from peftkit.models.base import BaseWeights, LocatedBase, locate_base
from peftkit.recipe.schema import Base


@pytest.fixture
def base() -> LocatedBase:
    return locate_base(Base(model="builtin:tiny-gpt2"))


@pytest.fixture
def structure(base: LocatedBase) -> Any:
    return base.structure(base.config())


@pytest.fixture
def copy(base: LocatedBase, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base.folder, tmp_path / "base"))


def test_every_tensor_is_read_as_the_model_has_it(base: LocatedBase, structure: Any) -> None:
    weights = BaseWeights(base.folder, structure)
    model = base.load(base.config(), "float32").state_dict()

    assert {stored.parameter for stored in weights.stored} == set(model) - {"lm_head.weight"}
    for stored in weights.stored:
        assert stored.parameter is not None
        assert torch.equal(weights.read(stored), model[stored.parameter])
        assert (stored.shape, stored.is_float) == (tuple(model[stored.parameter].shape), True)
    assert weights.find("lm_head.weight") is None  # it is tied


def test_names_without_the_models_prefix_are_found_and_masks_left_out(copy: Path, structure: Any) -> None:
    tensors = load_file(copy / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(short | {"h.0.attn.bias": torch.ones(2), "odd": torch.ones(2)}, copy / "model.safetensors")

    weights = BaseWeights(copy, structure)

    assert {stored.parameter for stored in weights.stored} == {*tensors, None}
    assert [stored.name for stored in weights.stored if stored.parameter is None] == ["odd"]


def test_several_files_are_read_by_their_index(copy: Path, base: LocatedBase, structure: Any) -> None:
    base.load(base.config(), "float32").save_pretrained(copy, max_shard_size="1MB")
    (copy / "model.safetensors").unlink()

    weights = BaseWeights(copy, structure)

    assert len({stored.file for stored in weights.stored}) > 2
    assert weights.find("transformer.wte.weight") is not None


@pytest.mark.parametrize("name", ["../other.safetensors", "/other.safetensors", "inner/other.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(name: str, copy: Path, structure: Any) -> None:
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {"wte.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    with pytest.raises(BaseError, match="names a file in another folder"):
        BaseWeights(copy, structure)


def test_damage_is_told(copy: Path, structure: Any) -> None:
    weights = BaseWeights(copy, structure)
    first = weights.stored[0]
    (copy / "model.safetensors").write_bytes(b"nothing")

    with pytest.raises(BaseError, match=r"model\.safetensors: is missing or damaged"):
        weights.read(first)
    with pytest.raises(BaseError, match=r"model\.safetensors: is missing or damaged"):
        BaseWeights(copy, structure)

    (copy / "model.safetensors").unlink()
    with pytest.raises(BaseError, match=r"index\.json: is missing or damaged"):
        BaseWeights(copy, structure)


def test_only_gpt2s_layers_and_embeddings_are_turned(base: LocatedBase, structure: Any) -> None:
    weights = BaseWeights(base.folder, structure)

    assert weights.is_transposed("transformer.h.0.attn.c_attn")
    assert weights.is_transposed("transformer.wte")
    assert not weights.is_transposed("lm_head")
