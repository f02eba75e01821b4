"""What a model takes, known from its structure on the meta device: no weight is read, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.modeling_utils import AttentionInterface

from peftkit.errors import first_line
from peftkit.models.attach import embedding_modules, inner_model, unwrapped
from peftkit.models.attention import known_layout
from peftkit.models.dtypes import pretending_autocast
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.linear_cross_entropy import VOCABULARY_MULTIPLE
from peftkit.models.quantization import backend_of
from peftkit.planning.decisions import ChosenPrecision, dtype_of
from peftkit.planning.hardware import Device, Hardware
from peftkit.planning.memory import fixed_and_row
from peftkit.recipe.hyperparameters import Quantization

__all__ = [
    "UncountedError", "activation_bytes", "activation_parts", "held_bytes", "kept_for_backward", "loss_parts",
    "weight_bytes",
]  # fmt: skip

_NAME = "peftkit_outline"
_LOW = (torch.addmm, torch.matmul, torch.bmm, functional.linear, torch.Tensor.matmul)
_HIGH = (functional.layer_norm, torch.layer_norm, functional.softmax, torch.rsqrt, torch.pow, torch.Tensor.pow)
"""What autocast computes in half precision, and what in float32, of what decoders are made of."""


class UncountedError(Exception):
    """A model whose forward pass depends on values, which the meta device does not have; says why."""


def weight_bytes(structure: Any, quantization: Quantization | None) -> int:
    """Bytes of a model's weights in the dtypes that they are held in, its linear layers as they are quantised."""
    held = {id(parameter): parameter.numel() * parameter.element_size() for parameter in structure.parameters()}
    if quantization is not None:
        each, kept = backend_of(quantization).bytes_of_a_weight(quantization), embedding_modules(inner_model(structure))
        for name, module in structure.named_modules():
            weight: Any = getattr(module, "weight", None)
            is_frozen = weight is not None and weight.dim() == 2 and not weight.requires_grad
            if is_frozen and not any(f".{embedding}." in f".{name}." for embedding in kept):
                held[id(weight)] = int(weight.numel() * each)
    return sum(held.values())


def activation_bytes(model: Any, rows: int, tokens: int, precision: ChosenPrecision, hardware: Hardware) -> int:
    """Bytes that a model on the meta device keeps for the backward pass of a batch of [rows, tokens].

    That is all up to the hidden states; the logits are a loss's own. The model is changed as training would change it,
    and is used up.

    Raises:
        UncountedError: the model does not run on that device.
    """
    use_fast_kernels(model, hardware)
    inner = inner_model(model)
    AttentionInterface.register(_NAME, partial(_attention, keeps_dropped=hardware.device == "cpu"))
    inner.set_attn_implementation(_NAME)
    inner.config.get_text_config().pad_token_id = None  # with one, the model looks at its inputs
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    body = getattr(inner, inner.base_model_prefix)
    model.train()
    half = None if precision == "fp32" else getattr(torch, dtype_of(precision))
    mode = _Autocast(half, is_cuda=hardware.device == "cuda")
    try:
        with kept_for_backward(model) as kept, known_layout(packed=False), mode, pretending_autocast(half):
            body(input_ids=ids, use_cache=False)
    except Exception as error:  # what a model computes is its own, and so is what it cannot do without values
        raise UncountedError(first_line(error)) from error
    return sum(kept.values())


def activation_parts(model: Any, tokens: int, precision: ChosenPrecision, hardware: Hardware) -> tuple[int, int]:
    """What `activation_bytes` is made of: bytes whatever the rows are, and bytes for each row of so many tokens."""
    one, two = (activation_bytes(model, rows, tokens, precision, hardware) for rows in (1, 2))
    return fixed_and_row(one, two)


def loss_parts(model: Any, precision: ChosenPrecision, device: Device) -> tuple[int, int]:
    """What the loss at labels holds besides the logits: bytes whatever the tokens are, and bytes for each token.

    It has the head as its matmuls take it: padded, and in 16 bits on a GPU or rounded to 16 bits elsewhere, which is
    another tensor where that changes anything. And it has gradients, which it computes with the logits: of the head's
    weight in float32, if that is trained, and of hidden states. On a GPU, 16-bit matmuls add to the head's gradient by
    way of a tensor as large. The head of a quantised base is not quantised.
    """
    head = model.get_output_embeddings()
    weight = unwrapped(head).weight
    vocabulary, width = weight.shape
    padded = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    in_16_bit = device == "cuda" and precision != "fp32"
    rounded = getattr(torch, dtype_of(precision))
    dtype = rounded if in_16_bit else torch.float32
    copied = padded != vocabulary or rounded != weight.dtype or dtype != rounded or head is not unwrapped(head)
    fixed = padded * width * dtype.itemsize * copied
    if weight.requires_grad:
        fixed += padded * width * torch.float32.itemsize * (2 if in_16_bit else 1)
    return fixed, width * torch.float32.itemsize


def held_bytes(model: Any) -> int:
    """Bytes of a model's tensors as they are held, each storage once."""
    return sum({_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(model)}.values())


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    """A model's tensors; instead of one that is made of others, as a quantised weight of its scales, these."""
    found = [*model.parameters(), *model.buffers()]
    while found:
        tensor = found.pop()
        if is_traceable_wrapper_subclass(tensor):
            found += [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        else:
            yield tensor


@contextmanager
def kept_for_backward(model: Any) -> Iterator[Mapping[Any, int]]:
    """Bytes of what is kept for the backward pass within the block, by its storage, without the model's own tensors."""
    own = {_storage(tensor) for tensor in _tensors(model)}
    kept: dict[Any, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would hold the step that it was saved in, and that one it

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield kept


def _storage(tensor: torch.Tensor) -> int:
    """An identity of a storage, also of one without memory."""
    return int(tensor.untyped_storage()._cdata)


class _Autocast(TorchFunctionMode):
    """Dtypes as autocast chooses them, and CUDA's fused kernels; the meta device has neither.

    torch's FakeTensorMode has both, but without a GPU the first operation with a gradient on a fake CUDA tensor aborts
    the process (torch 2.9 to 2.13), and a plan for a GPU is made on any machine.
    """

    def __init__(self, half: torch.dtype | None, *, is_cuda: bool) -> None:
        super().__init__()
        self._half, self._fused = half, _GROUPED | (_CUDA if is_cuda else {})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if fused := self._fused.get(func):
            return fused(*args, **(kwargs or {}))
        dtype = None
        if self._half is not None:
            dtype = self._half if func in _LOW else torch.float32 if func in _HIGH else None
        if dtype is not None:
            args = tuple(_cast(value, dtype) for value in args)
            kwargs = {name: _cast(value, dtype) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _dropout(values: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Dropout as CUDA computes it: in one kernel, which keeps a byte for each number."""
    del inplace
    return torch.native_dropout(values, p, training)[0] if training and p else values


def _norm(values: torch.Tensor, shape: Any, weight: torch.Tensor, eps: float) -> Any:
    """RMSNorm as CUDA computes it: in one kernel, which keeps its input and a number for each token."""
    del shape, eps
    per_token = values.new_empty((*values.shape[:-1], 1), dtype=torch.float32)
    return _Fused.apply(False, values, values, per_token, weight)  # type: ignore[no-untyped-call]


def _grouped_matmul(values: torch.Tensor, weights: torch.Tensor, **_options: Any) -> Any:
    """The products of tokens [tokens, in], sorted by expert, with that expert's weight, of [experts, in, out].

    The meta device has it for bf16 alone, and keeps what the kernel keeps: its inputs.
    """
    result = values.new_empty(len(values), weights.shape[-1])
    return _Fused.apply(False, result, values, weights)  # type: ignore[no-untyped-call]


_GROUPED: Final[dict[Any, Callable[..., Any]]] = dict.fromkeys(
    (torch._grouped_mm, getattr(functional, "grouped_mm", None)), _grouped_matmul
)
"""Mixtures of experts; the second from torch 2.10 on."""

_CUDA: Final[dict[Any, Callable[..., Any]]] = {functional.dropout: _dropout, functional.rms_norm: _norm}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    dropout: float = 0.0, *, keeps_dropped: bool, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention that keeps what a fused kernel keeps: its inputs, its result, a number for each row of scores.

    With dropout, peftkit's own on a CPU keeps its inputs and a byte for each score that it computes, about half of all.
    """
    del module, attention_mask, options
    scores = query.shape[:-1]
    if drops := bool(dropout) and keeps_dropped:
        kept = query.new_empty((*scores, (scores[-1] + 1) // 2), dtype=torch.bool)
    else:
        kept = query.new_empty(scores, dtype=torch.float32)
    rows, heads, tokens = scores
    result = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)  # as kernels lay it out
    attended = _Fused.apply(not drops, result, query, key, value, kept)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2).contiguous(), None


class _Fused(torch.autograd.Function):
    """A kernel that keeps what it is given, and its result if that is so; the result is like the first tensor."""

    @staticmethod
    def forward(ctx: Any, keeps_result: bool, like: torch.Tensor, *kept: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(like)
        ctx.save_for_backward(*kept, *([result] if keeps_result else ()))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        raise NotImplementedError  # nothing is computed on the meta device
