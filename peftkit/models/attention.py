"""Attention over packed documents: the fastest kernel that keeps them apart here, and the proof that it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, masking_utils

from peftkit import console
from peftkit.errors import FieldError, first_line
from peftkit.models.attach import inner_model
from peftkit.models.attention_kernels import BOUNDS, SHARED_MASK, VARLEN, bounds_of, fits_varlen, has_varlen
from peftkit.models.dtypes import computing
from peftkit.models.start import positions
from peftkit.planning.decisions import Attention, ChosenPrecision, Dtype, choose_attention
from peftkit.planning.hardware import Hardware

__all__ = ["check_isolation", "kernels_of", "known_layout", "plain_attention", "takes_bounds", "use_attention"]

_DROPOUT = ("attn_pdrop", "attention_dropout")
_FOR_PACKING = (VARLEN, SHARED_MASK, "flash_attention_2", "flex_attention")

_ON_CPU, _ON_GPU = (8, 8), (72, 88)
"""Tokens of the two documents of a proof: on a GPU, the second crosses the border of the kernels' blocks of 128."""

_LEAK = 1e-6
"""The largest gradient of a document that is not in the loss, relative to those of the one that is: it is zero."""

_EXACT, _HALF = (1e-4, 1e-3), (5e-2, 1e-1)
"""How far the second document's logits (largest difference over largest) and gradients (norm of the difference over
the norm) may be from those that it has alone; the second pair is for 16-bit numbers, whose rounding adds up over layers
and depends on the kernel's blocks. Documents that see each other are of the order of 1 off."""


def use_attention(model: Any, hardware: Hardware, base_dtype: Dtype, precision: ChosenPrecision) -> Attention:
    """Set a model to the best attention for packed documents that works here; each is tried on the model itself.

    Raises:
        FieldError: the architecture lets packed documents see each other, whatever computes its attention.
    """
    base = inner_model(model)
    choices = choose_attention(hardware, base_dtype, precision, packed=True, **kernels_of(base)).choice
    before = base.config._attn_implementation
    for attention in choices[:-1]:
        try:
            name = VARLEN if attention == "varlen" else attention
            base.set_attn_implementation(name)
            if base.config._attn_implementation != name:  # Transformers only logs it
                raise ValueError(f"{base.config.model_type} does not let its attention be changed")
            check_isolation(model, precision)
            return attention
        except Exception as error:  # noqa: BLE001  a kernel fails in every way, compilers of its source too
            reason = first_line(error).split(". ")[0].rstrip(".")
            console.info(f"attention {attention} does not work here ({reason}); trying the next.")
            base.set_attn_implementation(before)
    if hardware.device == "cuda" and before == "sdpa":
        base.set_attn_implementation(SHARED_MASK)
    try:
        check_isolation(model, precision)
    except FloatingPointError:
        pass  # training itself reports what overflows
    except torch.OutOfMemoryError:
        console.warning("there is too little memory to check that packed documents do not see each other.")
    return choices[-1]


def kernels_of(model: Any) -> dict[str, bool]:
    """Whether a model can use `varlen`, `flash` (the package flash-attn) and `flex`, with what is installed."""
    base = inner_model(model)
    drops = any(getattr(base.config, name, 0.0) for name in _DROPOUT)  # flex attention has no dropout
    return {
        "varlen": has_varlen() and fits_varlen(base),
        "flash": getattr(base, "_supports_flash_attn", False) and find_spec("flash_attn") is not None,
        "flex": getattr(base, "_supports_flex_attn", False) and not drops,
    }


def takes_bounds(model: Any) -> bool:
    """Whether a model's attention wants to know where the packed documents of a batch begin."""
    return bool(inner_model(model).config._attn_implementation == VARLEN)


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Let a model attend by sdpa within the block.

    Kernels for packed documents know neither padding on the left nor a cache, and flex attention compiles for minutes
    at each new length. A model that packing has not changed stays as it is.
    """
    base = inner_model(model)
    before = base.config._attn_implementation
    if before not in _FOR_PACKING:
        yield
        return
    base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def check_isolation(model: Any, precision: ChosenPrecision = "fp32") -> None:
    """Check that two documents in one row have the logits and gradients that each has alone.

    The model computes as it does in training at that precision. With its dropout, too, the loss of the second document
    must have no gradient at the embeddings of the first. Neither weights, nor their gradients, nor the state of the
    random generators change.

    Raises:
        FieldError: this architecture, or its attention, lets packed documents see each other.
        FloatingPointError: logits or gradients are not finite.
    """
    was_training, kind = model.training, torch.device(model.device).type
    longest = positions(model.config) or max(_ON_GPU)
    first, second = (min(tokens, longest) for tokens in (_ON_CPU if kind == "cpu" else _ON_GPU))
    ids = torch.arange(2, 2 + first + second, device=model.device) % model.config.get_text_config().vocab_size
    places = torch.cat([torch.arange(first), torch.arange(second)]).to(model.device)
    try:
        with torch.random.fork_rng([model.device] if kind == "cuda" else []):
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
    if takes_bounds(model):
        inputs[BOUNDS] = bounds_of(places[None])  # as a batch has it
    embedded: list[torch.Tensor] = []

    def cut(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = inner_model(model).get_input_embeddings().register_forward_hook(cut)
    try:
        with torch.enable_grad(), computing(model, precision):
            logits = model(**inputs, use_cache=False).logits[0, first:].float()
            loss = functional.cross_entropy(logits[:-1], ids[first + 1 :], reduction="sum")
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(loss, embedded[0])
    return logits.detach(), gradient[0].float()


def _is_rounded(model: Any, precision: ChosenPrecision) -> bool:
    """Whether the model computes with fewer bits than float32 has."""
    held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    in_8_bit = bool(getattr(inner_model(model), "is_loaded_in_8bit", False))
    return precision != "fp32" or held != {torch.float32} or in_8_bit


@contextmanager
def known_layout(*, packed: bool) -> Iterator[None]:
    """Let models take it as given within the block whether rows hold several documents, and that padding is meant.

    Transformers' models look at their inputs for packed documents, and some for padding; on a GPU each look makes the
    program wait until all that was asked for has been computed. Masks are those that Transformers makes by itself: none
    where each row is one document, as `is_causal` then does with a faster kernel. A version that does not look is left
    as it is.
    """
    replaced = (
        (masking_utils, "find_packed_sequence_indices", _documents if packed else _nothing),
        # rows are padded on the right and their padding has no labels: no mask is missing
        (PreTrainedModel, "warn_if_padding_and_no_attention_mask", _nothing),
    )
    before = [(owner, name, getattr(owner, name), new) for owner, name, new in replaced if hasattr(owner, name)]
    try:
        for owner, name, _, new in before:
            setattr(owner, name, new)
        yield
    finally:
        for owner, name, old, _ in before:
            setattr(owner, name, old)


def _documents(position_ids: torch.Tensor) -> torch.Tensor:
    """Which document of its row each token belongs to, [rows, tokens], counted from 0: positions begin anew in each."""
    return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)


def _nothing(*_inputs: Any) -> None:
    """What Transformers' own functions give where there is nothing to find."""
