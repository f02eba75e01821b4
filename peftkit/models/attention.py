"""Attention over packed documents: the fastest kernel that keeps them apart on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from peftkit import console
from peftkit.errors import FieldError
from peftkit.planning.decisions import Attention, choose_attention
from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import Dtype

__all__ = ["check_isolation", "kernels_of", "use_attention"]

_ATTENTION_DROPOUT = ("attn_pdrop", "attention_dropout")


def use_attention(model: Any, hardware: Hardware, base_dtype: Dtype) -> Attention:
    """Set a model to the best attention for packed documents that works here, which is tried out.

    Raises:
        FieldError: the architecture lets packed documents see each other, whatever computes its attention.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    choices = choose_attention(hardware, base_dtype, packed=True, **kernels_of(base)).choice
    for attention in choices[:-1]:
        try:
            base.set_attn_implementation(attention)
            check_isolation(model)
            return attention
        except (FieldError, RuntimeError, ValueError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            console.info(f"{attention} does not work here ({reason}); the next is tried.")
            base.set_attn_implementation(choices[-1])
    check_isolation(model)
    return choices[-1]


def kernels_of(model: Any) -> dict[str, bool]:
    """Whether a model can use `flash`, FlashAttention, and `flex`, flex attention, with what is installed."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    drops = any(getattr(base.config, name, 0.0) for name in _ATTENTION_DROPOUT)  # flex attention has no dropout
    return {
        "flash": getattr(base, "_supports_flash_attn", False) and find_spec("flash_attn") is not None,
        "flex": getattr(base, "_supports_flex_attn", False) and not drops,
    }


@torch.inference_mode()
def check_isolation(model: Any) -> None:
    """See that documents packed into one row do not see each other: a probe of two, together and alone.

    Raises:
        FieldError: this architecture mixes them.
    """
    was_training = model.training
    model.eval()
    first, second = torch.arange(2, 10, device=model.device), torch.arange(10, 18, device=model.device)
    together = torch.cat([first, second])[None]
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    packed = model(input_ids=together, position_ids=positions, use_cache=False).logits[0, 8:].float()
    alone = model(input_ids=second[None], position_ids=positions[:, :8], use_cache=False).logits[0].float()
    model.train(was_training)
    held = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    tolerance = 1e-4 if held == torch.float32 else 5e-2
    if float((packed - alone).abs().max()) > tolerance * float(alone.abs().max()):
        raise FieldError(
            "data.packing",
            f"{model.config.model_type} lets packed documents see each other.",
            remedy="Set packing: false.",
        )
