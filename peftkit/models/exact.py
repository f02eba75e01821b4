"""A model computed in float32 with the very weights that it holds, in hardly more memory than these take.

Logits in half precision differ by how a product was rounded, which says nothing about weights. To see whether two
models have the same ones, both are computed like this: the rest is float32's own rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peftkit.models.quantization import quantised_modules

__all__ = ["WIDENED_BYTES", "exact_float32"]

WIDENED_BYTES = 1 << 26
"""Of a linear layer's weight, in float32 at a time: a head of 128,256 words alone would be 2 GB."""


@contextmanager
def exact_float32(model: Any) -> Iterator[None]:
    """Let a model compute in float32 within the block; its weights stay as they are, and are widened as they are used.

    Of a quantised layer, the frozen bias is the base's own: a library may round the live one while it trains.
    """
    quantised = dict(quantised_modules(model).values())
    with ExitStack() as stack:
        for module in model.modules():
            backend = quantised.get(module)
            stack.enter_context(backend.exact(module) if backend else _widened(module))
        yield


@contextmanager
def _widened(module: nn.Module) -> Iterator[None]:
    """Let one module compute in float32, whose own weights may be in half precision."""
    if not any(_is_half(parameter) for parameter in module.parameters(recurse=False)):
        yield
        return
    own = vars(module)
    before = own.get("forward")
    if type(module) is nn.Linear:
        own["forward"] = partial(_linear, module)
    elif isinstance(module, nn.Embedding):
        own["forward"] = partial(_then_float, module.forward)
    else:
        own["forward"] = partial(_with_float_weights, module, module.forward)
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def _linear(module: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """A linear layer in float32, of which a part of the outputs is computed at a time."""
    rows = max(1, WIDENED_BYTES // (torch.float32.itemsize * module.in_features))
    hidden = hidden.float()
    parts = [functional.linear(hidden, part.float()) for part in torch.split(module.weight, rows)]
    found = torch.cat(parts, dim=-1)
    return found if module.bias is None else found + module.bias.float()


def _then_float(forward: Callable[..., torch.Tensor], *inputs: Any, **more: Any) -> torch.Tensor:
    return forward(*inputs, **more).float()


def _with_float_weights(module: nn.Module, forward: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
    """What a module computes while its own weights are float32."""
    held = dict(module._parameters)
    own: dict[str, Any] = module._parameters
    own.update({name: each.detach().float() for name, each in held.items() if each is not None and _is_half(each)})
    try:
        return forward(*inputs, **more)
    finally:
        own.update(held)


def _is_half(parameter: torch.Tensor) -> bool:
    return parameter.dtype in (torch.bfloat16, torch.float16)
