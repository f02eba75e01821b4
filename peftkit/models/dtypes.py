"""Which dtype each module of a base is held in, and what a model computes in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from peftkit.models.quantization import quantised_modules
from peftkit.planning.decisions import ChosenPrecision, dtype_of

__all__ = [
    "WIDENED_BYTES", "autocast_dtype", "autocast_to", "compute_dtype", "computing", "exact_float32", "exact_residual",
    "float32_modules", "hold", "hold_in_float32", "loading_in", "pretending_autocast", "without_autocast",
]  # fmt: skip

WIDENED_BYTES = 1 << 26
"""Of a linear layer's weight, in float32 at a time: the head of a vocabulary of 128,256 alone would be 2 GB."""

_PRETENDED: ContextVar[torch.dtype | None] = ContextVar("pretended", default=None)
_HALVES = (torch.float16, torch.bfloat16)
_MIXED = "float16"  # of linear layers alone: bfloat16 has the range for all weights


def float32_modules(structure: Any, dtype: str) -> list[str]:
    """The modules of a base that stay float32 where its linear layers are held in `dtype`.

    Beside fp16 these are embeddings and norms: what passes from layer to layer then is float32 too, since it grows
    beyond what fp16 can hold. The range of bf16 is that of float32, and everything may be held in it.
    """
    if dtype != _MIXED:
        return []
    tied = structure.get_output_embeddings() if getattr(structure.config, "tie_word_embeddings", False) else None
    return [
        name
        for name, module in structure.named_modules()
        if (not isinstance(module, nn.Linear | Conv1D) or module is tied) and any(True for _ in _own(module))
    ]


def hold(structure: Any, dtype: str) -> Any:
    """Give a structure without weights the dtypes that `loading_in` gives a model with them."""
    kept = [structure.get_submodule(name) for name in float32_modules(structure, dtype)]
    structure.to(getattr(torch, dtype))
    for module in kept:
        _upcast(_own(module))
    return structure


@contextlib.contextmanager
def loading_in(dtype: str, structure: Callable[[], Any]) -> Iterator[None]:
    """Let Transformers load models of a structure's class in `dtype` with `float32_modules` in float32.

    A model class names such modules itself in `_keep_in_fp32_modules`, which counts for fp16 alone: the structure is
    made only then.
    """
    if dtype != _MIXED:
        yield
        return
    outline = structure()
    kind = type(outline)
    own = vars(kind).get("_keep_in_fp32_modules")
    kind._keep_in_fp32_modules = {*(kind._keep_in_fp32_modules or ()), *float32_modules(outline, dtype)}
    try:
        yield
    finally:
        if own is not None:
            kind._keep_in_fp32_modules = own
        else:
            del kind._keep_in_fp32_modules


def hold_in_float32(model: Any, names: Iterable[str]) -> None:
    """Hold parameters of these names in float32, as training needs: in bf16 most updates are less than the last bit.

    A norm has one dtype for all its parameters; a linear layer's weight may stay in 16 bits beside its bias.
    """
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        _upcast([model.get_parameter(name)] if isinstance(module, nn.Linear | Conv1D) else _own(module))


def computing(model: Any, precision: ChosenPrecision = "fp32") -> contextlib.AbstractContextManager[Any]:
    """Compute as training does: under autocast to `compute_dtype`, unless that is float32.

    Without autocast, a layer refuses inputs and weights of different dtypes, as where norms or biases are float32.
    """
    return autocast_to(compute_dtype(model, precision), model.device)


def autocast_to(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The same where `compute_dtype` is known, for which it looks at every weight of a float32 model."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast gives to matmuls on a device now; None without autocast."""
    if (pretended := _PRETENDED.get()) is not None:
        return pretended
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Compute in the dtypes of the operands, as they are."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


@contextlib.contextmanager
def pretending_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Let `autocast_dtype` give `dtype`, where torch has no autocast: on the meta device."""
    token = _PRETENDED.set(dtype)
    try:
        yield
    finally:
        _PRETENDED.reset(token)


def compute_dtype(model: Any, precision: ChosenPrecision = "fp32") -> torch.dtype:
    """What a model's matmuls are computed in: the precision, or the 16-bit dtype that any weight is held in."""
    if precision != "fp32":
        half: torch.dtype = getattr(torch, dtype_of(precision))
        return half
    return next((weight.dtype for weight in model.parameters() if weight.dtype in _HALVES), torch.float32)


@contextlib.contextmanager
def exact_residual(model: Any) -> Iterator[None]:
    """Keep the sums that pass from layer to layer in float32, whatever dtype embeddings and norms are held in.

    Weights held in float32 do so by themselves under autocast. With it, methods whose weights are held in different
    dtypes are measured alike.
    """
    norms = [weight for weight in model.parameters() if weight.dim() == 1 and weight.dtype in _HALVES]
    held = [weight.data for weight in norms]
    _upcast(norms)
    hook = model.get_input_embeddings().register_forward_hook(lambda *called: called[-1].float())
    try:
        yield
    finally:
        hook.remove()
        for weight, data in zip(norms, held, strict=True):
            weight.data = data


@contextlib.contextmanager
def exact_float32(model: Any) -> Iterator[None]:
    """Let a model compute in float32 within the block; its weights stay as they are, and are widened as they are used.

    Logits in half precision differ by how a product was rounded, which says nothing about weights. To see whether two
    models have the same ones, both are computed like this: the rest is float32's own rounding. It takes hardly more
    memory than the weights. Of a quantised layer, the frozen bias is the base's own: a library may round the live one
    while it trains.
    """
    quantised = quantised_modules(model)
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            backend = quantised.get(module)
            stack.enter_context(backend.exact(module) if backend else _widened(module))
        yield


@contextlib.contextmanager
def _widened(module: nn.Module) -> Iterator[None]:
    """Let one module compute in float32, whose own weights may be in half precision."""
    if all(parameter.dtype not in _HALVES for parameter in _own(module)):
        yield
        return
    own = vars(module)
    before = own.get("forward")
    if type(module) is nn.Linear:
        own["forward"] = partial(_linear, module)
    elif isinstance(module, nn.Embedding):
        table = module.forward
        own["forward"] = lambda *inputs, **more: table(*inputs, **more).float()
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


def _with_float_weights(module: nn.Module, forward: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
    """What a module computes while its own weights are float32."""
    held = dict(module._parameters)
    own: dict[str, Any] = module._parameters
    half = {name: each for name, each in held.items() if each is not None and each.dtype in _HALVES}
    own.update({name: each.detach().float() for name, each in half.items()})
    try:
        return forward(*inputs, **more)
    finally:
        own.update(held)


def _own(module: Any) -> Iterator[nn.Parameter]:
    parameters: Iterator[nn.Parameter] = module.parameters(recurse=False)
    return parameters


def _upcast(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.float()
