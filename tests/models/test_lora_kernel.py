"""Linear layers with LoRA give what PEFT's own modules give, in fewer operations, and leave the rest to PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, set_seed

from peftkit.models.kernels import use_fast_kernels, use_lora_kernels
from peftkit.models.outline import kept_for_backward
from peftkit.planning.hardware import Hardware

GPU = Hardware("cuda", "A100", 80 * 10**9, 1, 12, (8, 0))  # beside which dropout stays torch's


def llama() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, attention_bias=True, **sizes))


def gpt2() -> Any:
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
    stock = get_peft_model(base(), LoraConfig(fan_in_fan_out=base is gpt2, **values)).train()
    fast = copy.deepcopy(stock)
    use_lora_kernels(fast)
    return stock, fast


def loss_and_gradients(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
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
@pytest.mark.parametrize("base", [llama, gpt2, in_4_bit])
def test_loss_and_gradients_are_those_of_peft(base: Callable[[], Any], dropout: float) -> None:
    stock, fast = with_lora(base, lora_dropout=dropout)

    expected, gradients = loss_and_gradients(stock, IDS)
    loss, found = loss_and_gradients(fast, IDS)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.keys() == gradients.keys()
    assert max(off(found[name], gradients[name]) for name in gradients) < 2e-5


def test_under_autocast_it_is_at_least_as_exact_as_peft() -> None:
    stock, fast = with_lora(llama)
    exact = copy.deepcopy(stock).double()
    _, gradients = loss_and_gradients(exact, IDS)

    with torch.autocast("cpu", torch.bfloat16):
        _, of_peft = loss_and_gradients(stock, IDS)
        _, found = loss_and_gradients(fast, IDS)

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
    stock, fast = with_lora(gpt2, **options)

    expected, gradients = loss_and_gradients(stock, IDS)
    loss, found = loss_and_gradients(fast, IDS)

    assert loss.item() == expected.item()
    assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_two_adapters_at_once_are_computed_by_peft_to_the_bit() -> None:
    stock, fast = with_lora(llama)
    for model in (stock, fast):
        set_seed(2)
        model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])

    assert loss_and_gradients(fast, IDS)[0].item() == loss_and_gradients(stock, IDS)[0].item()


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
    stock, _ = with_lora(gpt2)
    fast = copy.deepcopy(stock)
    use_fast_kernels(fast, GPU)

    def adapted(model: Any) -> list[str]:
        return [type(module).__module__ for module in model.modules() if hasattr(module, "lora_A")]

    assert set(adapted(stock)) == {"peft.tuners.lora.layer"}
    assert set(adapted(fast)) == {"peftkit.models.kernels"}
