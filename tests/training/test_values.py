"""What a checkpoint keeps comes back as it was, and no file that holds it can run anything."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import SafetensorError
from safetensors.torch import save_file

from peftkit.training.checkpoint import read_values, write_values

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.T if tensor.dim() == 2 else tensor,
    "the first of several": lambda tensor: torch.stack([tensor, tensor])[0],
    "the last of several": lambda tensor: torch.stack([tensor, tensor])[1],
    "every second number": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "expanded": lambda tensor: tensor.unsqueeze(0).expand(3, *tensor.shape),
    "trained": lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()),
}


@st.composite
def some_tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any bits, those that are no numbers among them, however they lie in memory."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    size = math.prod(shape) * dtype.itemsize
    content = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    whole = (content % 2 if dtype is torch.bool else content).view(dtype).reshape(shape)
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](whole)


ARRAYS = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "u8", "u4", "u2", "u1", "?"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
)
KEYS = st.integers(-9, 2**70) | st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | some_tensors() | ARRAYS
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def form(value: Any) -> Any:
    """All that is to be the same of a value: types, shapes and every bit of its numbers, in their order."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return ("tensor", str(value.dtype), tuple(value.shape), content.numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (kind, str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return (kind, value.hex())
    if isinstance(value, list | tuple):
        return (kind, [form(item) for item in value])
    if isinstance(value, dict):
        return (kind, [(form(key), form(item)) for key, item in value.items()])
    return (kind, value)


def take_steps(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], steps: int) -> None:
    """Let an optimizer take some steps towards zero."""
    for _ in range(steps):
        for weight in weights:
            weight.grad = 2 * weight.detach()
        optimizer.step()


def sgd(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


def adamw(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=0.1, fused=True)


def adamw_8bit(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(weights, lr=0.1)
    return optimizer


def new_weights() -> list[torch.nn.Parameter]:
    """A matrix that is large enough to have a state of 8 bits, and a vector that is not."""
    source = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in ((48, 100), (7,))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("values") / "values.safetensors"


@given(value=VALUES)
def test_what_was_written_is_read_bit_for_bit(path: Path, value: Any) -> None:
    write_values(path, value)

    assert form(read_values(path)) == form(value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_each_type_is_read_however_it_lay_in_memory(path: Path, dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](torch.arange(6).reshape(2, 3).to(dtype))

    write_values(path, tensor)

    assert form(read_values(path)) == form(tensor)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -0.0, 0.1, 5e-324, sys.float_info.max])
def test_a_float_is_read_exactly(path: Path, value: float) -> None:
    write_values(path, {"loss": value})

    assert read_values(path)["loss"].hex() == value.hex()


def test_numbers_of_numpy_are_read_as_pythons(path: Path) -> None:
    write_values(path, [np.float32(0.1), np.float64("nan"), np.int64(-3)])

    assert form(read_values(path)) == form([float(np.float32(0.1)), float("nan"), -3])


def test_keys_keep_their_types_and_their_order(path: Path) -> None:
    write_values(path, {1: "a", "1": "b", 0: "c", (0, "x"): "d"})

    assert list(read_values(path).items()) == [(1, "a"), ("1", "b"), (0, "c"), ((0, "x"), "d")]


@pytest.mark.parametrize("key", ["tensor", "array", "tuple", "pairs", "float"])
def test_a_dictionary_that_looks_like_the_files_own_is_read_as_it_was(path: Path, key: str) -> None:
    write_values(path, {key: "0"})

    assert read_values(path) == {key: "0"}


def test_a_tensor_that_comes_twice_is_in_the_file_once_and_is_one_tensor_again(path: Path) -> None:
    tensor = torch.arange(1000.0)

    write_values(path, tensor)
    alone = path.stat().st_size
    write_values(path, {"first": tensor, "second": [tensor]})
    found = read_values(path)

    assert path.stat().st_size < alone + tensor.nbytes // 2
    assert found["first"] is found["second"][0]
    assert torch.equal(found["first"], tensor)


def test_of_a_view_nothing_but_its_own_numbers_is_in_the_file(path: Path) -> None:
    write_values(path, torch.zeros(100_000)[5:7])

    assert path.stat().st_size < 1000


def test_views_of_one_storage_that_overlap_are_each_read(path: Path) -> None:
    whole = torch.arange(6.0)
    views = [whole, whole[:4], whole[2:], whole[::2], whole.reshape(2, 3).T]

    write_values(path, views)

    assert form(read_values(path)) == form(views)


def test_arrays_that_cannot_be_written_to_or_run_backwards_are_read(path: Path) -> None:
    fixed = np.arange(6)
    fixed.setflags(write=False)
    several = [fixed, fixed[::-1], fixed[1::2], np.broadcast_to(fixed, (2, 6))]

    write_values(path, several)

    assert form(read_values(path)) == form(several)


def test_what_is_read_does_not_change_with_what_was_written(path: Path) -> None:
    tensor, array = torch.zeros(3), np.zeros(3)
    write_values(path, [tensor, array])
    found = read_values(path)

    tensor.fill_(1)
    array.fill(1)
    write_values(path, [tensor, array])

    assert (found[0].tolist(), found[1].tolist()) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("make", [sgd, adamw, adamw_8bit])
def test_the_state_of_an_optimizer_is_read_bit_for_bit_and_goes_on_as_the_first_would(
    path: Path, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
) -> None:
    weights = new_weights()
    optimizer = make(weights)
    take_steps(optimizer, weights, 3)
    write_values(path, optimizer.state_dict())
    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    other = make(copies)

    state = read_values(path)
    other.load_state_dict(read_values(path))  # some of them change what they are given
    written = form(optimizer.state_dict())
    take_steps(optimizer, weights, 2)
    take_steps(other, copies, 2)

    assert form(state) == written
    assert form(copies) == form(weights)
    assert form(other.state_dict()) == form(optimizer.state_dict())


def test_8_bit_states_are_kept_in_8_bits(path: Path) -> None:
    weights = new_weights()
    optimizer = adamw_8bit(weights)
    take_steps(optimizer, weights, 1)

    write_values(path, optimizer.state_dict())

    assert 2 * weights[0].numel() < path.stat().st_size < 4 * weights[0].numel()


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"bytes", 1j, Path("a"), len, torch.float32, np.array([None])],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_such_value_is_refused_wherever_it_stands(path: Path, value: Any) -> None:
    with pytest.raises(TypeError):
        write_values(path, value)
    with pytest.raises(TypeError):
        write_values(path, {"state": [1, (value,)]})


def test_a_value_that_is_refused_leaves_the_file_that_was_there(path: Path) -> None:
    write_values(path, "before")

    with pytest.raises(TypeError, match="a set cannot be kept in a checkpoint"):
        write_values(path, [torch.zeros(3), {1}])

    assert read_values(path) == "before"


def test_a_file_is_tensors_and_json_and_nothing_else(path: Path) -> None:
    write_values(path, {"state": {0: (torch.ones(3), np.arange(4), "text", 0.5)}})

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    structure = json.loads(header.pop("__metadata__")["structure"])

    assert [entry["data_offsets"] for entry in header.values()] == [[0, 32], [32, 44]]
    assert len(content) == 8 + length + 44
    assert "text" in json.dumps(structure)
    assert not zipfile.is_zipfile(io.BytesIO(content))


class _Touch:
    """What touches a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._place,))


@pytest.mark.parametrize("save", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(tmp_path: Path, save: Callable[..., None]) -> None:
    with (tmp_path / "values.safetensors").open("wb") as file:
        save(_Touch(tmp_path / "touched"), file)

    with pytest.raises(SafetensorError):
        read_values(tmp_path / "values.safetensors")

    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_tensors_without_a_structure_are_no_such_file(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)

    with pytest.raises(KeyError):
        read_values(path)


@pytest.mark.parametrize("structure", ["", "{", "{}", '{"tensor": "0", "array": "0"}', '{"float": "x"}'])
def test_a_structure_that_is_none_is_refused(path: Path, structure: str) -> None:
    save_file({"0": torch.zeros(2)}, path, metadata={"structure": structure})

    with pytest.raises(ValueError, match=r".+"):
        read_values(path)


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_structure_that_names_a_tensor_which_is_not_there_is_refused(path: Path, kind: str) -> None:
    save_file({"0": torch.zeros(2)}, path, metadata={"structure": json.dumps({kind: "1"})})

    with pytest.raises(KeyError):
        read_values(path)


def test_a_file_that_is_cut_short_anywhere_is_refused(path: Path) -> None:
    write_values(path, {"state": torch.ones(4)})
    whole = path.read_bytes()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SafetensorError):
            read_values(path)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_values(tmp_path / "values.safetensors")
