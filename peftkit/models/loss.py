"""The loss of a model on prepared batches: computed only where a label is, and measured by tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from peftkit.models.attach import inner_model, unwrapped
from peftkit.models.attention_kernels import BOUNDS
from peftkit.models.dtypes import autocast_dtype, computing, exact_residual
from peftkit.models.linear_cross_entropy import Head, summed_loss, token_losses
from peftkit.planning.decisions import ChosenPrecision

__all__ = ["LABEL_LOSSES", "Loss", "compute_loss_at_labels", "evaluate_loss", "label_losses", "row_losses"]

LABEL_LOSSES = "label_losses"
"""The name under which a model may have its own `label_losses`: one that has its weights only within a call of it."""

_STOCK = "stock_forward"
_NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood summed over the tokens in the loss."""

    total: float
    """In nats."""

    tokens: int
    sequences: int

    @property
    def mean(self) -> float:
        """Nats for each token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """`exp` of the mean, infinite where that is more than a float can hold."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def compute_loss_at_labels(model: Any, label_smoothing: float = 0.0) -> bool:
    """Make a model compute its training loss from the hidden states of labelled tokens alone.

    The head is most of a small model's work and its logits are most of the memory: GPT-2's are 200 kB a token. Masked
    tokens need none, and those that are labelled need them only a few at a time. Called with `labels`, the model then
    returns the loss without logits; called without, it is unchanged. Loss and gradients are those of the stock loss.

    Returns:
        Whether it was done: only for a model whose logits are a plain linear head's.
    """
    inner = inner_model(model)
    if not _has_plain_head(inner):
        return False
    stock = getattr(inner.forward, _STOCK, inner.forward)  # a model that is trained again has it already
    head = Head(inner.get_output_embeddings())

    @wraps(stock)  # generation looks at the signature for what a model takes
    def forward(
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_indices: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return stock(input_ids=input_ids, **inputs)
        hidden, targets = _at_labels(inner, labels, label_indices, input_ids=input_ids, **inputs)
        total = summed_loss(hidden, head, targets, _compute_dtype(hidden))
        if label_smoothing:
            # each token of the vocabulary gets an equal part of it, which adds to the loss what the target's logit is
            # above the mean logit: (1 - s)(lse - z_target) + s(lse - mean z) = (lse - z_target) + s(z_target - mean z)
            total = total + label_smoothing * head.above_mean(hidden, targets)
        return CausalLMOutput(loss=total / (len(targets) if num_items_in_batch is None else num_items_in_batch))

    setattr(forward, _STOCK, stock)
    inner.forward = forward
    return True


def evaluate_loss(model: Any, batches: Iterable[dict[str, torch.Tensor]], precision: ChosenPrecision) -> Loss:
    """The loss of all rows of some batches together; see `row_losses`."""
    total, tokens, sequences = 0.0, 0, 0
    for nats, counts in row_losses(model, batches, precision):
        total += float(nats.sum())
        tokens += int(counts.sum())
        sequences += len(nats)
    return Loss(total, tokens, sequences)


def row_losses(
    model: Any, batches: Iterable[dict[str, torch.Tensor]], precision: ChosenPrecision
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The loss in nats, float64, and the number of tokens in the loss, of each row of a batch, both [rows], on the CPU.

    Matmuls are computed in `precision`, and the logits and what passes from layer to layer in float32, whatever dtype
    the weights are held in: methods differ in that, and are compared.

    A batch holds `input_ids` and `labels` [rows, tokens], the labels not yet shifted, `position_ids` where documents
    are packed, and may hold the `label_indices` of `peftkit.data.collator`. There is neither mask nor cache, which is
    what keeps packed documents apart. The model is in evaluation mode until the last batch; its own mode is put back.
    """
    sharded = getattr(model, LABEL_LOSSES, None)
    losses_of = sharded or label_losses(model)
    residual = contextlib.nullcontext() if sharded else exact_residual(model)
    device, was_training = model.device, model.training
    is_cuda = device.type == "cuda"
    model.eval()
    try:
        with residual:
            for batch in batches:
                rows = len(batch["input_ids"])
                which = (batch["labels"][:, 1:] != _NO_LABEL).nonzero()[:, 0].cpu()
                tensors = {name: values for name, values in batch.items() if isinstance(values, torch.Tensor)}
                # a CUDA device copies them by itself while the host continues
                moved = {name: values.to(device, non_blocking=is_cuda) for name, values in tensors.items()}
                with torch.no_grad(), computing(model, precision):
                    losses = losses_of(moved)
                yield torch.bincount(which, losses.cpu().double(), rows), torch.bincount(which, minlength=rows)
    finally:
        model.train(was_training)


def label_losses(model: Any) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """What gives the loss in nats of each labelled token of a batch, [labels], float32, for a model."""
    inner = inner_model(model)
    return partial(_losses_from_hidden if _has_plain_head(inner) else _losses_from_logits, inner)


def _losses_from_hidden(inner: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss in nats of each labelled token, [labels], float32, from a few hundred logits at a time."""
    hidden, targets = _at_labels(inner, batch["labels"], batch.get("label_indices"), **_inputs(batch))
    return token_losses(hidden, Head(inner.get_output_embeddings()), targets, _compute_dtype(hidden))


def _losses_from_logits(inner: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same from whole logits, for a model that does more to them than its head's product.

    A linear head gives logits in float32 here: rounded to bf16 they are up to 0.5 off where they are near -100.
    """
    linear = inner.get_output_embeddings()
    is_linear = type(unwrapped(linear)) is nn.Linear
    if is_linear:
        head = Head(linear)
        linear.forward = lambda hidden: head.logits(hidden, _compute_dtype(hidden))
    try:
        logits = inner.forward(**_inputs(batch)).logits[:, :-1]  # a sharded model has been entered already
    finally:
        if is_linear:
            del linear.forward
    targets = batch["labels"][:, 1:]
    labelled = targets != _NO_LABEL
    return functional.cross_entropy(logits[labelled].float(), targets[labelled], reduction="none")


def _inputs(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    names = ("input_ids", "position_ids", BOUNDS)
    return {name: batch[name] for name in names if name in batch} | {"use_cache": False}


def _body(inner: Any) -> Any:
    """The part of a causal language model that gives the hidden states."""
    return getattr(inner, inner.base_model_prefix)


@torch.inference_mode()
def _has_plain_head(inner: Any) -> bool:
    """Whether the logits are the head's product with the hidden states and nothing more: a probe shows it.

    Some architectures scale or bound their logits; an adapter on the head has a layer of its own kind.
    """
    head = inner.get_output_embeddings()
    if type(unwrapped(head)) is not nn.Linear or not isinstance(
        getattr(inner, inner.base_model_prefix, None), nn.Module
    ):
        return False
    was_training = inner.training
    inner.eval()
    ids = torch.arange(4, device=inner.device)[None]
    with computing(inner):
        logits = inner(input_ids=ids, use_cache=False).logits
        expected = head(_body(inner)(input_ids=ids, use_cache=False).last_hidden_state)
    inner.train(was_training)
    return bool(torch.allclose(logits.float(), expected.float(), rtol=1e-3, atol=1e-5))


def _at_labels(
    inner: Any, labels: torch.Tensor, indices: torch.Tensor | None = None, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states [labels, width] that predict a labelled token, and those tokens [labels].

    With the places of these tokens in the flattened batch, [labels], a GPU need not be waited for to know how many
    there are.
    """
    hidden = _body(inner)(**inputs).last_hidden_state
    if indices is not None:
        return hidden.flatten(0, 1).index_select(0, indices - 1), labels.flatten().index_select(0, indices)
    hidden, targets = hidden[:, :-1], labels[:, 1:]
    labelled = targets != _NO_LABEL
    return hidden[labelled], targets[labelled]


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """What matmuls with these hidden states are computed in: autocast's dtype, or their own."""
    return autocast_dtype(hidden.device.type) or hidden.dtype
