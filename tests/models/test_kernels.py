"""What is computed faster is what was computed before: values, gradients, and chances."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)
from transformers.activations import NewGELUActivation
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from peftkit.models import attention_kernels
from peftkit.models.attention_kernels import dropout_attention, keep_mask
from peftkit.models.dtypes import exact_float32
from peftkit.models.kernels import (
    Dropout,
    RMSNorm,
    is_rms_norm,
    use_fast_kernels,
    use_lora_kernels,
    use_row_kernels,
)
from peftkit.models.outline import kept_for_backward
from peftkit.planning.hardware import Hardware

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
A100 = Hardware("cuda", "A100", 80 * 10**9, 1, 12, (8, 0))


def gpt2(dropout: float) -> Any:
    set_seed(0)
    config = GPT2Config(
        vocab_size=64,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return GPT2LMHeadModel(config)


def loss_and_gradients(model: Any, positions: torch.Tensor | None = None) -> list[torch.Tensor]:
    set_seed(1)
    model.zero_grad()
    ids = torch.randint(0, 64, (3, 24))
    loss = model(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def test_without_dropout_loss_and_gradients_are_the_stock_ones() -> None:
    stock = loss_and_gradients(gpt2(0.0).train())
    fast = gpt2(0.0).train()
    use_fast_kernels(fast, CPU)

    for wanted, found in zip(stock, loss_and_gradients(fast), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_in_evaluation_logits_are_the_stock_ones() -> None:
    stock, fast = gpt2(0.1).eval(), gpt2(0.1).eval()
    use_fast_kernels(fast, CPU)
    ids = torch.arange(20)[None]

    assert torch.allclose(fast(input_ids=ids).logits, stock(input_ids=ids).logits, rtol=1e-5, atol=1e-6)


def test_a_gpu_keeps_the_librarys_dropout_and_attention_and_computes_gelu_in_one_kernel() -> None:
    model = gpt2(0.1)
    before = [type(module) for module in model.modules()]
    use_fast_kernels(model, A100)

    after = [type(module) for module in model.modules()]
    assert after == [torch.nn.GELU if kind is NewGELUActivation else kind for kind in before]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "is_plain"), [(LlamaRMSNorm, True), (Qwen3RMSNorm, True), (GemmaRMSNorm, False), (nn.LayerNorm, False)]
)
def test_a_norm_is_judged_by_what_it_computes(kind: type[nn.Module], is_plain: bool) -> None:
    assert is_rms_norm(kind) is is_plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_rms_norm_in_one_kernel_and_no_less_exactly(dtype: torch.dtype) -> None:
    set_seed(0)
    stock = LlamaRMSNorm(64)
    stock.weight.data.normal_()
    fast = RMSNorm(stock.to(dtype))
    states = torch.randn(5, 64).to(dtype)
    exact = LlamaRMSNorm(64).double()
    exact.load_state_dict(stock.state_dict())
    expected = exact(states.double())

    def off(found: torch.Tensor) -> float:
        return float((found.double() - expected).norm().detach())

    assert off(fast(states)) <= 1.01 * off(stock(states))
    assert fast(states).dtype == dtype


def test_a_model_with_rms_norms_has_the_stock_loss_and_gradients_on_a_gpu() -> None:
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).train()
    stock = loss_and_gradients(model)
    use_fast_kernels(model, A100)

    assert sum(type(module) is RMSNorm for module in model.modules()) == 5
    for wanted, found in zip(stock, loss_and_gradients(model), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_nothing_that_is_saved_changes(tmp_path: Path) -> None:
    stock, fast = gpt2(0.1), gpt2(0.1)
    use_fast_kernels(fast, CPU)
    for name, model in (("stock", stock), ("fast", fast)):
        model.save_pretrained(tmp_path / name)

    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "fast" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5])
def test_as_many_numbers_are_dropped_as_was_asked_for_and_the_mean_stays(probability: float) -> None:
    set_seed(0)
    kept = Dropout(probability).train()(torch.ones(1000, 1001))

    share = float((kept == 0).float().mean())
    assert share == pytest.approx(probability, abs=0.003)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(kept.max()) == pytest.approx(1 / (1 - probability), rel=1e-4)


def test_what_is_dropped_is_drawn_by_the_seed_and_anew_each_time() -> None:
    set_seed(3)
    first, second = keep_mask((7, 5), 0.5), keep_mask((7, 5), 0.5)
    set_seed(3)

    assert torch.equal(keep_mask((7, 5), 0.5), first)
    assert not torch.equal(first, second)


def test_the_gradient_passes_where_the_number_did() -> None:
    values = torch.randn(40, 5, requires_grad=True)
    dropped = Dropout(0.4).train()(values)
    dropped.sum().backward()

    assert values.grad is not None
    assert torch.allclose(values.grad * values, dropped)


def test_dropout_does_nothing_outside_training() -> None:
    values = torch.randn(5)

    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0).train()(values) is values


def packed_mask(lengths: list[int]) -> torch.Tensor:
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (document[:, None] == document[None, :]) & torch.ones(len(document), len(document)).tril().bool()


@pytest.mark.parametrize("mask", ["causal", "of one row for all", "of each row"])
@pytest.mark.parametrize("at_once", [(256, 1 << 22), (5, 1), (5, 300)])
def test_attention_with_dropout_is_that_of_its_definition_in_values_and_gradients(
    mask: str, at_once: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_seed(0)
    rows, heads, tokens, width, dropout = 3, 2, 13, 8, 0.25
    query, key, value = (torch.randn(rows, heads, tokens, width, requires_grad=True) for _ in range(3))
    causal = torch.ones(tokens, tokens).tril().bool().expand(rows, 1, tokens, tokens)
    of_each = torch.stack([packed_mask(lengths) for lengths in ([13], [6, 7], [1, 4, 8])])[:, None]
    seen = {"causal": causal, "of one row for all": packed_mask([6, 7])[None, None], "of each row": of_each}[mask]
    keep = torch.rand(rows, heads, tokens, tokens) >= dropout
    monkeypatch.setattr(attention_kernels, "_QUERIES_AT_ONCE", at_once[0])
    monkeypatch.setattr(attention_kernels, "_SCORES_AT_ONCE", at_once[1])
    tiles = attention_kernels._tiles(query.detach())
    monkeypatch.setattr(attention_kernels, "keep_mask", lambda *_: keep[(tile := next(tiles))[0], :, tile[1], tile[2]])

    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~seen, float("-inf"))
    wanted = (scores.softmax(-1) * keep / (1 - dropout)) @ value
    direction = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, (query, key, value), direction)
    found = dropout_attention(query, key, value, None if mask == "causal" else seen, scaling=0.3, dropout=dropout)

    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(found, (query, key, value), direction), gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_packed_documents_stay_apart_in_training_with_dropout() -> None:
    model = gpt2(0.1).train()
    use_fast_kernels(model, CPU)
    positions = torch.arange(12).repeat(3, 2)
    ids = torch.randint(0, 64, (3, 24))
    changed = ids.clone()
    changed[:, :12] = 7

    def second_half(tokens: torch.Tensor) -> torch.Tensor:
        set_seed(5)
        logits: torch.Tensor = model(input_ids=tokens, position_ids=positions, use_cache=False).logits[:, 12:]
        return logits

    assert torch.allclose(second_half(ids), second_half(changed), atol=1e-6)


def test_training_with_dropout_learns_as_with_the_stock_kernels() -> None:
    ids = torch.arange(24)[None].repeat(4, 1)
    losses: dict[bool, list[float]] = {}
    for fast in (False, True):
        model = gpt2(0.1).train()
        if fast:
            use_fast_kernels(model, CPU)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses[fast] = []
        for _ in range(40):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses[fast].append(float(loss.detach()))

    assert losses[True][-1] < 0.5 * losses[True][0]
    assert losses[True][-1] == pytest.approx(losses[False][-1], abs=0.3)


GPU = Hardware("cuda", "A100", 80 * 10**9, 1, 12, (8, 0))  # beside which dropout stays torch's


def llama() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, attention_bias=True, **sizes))


def adapted_gpt2() -> Any:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, **none))


def in_4_bit() -> Any:
    model = llama()
    for layer in model.model.layers:
        own = layer.mlp.up_proj
        layer.mlp.up_proj = Linear4bit(own.in_features, own.out_features, bias=False, compute_dtype=torch.float32)
        layer.mlp.up_proj.load_state_dict({"weight": own.weight.data})
        layer.mlp.up_proj.to("cpu")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}  # as a base that was loaded in 4 bits has it
    return model


def with_lora(base: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    """The same adapted model twice: as PEFT has it, and with its layers on the kernel."""
    set_seed(0)
    values = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False, **options}
    stock = get_peft_model(base(), LoraConfig(fan_in_fan_out=base is adapted_gpt2, **values)).train()
    fast = copy.deepcopy(stock)
    use_lora_kernels(fast)
    return stock, fast


def named_gradients(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    set_seed(1)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), {name: gradient.double() for name, gradient in gradients.items()}


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


IDS = torch.arange(3 * 20).view(3, 20) % 61


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("base", [llama, adapted_gpt2, in_4_bit])
def test_loss_and_gradients_are_those_of_peft(base: Callable[[], Any], dropout: float) -> None:
    stock, fast = with_lora(base, lora_dropout=dropout)

    expected, gradients = named_gradients(stock, IDS)
    loss, found = named_gradients(fast, IDS)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.keys() == gradients.keys()
    assert max(off(found[name], gradients[name]) for name in gradients) < 2e-5


def gemma() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    return Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=64, num_key_value_heads=2, head_dim=16, **sizes))


ROWS = {
    llama: {"model.embed_tokens": [60, 5, 3], "lm_head": [60, 5, 3]},
    adapted_gpt2: {"transformer.wte": [60, 5, 3]},
    gemma: {"model.embed_tokens": [60, 5, 3]},  # whose embedding is scaled
}


@pytest.mark.parametrize("base", ROWS)
def test_rows_of_an_embedding_that_are_trained_alone_are_computed_as_by_peft(base: Callable[[], Any]) -> None:
    stock, _ = with_lora(base, trainable_token_indices=ROWS[base])
    for name, weight in stock.named_parameters():
        if "trainable_tokens" in name:
            nn.init.normal_(weight, std=0.5)
    fast = copy.deepcopy(stock)
    use_row_kernels(fast)

    expected, gradients = named_gradients(stock, IDS)
    loss, found = named_gradients(fast, IDS)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.keys() == gradients.keys()
    assert max(off(found[name], gradients[name]) for name in gradients) < 2e-5
    with torch.no_grad(), stock.disable_adapter(), fast.disable_adapter():
        assert torch.equal(fast(input_ids=IDS).logits, stock(input_ids=IDS).logits)
    merged = [model.merge_and_unload().state_dict() for model in (stock, fast)]
    assert all(torch.equal(tensor, merged[1][name]) for name, tensor in merged[0].items())


def test_rows_on_a_base_in_bf16_are_computed_exactly_in_float32() -> None:
    _, model = with_lora(llama, trainable_token_indices=ROWS[llama])
    use_row_kernels(model)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.float32 if weight.requires_grad else torch.bfloat16)
    model.eval()
    wide = copy.deepcopy(model).float()

    with torch.no_grad(), exact_float32(model):
        found = model(input_ids=IDS).logits

    for name, weight in wide.named_parameters():
        if "trainable_tokens" in name:
            weight.data = weight.data.bfloat16().float()  # as they are put among the base's
    assert off(found, wide(input_ids=IDS).logits.detach()) < 1e-6


def test_under_autocast_it_is_at_least_as_exact_as_peft() -> None:
    stock, fast = with_lora(llama)
    exact = copy.deepcopy(stock).double()
    _, gradients = named_gradients(exact, IDS)

    with torch.autocast("cpu", torch.bfloat16):
        _, of_peft = named_gradients(stock, IDS)
        _, found = named_gradients(fast, IDS)

    def mean(of: dict[str, torch.Tensor]) -> float:
        return sum(off(of[name], gradients[name]) for name in gradients) / len(gradients)

    assert mean(found) < 1.05 * mean(of_peft)


def test_it_keeps_less_for_the_backward_pass() -> None:
    stock, fast = with_lora(llama)

    def kept_bytes(model: Any) -> int:
        with kept_for_backward(model) as kept, torch.autocast("cpu", torch.bfloat16):
            model(input_ids=IDS, labels=IDS, use_cache=False)
        return sum(kept.values())

    assert kept_bytes(fast) < 0.85 * kept_bytes(stock)


OTHERS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "a bias of B": {"lora_bias": True},
    "trained biases of the base": {"bias": "all"},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_what_is_not_plain_lora_is_computed_by_peft_to_the_bit(options: dict[str, Any]) -> None:
    stock, fast = with_lora(adapted_gpt2, **options)

    expected, gradients = named_gradients(stock, IDS)
    loss, found = named_gradients(fast, IDS)

    assert loss.item() == expected.item()
    assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_two_adapters_at_once_are_computed_by_peft_to_the_bit() -> None:
    stock, fast = with_lora(llama)
    for model in (stock, fast):
        set_seed(2)
        model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])

    assert named_gradients(fast, IDS)[0].item() == named_gradients(stock, IDS)[0].item()


def test_in_evaluation_and_without_its_adapter_a_model_is_computed_by_peft_to_the_bit() -> None:
    stock, fast = (model.eval() for model in with_lora(llama))

    with torch.no_grad(), stock.disable_adapter(), fast.disable_adapter():
        assert torch.equal(fast(input_ids=IDS).logits, stock(input_ids=IDS).logits)
    with torch.no_grad():
        assert torch.equal(fast(input_ids=IDS).logits, stock(input_ids=IDS).logits)


def test_a_frozen_input_costs_no_gradient() -> None:
    set_seed(0)
    stock = get_peft_model(nn.Sequential(nn.Linear(8, 6)), LoraConfig(r=2, target_modules=["0"]))
    use_lora_kernels(stock)
    values = torch.randn(5, 8)

    stock(values).sum().backward()

    assert values.grad is None
    assert stock.base_model.model[0].lora_B["default"].weight.grad is not None


def test_it_is_among_the_fast_kernels() -> None:
    stock, _ = with_lora(adapted_gpt2)
    fast = copy.deepcopy(stock)
    use_fast_kernels(fast, GPU)

    def adapted(model: Any) -> list[str]:
        return [type(module).__module__ for module in model.modules() if hasattr(module, "lora_A")]

    assert set(adapted(stock)) == {"peft.tuners.lora.layer"}
    assert set(adapted(fast)) == {"peftkit.models.kernels"}
