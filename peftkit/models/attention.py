"""Attention over packed documents: the fastest kernel that keeps them apart on this machine, and sdpa elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from peftkit import console
from peftkit.models.attach import inner_model
from peftkit.models.isolation import check_isolation
from peftkit.models.shared_mask import SHARED_MASK
from peftkit.models.varlen import VARLEN, fits_varlen, has_varlen
from peftkit.planning.decisions import Attention, ChosenPrecision, Dtype, choose_attention
from peftkit.planning.hardware import Hardware

__all__ = ["kernels_of", "plain_attention", "takes_bounds", "use_attention"]

_DROPOUT = ("attn_pdrop", "attention_dropout")
_FOR_PACKING = (VARLEN, SHARED_MASK, "flash_attention_2", "flex_attention")


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
            _set(base, VARLEN if attention == "varlen" else attention)
            check_isolation(model, precision)
            return attention
        except Exception as error:  # noqa: BLE001  a kernel fails in every way, compilers of its source too
            reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
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


def _set(base: Any, name: str) -> None:
    base.set_attn_implementation(name)
    if base.config._attn_implementation != name:  # Transformers only logs it
        raise ValueError(f"{base.config.model_type} does not let its attention be changed")
