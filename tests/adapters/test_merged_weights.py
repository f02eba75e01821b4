"""Files that are written a tensor at a time are what the safetensors library would have written."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from peftkit.adapters.merged_weights import write_shards
from peftkit.storage import read_json, sha256_of_file

TENSORS = {
    "first": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "turned": torch.arange(12, dtype=torch.float16).reshape(3, 4).T,
    "short": torch.ones(5, dtype=torch.bfloat16),
    "counts": torch.arange(3),
    "flag": torch.tensor([True, False]),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}
OUTLINE = {name: tensor.to("meta") for name, tensor in TENSORS.items()}


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shard_bytes", [1, 60, 10**6])
def test_every_tensor_is_read_again_as_it_was(shard_bytes: int, tmp_path: Path) -> None:
    hashes = write_shards(tmp_path, OUTLINE, shard_bytes, TENSORS.__getitem__)

    found = read(tmp_path)
    assert set(found) == set(TENSORS)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert hashes == {file.name: sha256_of_file(file) for file in tmp_path.glob("*.safetensors")}


def test_the_index_of_several_files_says_where_each_tensor_is(tmp_path: Path) -> None:
    write_shards(tmp_path, OUTLINE, 60, TENSORS.__getitem__)

    index = read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in OUTLINE.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118, the file is no mapping
            assert opened.metadata() == {"format": "pt"}


def test_a_file_that_is_not_finished_cannot_be_opened(tmp_path: Path) -> None:
    def stop(name: str) -> torch.Tensor:
        if name == "counts":
            raise KeyboardInterrupt
        return TENSORS[name]

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, OUTLINE, 10**6, stop)

    with pytest.raises(SafetensorError):
        load_file(tmp_path / "model.safetensors")


def test_a_tensor_that_is_not_what_was_planned_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="first was planned as"):
        write_shards(tmp_path, {"first": OUTLINE["first"]}, 10**6, lambda _: torch.zeros(3, 5))


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=30), shard_bytes=st.integers(4, 2000))
def test_no_file_is_larger_than_asked_unless_one_tensor_is(sizes: list[int], shard_bytes: int) -> None:
    outline = {str(at): torch.empty(size, device="meta") for at, size in enumerate(sizes)}

    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), outline, shard_bytes, lambda name: torch.zeros(outline[name].shape))
        files = [load_file(file) for file in Path(folder).glob("*.safetensors")]

    bytes_of = [sum(tensor.nbytes for tensor in file.values()) for file in files]
    assert sorted(name for file in files for name in file) == sorted(outline)
    assert all(len(file) == 1 or size <= shard_bytes for file, size in zip(files, bytes_of, strict=True))
    assert len(files) <= 2 * math.ceil(sum(bytes_of) / shard_bytes) + sum(size > shard_bytes for size in bytes_of) + 1
