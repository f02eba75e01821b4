"""Attention over packed documents computes each as if it were alone, forward and backward, by each kernel."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    set_seed,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftkit.data.collator import Collator
from peftkit.models.attention_kernels import (
    BOUNDS,
    SHARED_MASK,
    VARLEN,
    bounds_of,
    fits_varlen,
    flash_kernel,
    has_varlen,
)
from peftkit.models.base import locate_base
from peftkit.recipe.schema import Base

Calls = list[dict[str, Any]]

DOCUMENTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18]], [[20, 21, 22, 23], [24]]
"""Two rows of packed documents, of 16 and 5 tokens: the second is padded."""

ROPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def gpt2(dropout: float = 0.0) -> Any:
    config = GPT2Config(
        vocab_size=64, n_positions=512, n_embd=32, n_layer=2, n_head=4, attn_pdrop=dropout,
        resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama with grouped queries": lambda: LlamaForCausalLM(LlamaConfig(**ROPE)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**ROPE, sliding_window=3)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    set_seed(0)
    made = MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)  # as a new one's, attention is nearly a mean
    return made


def batch(*, bounds: bool) -> dict[str, torch.Tensor]:
    rows = []
    for documents in DOCUMENTS:
        ids = np.array([token for document in documents for token in document], dtype=np.int32)
        places = np.array([place for document in documents for place in range(len(document))], dtype=np.int32)
        rows.append({"input_ids": ids, "labels": ids, "position_ids": places})
    made = Collator(0, bounds=bounds)(rows)
    return {name: made[name] for name in ("input_ids", "position_ids", BOUNDS) if name in made}


def packed_losses(model: Any, *, bounds: bool = True) -> list[torch.Tensor]:
    """Of each document, in a batch of packed rows."""
    inputs = batch(bounds=bounds)
    logits = model(**inputs, use_cache=False).logits
    losses = []
    for row, documents in enumerate(DOCUMENTS):
        first = 0
        for document in documents:
            last = first + len(document)
            wanted = inputs["input_ids"][row, first + 1 : last]
            losses.append(cross_entropy(logits[row, first : last - 1], wanted, reduction="sum"))
            first = last
    return losses


def losses_alone(model: Any) -> list[torch.Tensor]:
    """Of each document, in a row of its own."""
    ids = [torch.tensor([document]) for documents in DOCUMENTS for document in documents]
    return [cross_entropy(model(input_ids=row).logits[0, :-1], row[0, 1:], reduction="sum") for row in ids]


def gradients(model: Any, losses: list[torch.Tensor]) -> torch.Tensor:
    """Of all weights, one after the other."""
    found = torch.autograd.grad(torch.stack(losses).sum(), list(model.parameters()))
    return torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize("bounds", [True, False], ids=["bounds of the batch", "bounds found from positions"])
def test_packed_documents_have_the_loss_and_gradients_that_they_have_alone(
    model: Any, bounds: bool, varlen_on_cpu: Calls
) -> None:
    model.set_attn_implementation("eager")
    alone = losses_alone(model)
    expected = gradients(model, alone)

    model.set_attn_implementation(VARLEN)
    packed = packed_losses(model, bounds=bounds)
    found = gradients(model, packed)

    assert len(varlen_on_cpu) == 2
    assert torch.stack(packed).tolist() == pytest.approx(torch.stack(alone).tolist(), rel=1e-5, abs=1e-6)
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


def test_the_kernel_gets_all_rows_as_one_and_padding_as_a_document_and_no_mask(
    model: Any, varlen_on_cpu: Calls
) -> None:
    model.set_attn_implementation(VARLEN)

    packed_losses(model)

    call = varlen_on_cpu[0]
    assert call["bounds"] == [0, 9, 11, 16, 20, 21, 32]  # eleven tokens of padding
    assert call["longest"] == 16
    assert call["query"].shape == (32, 4, 8)
    assert call["key"].shape == (32, getattr(model.config, "num_key_value_heads", 4), 8)
    assert VARLEN not in ALL_MASK_ATTENTION_FUNCTIONS


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what makes a program wait for a GPU."""

    NAMES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in self.NAMES
        return func(*args, **(kwargs or {}))


def test_with_the_bounds_of_the_batch_nothing_waits_for_a_gpu(varlen_on_cpu: Calls) -> None:
    model = gpt2().eval()
    inputs = batch(bounds=True)
    counts = {}
    for name in ("sdpa", VARLEN):
        model.set_attn_implementation(name)
        with Waits() as waits, torch.no_grad():
            model(**inputs, use_cache=False)
        counts[name] = waits.count

    assert len(varlen_on_cpu) == 2
    assert counts == {"sdpa": 1, VARLEN: 0}


def test_dropout_is_the_kernels_own_and_only_while_training(varlen_on_cpu: Calls) -> None:
    model = gpt2(dropout=0.25)
    model.set_attn_implementation(VARLEN)

    packed_losses(model.train())
    packed_losses(model.eval())

    assert [call["dropout"] for call in varlen_on_cpu] == [0.25, 0.25, 0.0, 0.0]


def test_under_autocast_the_kernel_gets_sixteen_bits_of_a_float32_base(varlen_on_cpu: Calls) -> None:
    model = MODELS["llama with grouped queries"]()  # its rotation makes queries and keys float32 again
    model.set_attn_implementation(VARLEN)

    with torch.autocast("cpu", torch.bfloat16):
        packed_losses(model)

    assert {call[name].dtype for call in varlen_on_cpu for name in ("query", "key")} == {torch.bfloat16}


def test_values_of_a_dtype_without_a_kernel_are_attended_to_by_sdpa(model: Any) -> None:
    model.set_attn_implementation("eager")
    alone = torch.stack(losses_alone(model)).tolist()

    model.set_attn_implementation(VARLEN)  # torch's, which has no float32
    packed = torch.stack(packed_losses(model)).tolist()

    assert packed == pytest.approx(alone, rel=1e-5, abs=1e-6)


@pytest.mark.usefixtures("varlen_on_cpu")
def test_a_models_own_scale_of_scores_is_used() -> None:
    query, key, value = torch.randn(3, 1, 4, 7, 8).unbind()
    options = {"attention_mask": None, "scaling": 0.7, "position_ids": torch.arange(7)[None]}

    found, _ = ALL_ATTENTION_FUNCTIONS[VARLEN](SimpleNamespace(), query, key, value, **options)

    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.7)
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"softcap": 50.0}, "has no softcap"),
        ({"s_aux": torch.zeros(2)}, "has no s_aux"),
        ({"position_bias": torch.zeros(1)}, "has no position_bias"),
        ({"is_causal": False}, "is causal"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "no other mask"),
        ({"key": torch.zeros(1, 2, 4, 8)}, "has no cache"),
        ({"position_ids": None}, "where documents begin"),
        ({"position_ids": torch.zeros(3, 1, 3)}, "where documents begin"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(changed: dict[str, Any], message: str) -> None:
    values = torch.zeros(1, 2, 3, 8)
    inputs = {"query": values, "key": values, "value": values, "attention_mask": None}
    inputs |= {"position_ids": torch.arange(3)[None]}

    with pytest.raises(ValueError, match=message):
        ALL_ATTENTION_FUNCTIONS[VARLEN](SimpleNamespace(), **inputs | changed)


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        (ROPE, True),
        (ROPE | {"head_dim": 256}, True),
        (ROPE | {"head_dim": 264}, False),
        (ROPE | {"head_dim": 20}, False),
        (ROPE | {"attention_chunk_size": 8}, False),
        (ROPE | {"attn_logit_softcapping": 50.0}, False),
    ],
)
def test_a_model_fits_by_its_heads_and_by_what_it_does_to_scores(config: dict[str, Any], fits: bool) -> None:
    with torch.device("meta"):
        assert fits_varlen(LlamaForCausalLM(LlamaConfig(**config))) is fits


def test_a_model_that_bounds_its_scores_does_not_fit() -> None:
    with torch.device("meta"):
        assert not fits_varlen(Gemma2ForCausalLM(Gemma2Config(**ROPE, head_dim=8)))


def test_torch_has_the_operator() -> None:
    assert has_varlen()


def test_bounds_are_where_positions_do_not_follow_and_where_rows_begin() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [5, 6, 3, 4, 5]])

    bounds = bounds_of(positions)

    assert bounds.tolist() == [0, 3, 5, 10, 12, 15]
    assert bounds.dtype == torch.int32


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("window", [-1, 63])
def test_the_operators_of_the_installed_torch_take_what_the_kernel_gives_them(dropout: float, window: int) -> None:
    query = torch.empty(300, 8, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    key, value = (torch.empty(300, 2, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    bounds = torch.empty(4, device="meta", dtype=torch.int32)

    found = flash_kernel(query, key, value, bounds, 300, scale=0.125, dropout=dropout, window=window)
    gradients = torch.autograd.grad(found.sum(), [query, key, value])

    assert found.shape == query.shape
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
on_a_gpu = [pytest.param("cuda", marks=gpu)]


@pytest.mark.parametrize("device", on_a_gpu)
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(12, 12, 64), (32, 8, 128), (8, 2, 96), (4, 4, 32)])
@pytest.mark.parametrize("window", [-1, 63])
def test_the_kernel_of_torch_computes_the_definition(
    device: str, heads: int, key_heads: int, width: int, window: int
) -> None:
    torch.manual_seed(0)
    bounds = torch.tensor([0, 7, 200, 201, 500], device=device, dtype=torch.int32)
    shapes = [(500, heads, width), (500, key_heads, width), (500, key_heads, width)]
    halves = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    wholes = [values.detach().double().requires_grad_() for values in halves]

    first, second, third = halves
    attended = flash_kernel(first, second, third, bounds, 500, scale=width**-0.5, dropout=0.0, window=window)
    documents = torch.searchsorted(bounds, torch.arange(500, device=device), right=True)
    back = torch.arange(500, device=device)[:, None] - torch.arange(500, device=device)[None, :]
    seen = (documents[:, None] == documents[None, :]) & (back >= 0) & ((back <= window) | (window < 0))
    query, key, value = (values.transpose(0, 1) for values in wholes)
    key, value = (values.repeat_interleave(heads // key_heads, 0) for values in (key, value))
    scores = (query @ key.transpose(-1, -2) * width**-0.5).masked_fill(~seen, -torch.inf)
    defined = (scores.softmax(-1) @ value).transpose(0, 1)
    wanted = torch.randn_like(defined)
    rounded = torch.autograd.grad(attended, halves, wanted.to(attended.dtype))
    exact = torch.autograd.grad(defined, wholes, wanted)
    found, expected = attended.detach(), defined.detach()

    assert float((found - expected).norm()) < 1e-2 * float(expected.norm())
    for half, whole in zip(rounded, exact, strict=True):
        assert float((half - whole).norm()) < 2e-2 * float(whole.norm())


@pytest.mark.parametrize("device", on_a_gpu)
def test_the_kernel_of_torch_drops_the_same_weights_backward_as_forward(device: str) -> None:
    torch.manual_seed(0)
    bounds = torch.tensor([0, 130, 300], device=device, dtype=torch.int32)
    query, key, value, other = torch.randn(4, 300, 4, 64, device=device, dtype=torch.float16).unbind()
    value.requires_grad_()

    def attended(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return flash_kernel(query, key, values, bounds, 300, scale=0.125, dropout=0.2, window=-1)

    found = attended(value)
    (gradient,) = torch.autograd.grad(found, value, torch.ones_like(found))
    found, value = found.detach(), value.detach()
    whole = flash_kernel(query, key, value, bounds, 300, scale=0.125, dropout=0.0, window=-1)

    # what comes out is linear in the values, with the weights that were kept
    assert float((gradient * other).double().sum()) == pytest.approx(float(attended(other).double().sum()), rel=1e-2)
    assert not torch.allclose(found, whole, atol=1e-2)
    assert float(found.double().mean()) == pytest.approx(float(whole.double().mean()), abs=2e-2)


TOKENS, LAYERS = 21, 3
POSITIONS = torch.cat([torch.arange(9), torch.arange(12)])[None].repeat(2, 1)


def mistral(**options: Any) -> Any:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, **options,
    )  # fmt: skip
    return MistralForCausalLM(config)


@pytest.fixture(params=["gpt2", "grouped queries", "a window"])
def masked(request: pytest.FixtureRequest) -> Any:
    set_seed(0)
    if request.param == "gpt2":
        base = locate_base(Base(model="builtin:tiny-gpt2"))
        return base.load(base.config(), "float32")
    return mistral(sliding_window=4 if request.param == "a window" else None)


def loss_of(masked: Any, **options: Any) -> torch.Tensor:
    ids = torch.arange(2 * TOKENS).view(2, TOKENS)
    logits = masked(input_ids=ids, use_cache=False, **options).logits
    return cross_entropy(logits.float().flatten(0, 1), ids.flatten())


def kept_masks(
    masked: Any, attention: str, precision: torch.dtype | None = None, positions: torch.Tensor = POSITIONS
) -> dict[int, torch.Tensor]:
    """Tensors [rows, any, tokens, tokens] that layers keep for the backward pass, by their memory."""
    kept = {}

    def look(values: torch.Tensor) -> torch.Tensor:
        if values.dim() == 4 and values.shape[-2:] == (TOKENS, TOKENS):
            kept[values.untyped_storage().data_ptr()] = values
        return values

    masked.set_attn_implementation(attention)
    half = torch.autocast("cpu", precision, enabled=precision is not None)
    with torch.autograd.graph.saved_tensors_hooks(look, lambda values: values), half:
        loss_of(masked, position_ids=positions)
    return kept


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_all_layers_keep_one_mask_where_each_kept_its_own(precision: torch.dtype | None) -> None:
    masked = mistral(sliding_window=None)

    apart, shared = (kept_masks(masked, name, precision) for name in ("sdpa", SHARED_MASK))

    (bias,) = shared.values()
    assert len(apart) == LAYERS
    assert bias.dtype == (precision or torch.float32)
    assert bias.untyped_storage().nbytes() == 2 * TOKENS * 24 * bias.element_size()  # rows of 24 values: aligned


def test_losses_and_gradients_are_those_of_sdpa(masked: Any) -> None:
    found = []
    for name in ("sdpa", SHARED_MASK):
        masked.set_attn_implementation(name)
        loss = loss_of(masked, position_ids=POSITIONS)
        found.append([loss, *torch.autograd.grad(loss, list(masked.parameters()))])

    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_rows_of_one_document_have_no_mask() -> None:
    masked = mistral(sliding_window=None)

    assert kept_masks(masked, SHARED_MASK, positions=torch.arange(TOKENS)[None]) == {}


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("tokens", [1000, 1024])
def test_a_gpu_keeps_one_mask_in_sixteen_bits(device: str, tokens: int) -> None:
    masked = mistral(sliding_window=None).to(device)
    positions = torch.cat([torch.arange(300), torch.arange(tokens - 300)])[None].to(device)
    ids = positions % 64
    held = {}
    for name in ("sdpa", SHARED_MASK):
        masked.set_attn_implementation(name)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with torch.autocast(device, torch.bfloat16):
            logits = masked(input_ids=ids, position_ids=positions, use_cache=False).logits
        held[name] = torch.cuda.memory_allocated() - before
        del logits

    mask_bytes = 2 * tokens * tokens
    assert held["sdpa"] - held[SHARED_MASK] > 0.8 * (LAYERS - 1) * mask_bytes
