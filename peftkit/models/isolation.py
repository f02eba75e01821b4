"""The proof that documents packed into one row do not see each other, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from peftkit.errors import FieldError
from peftkit.models.attach import inner_model
from peftkit.models.dtypes import computing
from peftkit.models.start import positions
from peftkit.models.varlen import BOUNDS, VARLEN, bounds_of
from peftkit.planning.precision import ChosenPrecision

__all__ = ["check_isolation"]

_ON_CPU, _ON_GPU = (8, 8), (72, 88)
"""Tokens of the two documents: on a GPU, the second crosses the border of the kernels' blocks of 128 tokens."""

_LEAK = 1e-6
"""The largest gradient of a document that is not in the loss, relative to those of the one that is: it is zero."""

_EXACT, _HALF = (1e-4, 1e-3), (5e-2, 1e-1)
"""How far the second document's logits (largest difference over largest) and gradients (norm of the difference over
the norm) may be from those that it has alone; the second pair is for 16-bit numbers, whose rounding adds up over layers
and depends on the kernel's blocks. Documents that see each other are of the order of 1 off."""


def check_isolation(model: Any, precision: ChosenPrecision = "fp32") -> None:
    """Check that two documents in one row have the logits and gradients that each has alone.

    The model computes as it does in training at that precision. With its dropout, too, the loss of the second document
    must have no gradient at the embeddings of the first. Neither weights, nor their gradients, nor the state of the
    random generators change.

    Raises:
        FieldError: this architecture, or its attention, lets packed documents see each other.
        FloatingPointError: what it computes is not finite.
    """
    was_training = model.training
    first, second = _ON_CPU if torch.device(model.device).type == "cpu" else _ON_GPU
    room = positions(model.config) or second
    first, second = min(first, room), min(second, room)
    ids = torch.arange(2, 2 + first + second, device=model.device) % model.config.vocab_size
    places = torch.cat([torch.arange(first), torch.arange(second)]).to(model.device)
    try:
        with torch.random.fork_rng(_gpus(model)):
            _, dropped = _probe(model.train(), precision, ids, places, first)
        packed, gradient = _probe(model.eval(), precision, ids, places, first)
        alone, expected = _probe(model, precision, ids[first:], places[first:], 0)
    finally:
        model.train(was_training)
    if not all(bool(each.isfinite().all()) for each in (packed, alone, dropped, gradient, expected)):
        raise FloatingPointError("its logits or gradients are not finite")
    leaks = any(float(each[:first].abs().max()) > _LEAK * float(each.abs().max()) for each in (dropped, gradient))
    logits, gradients = _HALF if _is_rounded(model, precision) else _EXACT
    differs = float((packed - alone).abs().max()) > logits * float(alone.abs().max())
    drifts = float((gradient[first:] - expected).norm()) > gradients * float(expected.norm())
    if leaks or differs or drifts:
        what = f"{model.config.model_type} lets packed documents see each other."
        raise FieldError("data.packing", what, remedy="Set packing: false.")


def _probe(
    model: Any, precision: ChosenPrecision, ids: torch.Tensor, places: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A row's logits from the token `first` on [tokens, vocabulary], and the gradients of their loss at the embeddings.

    The loss is that of the tokens after `first`, summed; its gradients [all tokens, width] are found without those of
    any weight.
    """
    inputs = {"input_ids": ids[None], "position_ids": places[None]}
    base = inner_model(model)
    if base.config._attn_implementation == VARLEN:
        inputs[BOUNDS] = bounds_of(places[None])  # as a batch has it
    with torch.enable_grad(), _embeddings(base) as embedded, computing(model, precision):
        logits = model(**inputs, use_cache=False).logits[0, first:].float()
        loss = functional.cross_entropy(logits[:-1], ids[first + 1 :], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, embedded[0])
    return logits.detach(), gradient[0].float()


@contextmanager
def _embeddings(base: Any) -> Iterator[list[torch.Tensor]]:
    """The embedded tokens [rows, tokens, width] of the next forward pass, from which gradients are found."""
    found: list[torch.Tensor] = []

    def cut(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    hook = base.get_input_embeddings().register_forward_hook(cut)
    try:
        yield found
    finally:
        hook.remove()


def _gpus(model: Any) -> list[torch.device]:
    return [model.device] if torch.device(model.device).type == "cuda" else []


def _is_rounded(model: Any, precision: ChosenPrecision) -> bool:
    """Whether the model computes with fewer bits than float32 has."""
    base = inner_model(model)
    held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return precision != "fp32" or held != {torch.float32} or bool(getattr(base, "is_loaded_in_8bit", False))
