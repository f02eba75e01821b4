"""The cross-entropy of a linear head, summed in float32, with few of its logits in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from peftkit.models.attach import unwrapped

__all__ = ["VOCABULARY_MULTIPLE", "Head", "float32_product", "logits_bytes", "summed_loss", "token_losses"]

_ROWS_AT_ONCE = 512
"""Labelled tokens whose logits are in memory together: 103 MB with GPT-2's vocabulary. On two cores, 256 took between
0.95 and 1.05 of its time and all at once up to 1.4."""

VOCABULARY_MULTIPLE = 64
"""Logits in rows of this many floats are aligned. On two cores the loss with GPT-2's vocabulary of 50,257, and its
gradients, take 0.86 of their time once 47 rows of zeros are appended to the head; the head's own matmul takes 0.75."""

_FP16_GAIN = 1024.0
"""Errors of the logits are multiplied by this before they are rounded to fp16, whose smallest normal number, 6e-5, is
above the probability of most tokens; the products are divided by it. An error is at most 1."""


def logits_bytes(vocabulary: int, tokens: int) -> int:
    """Bytes of the logits, and of their gradients, that are in memory together in a step of so many tokens."""
    return 2 * torch.float32.itemsize * vocabulary * min(tokens, _ROWS_AT_ONCE)


class _Operands(NamedTuple):
    """A head as the matmuls take it."""

    weight: torch.Tensor
    """[padded vocabulary, width], in the dtype that is computed in; float32 where there is no mixed matmul."""

    bias: torch.Tensor | None
    """[vocabulary], float32."""

    vocabulary: int
    """Rows of the weight that are tokens; zeros follow."""

    rows: torch.Tensor | None
    """Those that are trained alone, [trained]; None where all are, or none."""


class Head:
    """A model's linear head, with zeros appended up to a vocabulary that is quick to compute with."""

    def __init__(self, head: Any) -> None:
        """Of a linear layer, or one of which PEFT trains single rows."""
        self.linear: nn.Linear = unwrapped(head)
        self._rows: torch.Tensor | None = None
        self._kept: dict[torch.dtype, _Operands] = {}
        self._layer: Any = getattr(head, "token_adapter", None)
        if self._layer is not None:
            (name,) = self._layer.active_adapters
            self._rows = torch.tensor(self._layer.token_indices[name], device=self.linear.weight.device)

    @property
    def trained(self) -> torch.Tensor:
        """The weight [vocabulary, width], or the rows [trained, width] of it that alone are trained."""
        if self._layer is None:
            return self.linear.weight
        (name,) = self._layer.active_adapters
        rows: torch.Tensor = self._layer.trainable_tokens_delta[name]
        return rows

    @torch.no_grad()
    def operands(self, dtype: torch.dtype) -> _Operands:
        """Weight and bias for matmuls in `dtype`; those of a frozen head are made once."""
        weight, bias = self.linear.weight, self.linear.bias
        is_trained = any(parameter.requires_grad for parameter in self.linear.parameters())
        made = None if is_trained else self._kept.get(dtype)
        if made is None:
            added = -len(weight) % VOCABULARY_MULTIPLE
            cast = _operand(weight, dtype)
            padded = functional.pad(cast, (0, 0, 0, added)) if added else cast
            if self._rows is not None and padded.data_ptr() == weight.data_ptr():
                padded = padded.clone()  # its rows are written to
            made = _Operands(padded, None if bias is None else bias.float(), len(weight), self._rows)
        if not is_trained:
            self._kept[dtype] = made
        if self._rows is not None:
            made.weight[self._rows] = _operand(self.trained.to(weight.dtype), dtype)
        return made

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The logits [..., vocabulary] of hidden states [..., width], float32, from a matmul in `dtype`."""
        operands = self.operands(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = float32_product(_operand(hidden.reshape(-1, hidden.shape[-1]), dtype), operands.weight.T)
            logits = logits[:, : operands.vocabulary]
            logits = logits if operands.bias is None else logits + operands.bias
        return logits.view(*hidden.shape[:-1], -1)

    def above_mean(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """How far the logits of the targets are above the mean of the whole vocabulary's, summed.

        That is a product with the mean weight, and needs no logits.
        """
        weight, bias = self.linear.weight, self.linear.bias
        if self._rows is not None:
            weight = weight.index_copy(0, self._rows, self.trained.to(weight.dtype))
        above = (hidden.float() * (weight[targets].float() - weight.mean(0, dtype=torch.float32))).sum()
        return above if bias is None else above + (bias[targets] - bias.mean()).float().sum()


def summed_loss(hidden: torch.Tensor, head: Head, targets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The loss in nats of all targets together, float32, whatever dtype the matmuls are computed in.

    Logits, sums and the gradients of the head are float32; inputs of matmuls, the errors of the logits among them, are
    rounded to `dtype`. Gradients are computed with the logits, in the forward pass, and scaled in the backward pass.

    Args:
        hidden: [labels, width], the last hidden state before each target.
        head: the model's head.
        targets: [labels], token ids.
        dtype: that matmuls are computed in.
    """
    operands = head.operands(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        total: torch.Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.trained, head.linear.bias, operands, targets, dtype, torch.is_grad_enabled()
        )
    return total


@torch.no_grad()
def token_losses(hidden: torch.Tensor, head: Head, targets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The loss in nats of each target, [labels], float32; see `summed_loss`."""
    with torch.autocast(hidden.device.type, enabled=False):
        parts = _parts(hidden, targets, head.operands(dtype), dtype)
        return torch.cat([-found.gather(-1, labels)[:, 0] for _, _, labels, found in parts])


class _SummedLoss(torch.autograd.Function):
    """Loss and gradients of a head, a few hundred tokens at a time: their logits are never all in memory."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, operands: _Operands,
        targets: torch.Tensor, dtype: torch.dtype, needs_gradients: bool,
    ) -> torch.Tensor:  # fmt: skip
        wanted = [needs_gradients and needed for needed in ctx.needs_input_grad[:3]]
        gain = _FP16_GAIN if dtype == torch.float16 else 1.0
        total = hidden.new_zeros((), dtype=torch.float32)
        # what fp16 has no room for before the loss is scaled stays float32 until then
        kept = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        of_hidden = torch.empty_like(hidden, dtype=kept) if wanted[0] else None
        trained = weight if operands.rows is not None else operands.weight
        of_weight = torch.zeros_like(trained, dtype=torch.float32) if wanted[1] else None
        of_bias = hidden.new_zeros(operands.vocabulary, dtype=torch.float32) if wanted[2] else None
        for part, rows, labels, errors in _parts(hidden, targets, operands, dtype):
            total -= errors.gather(-1, labels).sum()
            if not any(wanted):
                continue
            errors.exp_().scatter_add_(-1, labels, errors.new_full(labels.shape, -1.0))
            if of_bias is not None:
                of_bias += errors[:, : operands.vocabulary].sum(0)
            errors = _operand(errors if gain == 1 else errors.mul_(gain), dtype)
            if of_hidden is not None:
                product = float32_product(errors, operands.weight)
                of_hidden[part] = product if gain == 1 else product.mul_(1 / gain)
            if operands.rows is not None:
                errors = errors[:, operands.rows]
            if of_weight is not None and errors.dtype == torch.float32:
                of_weight.addmm_(errors.T, rows)
            elif of_weight is not None:
                of_weight += float32_product(errors.T, rows)
        ctx.gradients = (of_hidden, None if of_weight is None else of_weight[: operands.vocabulary], of_bias)
        ctx.factors = (1.0, 1 / gain, 1.0)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made, ctx.gradients = ctx.gradients, None  # they are scaled in place
        if made is None:
            raise RuntimeError("the gradients of this loss have been used: compute the loss again")
        found = [
            None if each is None else each.mul_(gradients[0] * factor).to(dtype)
            for each, factor, dtype in zip(made, ctx.factors, ctx.dtypes, strict=True)
        ]
        return (*found, None, None, None, None)


def _parts(
    hidden: torch.Tensor, targets: torch.Tensor, operands: _Operands, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A few hundred tokens at a time: where they are, their operands, their targets [rows, 1], and log-probabilities.

    These are [rows, padded vocabulary], float32, until the next part; those of no token are minus infinity. On a CPU,
    memory that is touched for the first time takes three times as long as a softmax of it: it is used again.
    """
    weight, bias, vocabulary, _ = operands
    shape = (min(len(hidden), _ROWS_AT_ONCE), len(weight))
    all_logits, all_found = (hidden.new_empty(shape, dtype=torch.float32) for _ in range(2))
    for start in range(0, max(len(targets), 1), _ROWS_AT_ONCE):  # no tokens are a part too
        part = slice(start, start + _ROWS_AT_ONCE)
        rows = _operand(hidden[part], dtype)
        logits = float32_product(rows, weight.T, out=all_logits[: len(rows)])
        if bias is not None:
            logits[:, :vocabulary] += bias
        logits[:, vocabulary:] = -math.inf
        yield part, rows, targets[part, None], torch.log_softmax(logits, -1, out=all_found[: len(rows)])


def _operand(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor with the values that it has in `dtype`, in a dtype that `product` multiplies exactly."""
    rounded = tensor.to(dtype)
    return rounded if rounded.is_cuda else rounded.float()


def float32_product(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """A matmul whose sums, and result, are float32; CUDA has one for operands of 16 bits."""
    if left.dtype == torch.float32 or not left.is_cuda:
        return torch.mm(left.float(), right.float(), out=out)
    return torch.mm(left, right, out_dtype=torch.float32, out=out)
