"""What is written a tensor at a time is what PEFT merges, in files as the safetensors library would have written."""

from __future__ import annotations

import math
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftkit.adapters.files import GivenBase
from peftkit.adapters.merge import MergeSettings, merge
from peftkit.adapters.merged_weights import write_shards
from peftkit.errors import TargetError
from peftkit.models.attach import embedding_modules, resolve_targets
from peftkit.storage import read_json, sha256_of_file
from tests import zoo

TENSORS = {
    "first": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "turned": torch.arange(12, dtype=torch.float16).reshape(3, 4).T,
    "short": torch.ones(5, dtype=torch.bfloat16),
    "counts": torch.arange(3),
    "flag": torch.tensor([True, False]),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}
USUAL = ("gpt2", "gpt_neox", "falcon", "gemma3", "mixtral")
"""What names can be: the model's own; another for the head; a prefix less; of other modules; of parts of a tensor."""

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


def write_adapter(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Save an adapter on the linear layers, with a head and stacked experts of its own, each number random.

    Returns:
        The model that PEFT makes of it and its base, by parameter.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    owners = {name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.dim() == 3}
    experts = sorted(name for name in owners if name.endswith("experts"))
    beyond = ("out_proj", *(("gate_proj", "up_proj", "down_proj") if experts else ()))  # PEFT refuses, or means experts
    linear = resolve_targets(model, "all-linear", {}, (), "lora.target_modules")
    targets = [name for name in linear if not name.endswith(beyond)]
    saved = [embedding_modules(model)[-1], *experts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a head that is trained apart from the embedding
        kind = LoraConfig(
            r=2, target_modules=targets, modules_to_save=saved, fan_in_fan_out=True, task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(model, kind)
        generator = torch.Generator().manual_seed(0)
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
        adapted.save_pretrained(folder)
        merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in zoo.NAMES]
)
def test_every_tensor_of_a_merged_model_is_the_one_that_peft_makes_without_any_proof(name: str, tmp_path: Path) -> None:
    zoo.make(name, tmp_path / "base")
    expected = write_adapter(tmp_path / "base", tmp_path / "adapter")

    settings, given = MergeSettings(verify=False), GivenBase(str(tmp_path / "base"))
    merge([(tmp_path / "adapter", 1.0)], tmp_path / "merged", settings, given)

    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    wrong = {each for each, tensor in expected.items() if not torch.allclose(tensor, found[each], atol=1e-5)}
    assert {*found} == {*expected}
    assert wrong == set()
    assert {*read(tmp_path / "base")} <= {*read(tmp_path / "merged")}


def base_with(folder: Path, changes: dict[str, torch.Tensor | None], name: str = "gpt_neo") -> Path:
    """A base some of whose tensors are others, or are not there."""
    zoo.make(name, folder)
    tensors = read(folder) | changes
    kept = {each: tensor for each, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_tensor_that_the_model_does_not_read_is_copied_as_it_is(tmp_path: Path) -> None:
    """As the masks of early GPT-Neo, which are infinite in float16."""
    mask = "transformer.h.0.attn.attention.masked_bias"
    base = base_with(tmp_path / "base", {mask: torch.tensor(-1e9)})
    write_adapter(base, tmp_path / "adapter")

    settings = MergeSettings(verify=False, dtype="float16")
    merge([(tmp_path / "adapter", 1.0)], tmp_path / "merged", settings, GivenBase(str(base)))

    merged = read(tmp_path / "merged")
    assert torch.equal(merged.pop(mask), torch.tensor(-1e9))
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mlp.c_fc.weight", None, "c_fc.weight: has no tensor in the base's files, so that they cannot be written"),
        ("mlp.c_fc.bias", None, "c_fc.bias: has no tensor in the base's files, so that they cannot be written anew"),
        ("mlp.c_fc.weight", torch.ones(8192, 1, dtype=torch.uint8), "is in another form in the base's files, as if it"),
        ("mlp.c_fc.weight", torch.ones(256, 64, dtype=torch.int8), "is in another form in the base's files, as if it"),
    ],
    ids=["adapted", "untouched", "4 bits", "8 bits"],
)
def test_what_cannot_be_accounted_for_is_refused_by_name_before_anything_is_written(
    name: str, tensor: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    zoo.make("gpt_neo", tmp_path / "whole")
    write_adapter(tmp_path / "whole", tmp_path / "adapter")
    base = base_with(tmp_path / "base", {f"transformer.h.1.{name}": tensor})

    with pytest.raises(TargetError, match=message):
        merge([(tmp_path / "adapter", 1.0)], tmp_path / "merged", MergeSettings(verify=False), GivenBase(str(base)))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "whole"]


def test_a_parameter_that_is_in_the_files_twice_is_refused(tmp_path: Path) -> None:
    zoo.make("gpt_neox", tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "adapter")
    base = base_with(tmp_path / "base", {"embed_in.weight": torch.zeros(1024, 64)}, "gpt_neox")

    with pytest.raises(TargetError, match=r"^gpt_neox\.embed_in\.weight: has several tensors in the base's files"):
        merge([(tmp_path / "adapter", 1.0)], tmp_path / "merged", MergeSettings(verify=False), GivenBase(str(base)))
