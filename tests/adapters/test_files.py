"""An adapter is read without running anything that is in it, and what is no adapter is told."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from peftkit.adapters.files import Adapter
from peftkit.errors import TargetError

WriteAdapter = Callable[..., Path]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_of_every_type_are_read(dtype: torch.dtype, write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    tensor = torch.linspace(-2, 2, 12, dtype=dtype).reshape(2, 6)
    save_file({"a": tensor}, folder / "adapter_model.safetensors")

    found = Adapter.read(folder).tensors["a"]

    assert found.shape == (2, 6)
    assert np.array_equal(found.array(), tensor.float().numpy())


def test_a_tensors_hash_tells_type_shape_and_content_apart(write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    zeros = torch.zeros(4, 4)
    variants = [zeros, torch.zeros(2, 8), zeros.to(torch.bfloat16), zeros + 1]
    save_file({str(at): tensor for at, tensor in enumerate(variants)}, folder / "adapter_model.safetensors")

    assert len({tensor.sha256 for tensor in Adapter.read(folder).tensors.values()}) == 4


def test_size_and_numbers_are_counted(write_adapter: WriteAdapter) -> None:
    adapter = Adapter.read(write_adapter())

    assert adapter.parameters == 2 * (2 * 6 + 5 * 2)
    assert adapter.bytes == 4 * adapter.parameters


class Exploding:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("unpickled"),))  # type: ignore[return-value]


def test_pickled_weights_are_refused_and_never_opened(
    write_adapter: WriteAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_adapter()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Exploding()))

    with pytest.raises(TargetError, match=r"as a pickle, adapter_model\.bin, which can run code"):
        Adapter.read(folder)

    assert not (tmp_path / "unpickled").exists()


def test_what_is_missing_or_damaged_is_told(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is not an adapter"):
        Adapter.read(tmp_path)

    folder = write_adapter()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(TargetError, match=r"adapter_model\.safetensors: is damaged or incomplete"):
        Adapter.read(folder)

    weights.unlink()
    with pytest.raises(TargetError, match=r"has no adapter_model\.safetensors"):
        Adapter.read(folder)

    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TargetError, match=r"adapter_config\.json: is damaged"):
        Adapter.read(folder)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"r": None}, "r"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"rank_pattern": {"a": "b"}}, "rank_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(
    config: dict[str, object], field: str, write_adapter: WriteAdapter
) -> None:
    with pytest.raises(TargetError, match=f"its {field} is damaged"):
        Adapter.read(write_adapter(**config))


def test_another_kind_of_adapter_is_refused(write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR"}), encoding="utf-8")

    with pytest.raises(TargetError, match="is of the kind LOKR"):
        Adapter.read(folder)


def test_integers_are_no_numbers_of_an_adapter(write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, folder / "adapter_model.safetensors")

    with pytest.raises(TargetError, match="holds I64"):
        Adapter.read(folder)
