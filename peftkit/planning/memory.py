"""The memory of a training step, by what it is for, and what would make a step fit that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from peftkit.recipe.schema import Recipe

__all__ = [
    "CONTEXT_BYTES", "EIGHT_BIT", "WORKSPACE_BYTES", "Fit", "GpuMemory", "StepMemory", "fitting_batch",
    "fixed_and_row", "halved_batch", "optimizer_bytes", "what_fits",
]  # fmt: skip

CONTEXT_BYTES, WORKSPACE_BYTES = 720_000_000, 75_000_000
"""Of a GPU's context with the kernels of the libraries, and of cuBLAS, as measured on an H100 with torch 2.11."""

_MOST_CONTEXT_BYTES = 1_000_000_000
_FLOAT = 4
_ADAPTER_SHARE = 0.01
"""Of a model's weights, about what an adapter of the usual rank adds (Hu et al. 2021, table 2: 0.01 to 0.3 percent)."""
_SLACK = 1.1  # what a step needs besides what is kept for the backward pass

EIGHT_BIT = "adamw_bnb_8bit"
"""AdamW with a quarter of the state (Dettmers et al. 2022)."""

_STATES = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
"""Numbers that an optimizer keeps for each trained weight, by how its name begins, where these are not AdamW's two."""


@dataclass(frozen=True)
class GpuMemory:
    """The memory of a GPU at one moment, in bytes, as the driver and torch count it.

    `free` is that of the whole GPU, and `reserved` what torch has for the tensors of this process. `fraction` of the
    total is what torch may reserve (`torch.cuda.set_per_process_memory_fraction`).
    """

    total: int
    free: int
    reserved: int
    fraction: float = 1.0

    @property
    def context_bytes(self) -> int:
        """Of this process's context: what else is in use, as far as that can be one process's."""
        return max(0, min(self.total - self.free - self.reserved, _MOST_CONTEXT_BYTES))

    @property
    def limit_bytes(self) -> int:
        """The limit of this process, with its context; other processes keep what they have."""
        return min(self.free + self.reserved, int(self.fraction * self.total)) + self.context_bytes


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one training step needs, by what they are for.

    Attributes:
        base_bytes: of the weights, trained or not.
        trainable: trained parameters; each has a gradient and, with AdamW, two numbers of state.
        total: all parameters.
        embeddings: of these, those of the embeddings and the head, which are not quantised.
        row_bytes: kept for the backward pass for one row of the longest length, as the step is computed now.
        rows: of a batch.
        layers: of the model.
        limit_bytes: that this process may have.
        optim: the optimizer, by Transformers' name.
        fixed_bytes: kept for the backward pass whatever the rows: the 16-bit copies that autocast makes of weights.
        logits_bytes: of the logits that are in memory together, and their gradients.
        runtime_bytes: in use before there is a model: by the libraries, or a GPU's context.
        end_bytes: beyond the weights, when training is over and what was saved is opened and compared.
        processes: that train together, each with rows of its own.
        quantised_bytes: of one weight, if the linear layers were quantised as the recipe says.
        is_sharded: whether they share the weights, their gradients and the optimizer's state (FSDP).
    """

    base_bytes: int
    trainable: int
    total: int
    embeddings: int
    row_bytes: int
    rows: int
    layers: int
    limit_bytes: int
    optim: str = "adamw_torch_fused"
    fixed_bytes: int = 0
    logits_bytes: int = 0
    runtime_bytes: int = 0
    end_bytes: int = 0
    processes: int = 1
    quantised_bytes: float = 1.0
    is_sharded: bool = False

    @property
    def gathered(self) -> int:
        """Sharded parameters that a process has whole while it computes.

        They are the embeddings' or those of two layers, as the next one is gathered while one computes (Zhao et al.
        2023, section 3.3).
        """
        return max(self.embeddings, 2 * (self.total - self.embeddings) // self.layers) if self.is_sharded else 0

    @property
    def checkpointed_share(self) -> float:
        """The part of what a row keeps that is left with activation checkpointing."""
        return min(1.0, 2 / self.layers)

    def checkpointed(self) -> StepMemory:
        """The same step, computed with activation checkpointing."""
        share = self.checkpointed_share
        fixed = self.fixed_bytes if self.trainable == self.total else int(self.fixed_bytes * share)
        return replace(self, row_bytes=int(self.row_bytes * share), fixed_bytes=fixed)

    def parts(
        self, rows: int, *, checkpointing: bool = False, base: int | None = None, trained: int | None = None
    ) -> dict[str, int]:
        """What a step needs, by what it is for; it is all needed at once when the loss is known.

        At the end of a run, only the weights are there with what that needs; `end` is how much more it is than a step.

        With activation checkpointing that the step does not have yet, each layer keeps its input alone, and one layer
        at a time its activations (Chen et al. 2016): about two layers' worth. Autocast keeps its copies of trained
        weights until the forward pass ends; those of frozen ones go with the activations.

        `base` are bytes of the weights, and `trained` parameters, where these are others than the step's own.
        """
        trained = self.trainable if trained is None else trained
        held = self.base_bytes if base is None else base
        shares = self.processes if self.is_sharded else 1
        buckets = trained if self.processes > 1 and not self.is_sharded else 0  # of DDP (Li et al. 2020, section 3.2)
        whole = self.gathered / self.total
        share = self.checkpointed_share if checkpointing else 1.0
        row, fixed = self.row_bytes * share, self.fixed_bytes * (1.0 if trained == self.total else share)
        weights = held // shares + int(whole * held)
        step = {
            "gradients": _FLOAT * (trained // shares + int(whole * trained) + buckets),
            "optimizer": optimizer_bytes(self.optim, trained, min(trained, self.embeddings)) // shares,
            "activations": int(_SLACK * rows * row + (fixed if rows else 0)),
            "logits": self.logits_bytes,
        }
        end = max(0, self.end_bytes - sum(step.values()))
        return {"weights": weights, **step, "end": end, "runtime": self.runtime_bytes}

    def peak_bytes(self, rows: int, **changes: Any) -> int:
        """All of it together; see `parts`."""
        return sum(self.parts(rows, **changes).values())

    def fits(self, rows: int) -> bool:
        """Whether so many rows are estimated to fit."""
        return self.peak_bytes(rows) <= self.limit_bytes


@dataclass(frozen=True)
class Fit:
    """A change to a recipe, and what a step would need with it."""

    change: str
    peak_bytes: int


def fixed_and_row(one: int, two: int) -> tuple[int, int]:
    """What is needed whatever the rows are, and for each of them, from what one row and two rows need."""
    row = max(0, two - one)
    return max(0, one - row), row


def halved_batch(rows: int, accumulation: int) -> tuple[int, int] | None:
    """The next smaller batch, and the accumulation that gives the same effective batch; None where it is one row."""
    smaller = next((size for size in range(rows // 2, 0, -1) if rows % size == 0), None)
    return None if smaller is None else (smaller, accumulation * rows // smaller)


def fitting_batch(fits: Callable[[int], bool], rows: int, accumulation: int) -> tuple[int, int] | None:
    """The first of ever smaller batches whose rows fit, or one row; None where it is one row already."""
    batch = halved_batch(rows, accumulation)
    while batch and not fits(batch[0]) and (smaller := halved_batch(*batch)):
        batch = smaller
    return batch


def what_fits(step: StepMemory, recipe: Recipe) -> list[Fit]:
    """The changes after which a step would fit, those that leave the result most alike first."""
    return [fit for fit in _changes(step, recipe) if fit.peak_bytes <= step.limit_bytes]


def _changes(step: StepMemory, recipe: Recipe) -> Iterator[Fit]:
    training = recipe.training
    if batch := fitting_batch(step.fits, step.rows, -(-training.effective_batch // step.rows)):
        rows, accumulation = batch
        text = f"training.per_device_train_batch_size={rows} with gradient_accumulation_steps={accumulation}"
        yield Fit(text, step.peak_bytes(rows))
    if not training.activation_checkpointing:
        yield _fit_or_one_row(step, "training.activation_checkpointing=true", checkpointing=True)
    if step.processes > 1 and not step.is_sharded and not recipe.traits.quantizes:
        yield _fit_or_one_row(replace(step, is_sharded=True), "training.fsdp=true")
    small = replace(step, optim=EIGHT_BIT)
    if not recipe.trains_adapter and not step.is_sharded and small.peak_bytes(0) < step.peak_bytes(0):
        yield _fit_or_one_row(small, f"training.optim={EIGHT_BIT}")
    if recipe.base.init is not None:
        return  # a new base has nothing that an adapter could be put on
    adapter = int(step.total * _ADAPTER_SHARE)
    if not recipe.trains_adapter:
        yield _fit_or_one_row(step, "method=lora", trained=adapter)
    if not recipe.traits.quantizes:
        trained = step.trainable if recipe.trains_adapter else adapter
        layers = (step.total - step.embeddings) * step.quantised_bytes
        rounded = int(layers) + step.embeddings * _FLOAT
        change = "method=qlora with training.fsdp=false" if step.is_sharded else "method=qlora"
        yield _fit_or_one_row(replace(step, is_sharded=False), change, base=rounded, trained=trained)


def _fit_or_one_row(step: StepMemory, change: str, **held: Any) -> Fit:
    """A change by itself or, where that is not enough, with batches of one row."""
    peak = step.peak_bytes(step.rows, **held)
    if peak <= step.limit_bytes or step.rows == 1:
        return Fit(change, peak)
    return Fit(f"{change} and one row at a time", step.peak_bytes(1, **held))


def optimizer_bytes(optim: str, trainable: int, embeddings: int = 0) -> int:
    """Bytes of the state of an optimizer, by Transformers' name, once it has taken a step.

    Trained parameters are float32; the state of their embeddings stays float32 with 8-bit optimizers.
    """
    name = optim.removeprefix("paged_")
    states = next((count for start, count in _STATES.items() if name.startswith(start)), 2)
    eight_bit = trainable - embeddings if "8bit" in name else 0
    return states * (_FLOAT * (trainable - eight_bit) + eight_bit)
