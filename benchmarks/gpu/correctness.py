"""What peftkit computes on the device against what it should: the loss, 4-bit codes, packed documents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from benchmarks.gpu.device import device
from peftkit.errors import FieldError
from peftkit.models.attention import check_isolation, kernels_of, use_attention
from peftkit.models.attention_kernels import SHARED_MASK, VARLEN
from peftkit.models.device import detect_hardware
from peftkit.models.loss import compute_loss_at_labels, evaluate_loss
from peftkit.planning.decisions import Attention, ChosenPrecision, choose_attention, choose_precision

__all__ = ["chosen_attention", "isolation", "loss_errors", "nf4_codes"]

_SCALE = 2.0**16
"""What a GradScaler multiplies a loss by at first; in fp16, gradients without it would be rounded to nothing."""

_KERNELS = {"varlen": "varlen", "flash_attention_2": "flash", "flex_attention": "flex"}
"""What `kernels_of` calls what an attention needs."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Decoder(nn.Module):
    """The least that is a causal language model: each position has a hidden state of its own, and there is a head.

    Hidden states and head are exact in the 16-bit dtype, so that what differs from fp64 is the loss's own rounding.
    """

    base_model_prefix = "body"

    def __init__(self, tokens: int, width: int, vocabulary: int, spread: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.config = SimpleNamespace(vocab_size=vocabulary, _attn_implementation="sdpa")
        self.body = _Body(torch.randn(tokens, width, generator=generator))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight.data = torch.randn(vocabulary, width, generator=generator) * spread / width**0.5

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        states: nn.Embedding = self.body.states
        return states

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return CausalLMOutputWithPast(logits=self.lm_head(self.body(input_ids).last_hidden_state))


class _Body(nn.Module):
    """Gives each position of a batch its state, whatever token is there."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = nn.Embedding(len(states), states.shape[1], _weight=states)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        places = torch.arange(input_ids.numel(), device=input_ids.device)
        return BaseModelOutputWithPast(last_hidden_state=self.states(places.view_as(input_ids)))


def loss_errors(
    precision: ChosenPrecision, tokens: int, width: int, vocabulary: int, spread: float
) -> dict[str, float]:
    """Relative errors against fp64 of peftkit's loss over `tokens` tokens in 8 rows, and of its gradients.

    Args:
        precision: fp32, bf16 or fp16, in which hidden states and head are held.
        tokens: in the batch.
        width: of the hidden states.
        vocabulary: rows of the head.
        spread: standard deviation of the logits.
    """
    dtype, where = _DTYPES[precision], device()
    model = _Decoder(tokens, width, vocabulary, spread).to(where, dtype)
    exact = copy.deepcopy(model).double()
    ids = torch.randint(vocabulary, (8, tokens // 8), generator=torch.Generator().manual_seed(1)).to(where)
    expected = _exact_loss(exact, ids)
    count = ids[:, 1:].numel()
    scale = _SCALE if precision == "fp16" else 1.0
    if not compute_loss_at_labels(model):
        raise RuntimeError("peftkit does not see that the head is a plain one")
    loss = model(input_ids=ids, labels=ids, num_items_in_batch=count).loss
    (loss * scale).backward()
    batch = {"input_ids": ids, "labels": ids}
    return {
        "loss": abs(float(loss.detach()) - expected) / expected,
        "evaluation": abs(evaluate_loss(model, [batch], precision).mean - expected) / expected,
        "hidden_gradient": _difference(model.body.states.weight.grad, scale, exact.body.states.weight.grad),
        "head_gradient": _difference(model.lm_head.weight.grad, scale, exact.lm_head.weight.grad),
        "finite": float(torch.isfinite(loss.detach())),
    }


def _exact_loss(model: _Decoder, ids: torch.Tensor) -> float:
    """The mean loss in fp64, whose gradients are left in the model; a row at a time, as whole logits are large."""
    total, count = 0.0, ids[:, 1:].numel()
    states = model.body.states.weight.view(*ids.shape, -1)
    for row, wanted in zip(states, ids, strict=True):
        nats = functional.cross_entropy(model.lm_head(row[:-1]), wanted[1:], reduction="sum") / count
        nats.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        total += float(nats.detach())
    return total


def _difference(found: torch.Tensor | None, scale: float, expected: torch.Tensor | None) -> float:
    """The norm of the difference over the norm."""
    assert found is not None
    assert expected is not None
    return float((found.double() / scale - expected).norm() / expected.norm())


def nf4_codes(rows: int, width: int) -> dict[str, float]:
    """The share of NF4 codes that differ between the CPU and the device, and how far the blocks' scales are off."""
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 0.02
    codes, scales = [], []
    for where in ("cpu", device()):
        packed, state = quantize_4bit(weight.to(where), blocksize=64, quant_type="nf4")
        halves = packed.view(torch.uint8).cpu().flatten()
        codes.append(torch.stack([halves >> 4, halves & 15]))
        scales.append(state.absmax.float().cpu())
    return {
        "codes": float(codes[0].numel()),
        "differing": float((codes[0] != codes[1]).float().mean()),
        "scale_difference": float(((scales[0] - scales[1]).abs() / scales[0]).max()),
    }


def isolation(kind: str, width: int, dropout: float, precisions: Sequence[ChosenPrecision]) -> list[dict[str, Any]]:
    """Whether packed documents are alone, forward and backward, in a model of two layers with each attention.

    Returns:
        For each `attention` and `precision`: `isolated`, None where the attention does not run here, and the `reason`,
        empty if documents are isolated.
    """
    found = []
    for attention in (*get_args(Attention), SHARED_MASK):
        model = _two_layers(kind, width, dropout).to(device())
        for precision in precisions:
            isolated, reason = _isolated(model, attention, precision)
            found.append({"attention": attention, "precision": precision, "isolated": isolated, "reason": reason})
    return found


def _isolated(model: Any, attention: str, precision: ChosenPrecision) -> tuple[bool | None, str]:
    needed = _KERNELS.get(attention)
    if needed and not kernels_of(model)[needed]:
        return None, "this model cannot use it with what is installed"
    if device() == "cpu" and (needed in ("flash", "flex") or precision != "fp32"):
        return None, "needs a CUDA device"
    if precision == "fp32" and attention == "flash_attention_2":
        return None, "takes 16-bit values only"
    try:
        model.set_attn_implementation(VARLEN if attention == "varlen" else attention)
        check_isolation(model, precision)
    except FieldError as error:
        return False, error.what
    except Exception as error:  # noqa: BLE001  peftkit takes the next attention then
        return None, f"does not run: {' '.join(str(error).split())[:200]}"
    return True, ""


def chosen_attention(kind: str, width: int, dropout: float) -> dict[str, Any]:
    """The attention that peftkit chooses for packed documents, and the one that it tries first."""
    hardware = detect_hardware()
    precision = choose_precision("auto", hardware).choice
    model = _two_layers(kind, width, dropout).to(device())
    first = choose_attention(hardware, "float32", precision, packed=True, **kernels_of(model)).choice[0]
    return {"first": first, "chosen": use_attention(model, hardware, "float32", precision), "precision": precision}


def _two_layers(kind: str, width: int, dropout: float) -> Any:
    """A GPT-2 or Llama with heads of 64 and random weights."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(0)
    heads = width // 64
    sizes: dict[str, Any] = {"vocab_size": 512, "num_attention_heads": heads, "num_hidden_layers": 2}
    sizes |= {"hidden_size": width, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config: Any = GPT2Config(**sizes, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    else:
        grouped = {"num_key_value_heads": heads // 2, "intermediate_size": 2 * width}
        config = LlamaConfig(**sizes, **grouped, attention_dropout=dropout)
    return AutoModelForCausalLM.from_config(config)
