"""Sharded weights come back as they were; a paged optimizer that is resumed keeps its state in pages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from peftkit.errors import FieldError, RunError
from peftkit.models.loss import evaluate_loss
from peftkit.recipe.loader import load_recipe
from peftkit.training.checkpoint import read_values, write_values
from peftkit.training.prepare import prepare_run
from peftkit.training.processes import ALONE
from peftkit.training.weights import Shards, Weights, check_types, load_optimizer_state, whole_tensor
from tests import zoo

SHAPE = (256, 512)
"""Above 100,000 numbers, from where bitsandbytes keeps state in pages, and above 4,096, from where it has 8 bits."""

KINDS = {
    "AdamW 8-bit": bitsandbytes.optim.PagedAdamW8bit,
    "AdamW 32-bit": bitsandbytes.optim.PagedAdamW32bit,
    "Lion 8-bit": bitsandbytes.optim.PagedLion8bit,
}
ON_GPU = {**KINDS, "AdEMAMix 8-bit": bitsandbytes.optim.PagedAdEMAMix8bit}
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")])


@pytest.fixture(autouse=True)
def _no_warning_that_a_cpu_has_no_pages() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """One of bitsandbytes' own classes, whose buffers on a CPU are marked as pages are."""
    own: Any = KINDS[request.param]

    class Marked(own):  # type: ignore[misc]
        def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            buffer: torch.Tensor = super().get_state_buffer(p, dtype)
            buffer.is_paged = p.numel() >= 1e5  # type: ignore[attr-defined]
            return buffer

        def prefetch_state(self, p: torch.Tensor) -> None:
            """There is nothing to fetch on a CPU."""

    return Marked


class Training:
    """A large weight and a small one, and the optimizer that trains them."""

    def __init__(self, kind: Any, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = (SHAPE, (8,))
        self.weights = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
        self.optimizer: Any = kind(self.weights, lr=1e-3)

    def steps(self, count: int) -> None:
        for _ in range(count):
            for weight in self.weights:
                weight.grad = weight.detach() * 2
            self.optimizer.step()

    def resumed(self, path: Path, kind: Any, device: str = "cpu") -> Training:
        """Another one that resumes from its state in a file."""
        write_values(path, self.optimizer.state_dict())
        other = Training(kind, device)
        with torch.no_grad():
            for ours, theirs in zip(other.weights, self.weights, strict=True):
                ours.copy_(theirs)
        load_optimizer_state(other.optimizer, read_values(path))
        return other

    @property
    def paged(self) -> list[str]:
        """The names of the large weight's state that is in pages."""
        state = self.optimizer.state[self.weights[0]]
        return sorted(name for name, value in state.items() if getattr(value, "is_paged", False))


def test_state_that_was_in_pages_is_in_pages_after_a_resume(kind: Any, tmp_path: Path) -> None:
    training = Training(kind)
    training.steps(2)

    other = training.resumed(tmp_path / "optimizer.safetensors", kind)

    assert other.paged == training.paged != []


def test_a_resumed_paged_optimizer_takes_the_very_same_steps(kind: Any, tmp_path: Path) -> None:
    training = Training(kind)
    training.steps(2)

    other = training.resumed(tmp_path / "optimizer.safetensors", kind)
    for each in (training, other):
        each.steps(3)

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(other.weights, training.weights, strict=True))


def test_an_optimizer_without_pages_resumes_from_its_own_state(tmp_path: Path) -> None:
    training = Training(bitsandbytes.optim.AdamW8bit)
    training.steps(2)

    other = training.resumed(tmp_path / "optimizer.safetensors", bitsandbytes.optim.AdamW8bit)
    for each in (training, other):
        each.steps(3)

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(other.weights, training.weights, strict=True))


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("device", [GPU])
def test_pages_of_a_gpu_are_pages_again_and_give_the_same_steps(name: str, device: str, tmp_path: Path) -> None:
    training = Training(ON_GPU[name], device)
    training.steps(2)

    other = training.resumed(tmp_path / "optimizer.safetensors", ON_GPU[name], device)
    for each in (training, other):
        each.steps(3)

    assert other.paged == training.paged != []
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(other.weights, training.weights, strict=True))


IDS = torch.arange(12).reshape(2, 6)
BATCH = {"input_ids": IDS, "labels": IDS}


@pytest.fixture
def group() -> Iterator[None]:
    """Processes that compute together, of which this one is the only one."""
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(params=["full", "lora"])
def model(request: pytest.FixtureRequest, recipe_path: Path) -> Any:
    """A model to train, whole."""
    return prepare_run(load_recipe(recipe_path, method=request.param)).load()


def step(model: Any, optimizer: Any) -> None:
    """An optimizer step."""
    model(**BATCH, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in {**ours, **theirs})


@pytest.mark.usefixtures("group")
def test_spread_weights_leave_the_model_and_come_back_to_be_saved(model: Any) -> None:
    before, loss = trained(model), evaluate_loss(model, [BATCH], "fp32")
    shards = Shards(model, ALONE, "cpu")
    shards.spread()

    assert all(isinstance(weight, DTensor) for weight in shards.model.parameters())
    assert not any(weight.numel() for weight in model.parameters())
    assert evaluate_loss(shards.model, [BATCH], "fp32") == loss
    with shards.gathered() as whole:
        assert whole is model
        assert same(trained(model), before)
    assert not any(weight.numel() for weight in model.parameters())
    shards.unite()
    assert evaluate_loss(model, [BATCH], "fp32") == loss


@pytest.mark.usefixtures("group")
def test_sharded_weights_and_their_optimizer_go_on_from_what_was_saved(model: Any, tmp_path: Path) -> None:
    shards = Shards(model.eval(), ALONE, "cpu")
    shards.spread()
    optimizer = torch.optim.AdamW(shards.model.parameters(), lr=1e-2, fused=True)
    step(shards.model, optimizer)
    with shards.gathered() as whole:
        whole.save_pretrained(tmp_path)
    state = deepcopy(shards.state_of(optimizer))
    step(shards.model, optimizer)
    with shards.gathered() as whole:
        expected = trained(whole)

    shards.load(tmp_path)
    shards.load_state(optimizer, state)
    step(shards.model, optimizer)

    assert not any(isinstance(value, DTensor) for values in state["state"].values() for value in values.values())
    with shards.gathered() as whole:
        assert same(trained(whole), expected)


def test_trained_weights_of_two_types_are_refused(model: Any) -> None:
    next(weight for weight in model.parameters() if weight.requires_grad).data = torch.zeros(4, dtype=torch.bfloat16)

    with pytest.raises(FieldError, match="bfloat16 and float32"):
        check_types(model)


def test_a_tensor_without_parts_is_whole() -> None:
    norm = torch.tensor(1.5)

    assert whole_tensor(norm) is norm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_out.weight": None}, r"step-1: has no fitting weights for (lm_head|embed_out)\.weight"),
        ({"gpt_neox.final_layer_norm.bias": torch.zeros(8)}, "no fitting weights for .*final_layer_norm"),
        ({"odd.weight": torch.zeros(8)}, r"step-1: holds what is no weight of it: odd\.weight"),
    ],
    ids=["missing", "another shape", "one too many"],
)
def test_a_checkpoint_that_is_not_the_models_is_refused_by_name(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    model = zoo.make("gpt_neox", tmp_path / "step-1")
    tensors = {**load_file(tmp_path / "step-1" / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tmp_path / "step-1" / "model.safetensors", {"format": "pt"})

    with pytest.raises(RunError, match=message):
        Weights(model).load(tmp_path / "step-1")


@pytest.mark.parametrize("change", [{"odd": torch.zeros(8)}, {}], ids=["one too many", "missing"])
def test_a_checkpoint_that_is_not_the_adapters_is_refused_by_name(
    change: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    settings = LoraConfig(r=2, target_modules=["query_key_value"], modules_to_save=["final_layer_norm"])
    zoo.make("gpt_neox", tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), settings)
    model.save_pretrained(tmp_path / "step-1")
    place = tmp_path / "step-1" / "adapter_model.safetensors"
    tensors = load_file(place)
    missing = next(name for name in tensors if name.endswith("layers.1.attention.query_key_value.lora_B.weight"))
    kept = {name: tensor for name, tensor in tensors.items() if change or name != missing}
    save_file(kept | change, place, {"format": "pt"})

    with pytest.raises(
        RunError, match=r"does not hold the adapter's .*(odd|layers\.1\..*lora_B\.weight) as it was saved"
    ):
        Weights(model).load(tmp_path / "step-1")
