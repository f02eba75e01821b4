"""A base is found by name or folder, opened from safetensors alone, and told apart by its hashes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit
from peftkit.errors import BaseError, FieldError, UnfetchedError
from peftkit.models.base import BaseWeights, LocatedBase, base_at_hand, locate_base
from peftkit.models.start import with_dropout
from peftkit.recipe.schema import Base

EMBEDDED = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "base"))


def located(folder: Path) -> LocatedBase:
    return locate_base(Base(model=str(folder)))


def test_the_embedded_base_is_part_of_the_package_and_small() -> None:
    base = locate_base(Base(model="builtin:tiny-gpt2"))

    assert base.folder == EMBEDDED
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 4_000_000
    assert base.load(base.config(), "float32").num_parameters() == 940_800


def test_the_structure_is_known_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    base = locate_base(Base(model=str(folder)), weights=False)

    structure = base.structure(base.config())

    assert {parameter.device.type for parameter in structure.parameters()} == {"meta"}


def test_dropout_is_set_everywhere(folder: Path) -> None:
    config = with_dropout(located(folder).config(), 0.25)

    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.25, 0.25)


def test_weights_that_are_not_safetensors_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")

    with pytest.raises(FieldError, match=r"holds no \.safetensors file"):
        located(folder)


def test_a_damaged_checkpoint_is_an_error(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:5000])

    with pytest.raises(BaseError, match="cannot be opened"):
        located(folder).load(located(folder).config(), "float32")


def test_missing_weights_are_an_error_and_not_random_numbers(folder: Path) -> None:
    config = located(folder).config()
    config.n_layer = 5

    with pytest.raises(BaseError, match="has no fitting weights for"):
        located(folder).load(config, "float32")


def test_a_folder_without_tokenizer_is_an_error(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()

    with pytest.raises(BaseError, match="holds no tokenizer"):
        located(folder).tokenizer()


def test_a_changed_weight_changes_the_fingerprint(folder: Path) -> None:
    before = located(folder).fingerprint
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)

    assert located(folder).fingerprint != before


@pytest.mark.parametrize("model", ["builtin:nothing", "nobody/nothing-of-the-kind"])
def test_a_base_that_is_nowhere_is_an_error_about_its_field(model: str) -> None:
    with pytest.raises(FieldError, match=r"base\.model"):
        locate_base(Base(model=model))


def test_a_base_of_the_hub_is_at_hand_without_its_weights(hub_cache: Path) -> None:
    commit = "1" * 40
    repository = hub_cache / "models--someone--tiny"
    folder = Path(shutil.copytree(EMBEDDED, repository / "snapshots" / commit))
    (repository / "trees").mkdir()
    listed = {path.name: {"size": path.stat().st_size, "blob_id": "0" * 40} for path in folder.iterdir()}
    (repository / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": listed}))
    (folder / "model.safetensors").unlink()
    base = Base(model="someone/tiny", revision=commit)

    assert base_at_hand(base) == LocatedBase("someone/tiny", folder, commit)
    assert base_at_hand(Base(model="someone/other")) is None
    with pytest.raises(UnfetchedError, match=r"not whole on this machine \(model\.safetensors is missing\)"):
        locate_base(base)


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
