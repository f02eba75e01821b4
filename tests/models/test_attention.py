"""The best kernel for packed documents that works is taken; one that fails, in whatever way, is passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peftkit.models.attention import kernels_of, plain_attention, takes_bounds, use_attention
from peftkit.models.attention_kernels import SHARED_MASK, VARLEN, register_varlen
from peftkit.planning.decisions import choose_attention
from peftkit.planning.hardware import Hardware

Calls = list[dict[str, Any]]

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
T4 = Hardware("cuda", "T4", 16 * 10**9, 1, 12, (7, 5))
A100 = Hardware("cuda", "A100", 80 * 10**9, 1, 12, (8, 0))


@pytest.fixture
def gpt2() -> Any:
    """With the dropout that it was published with."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))


@pytest.fixture
def llama() -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_a_cpu_takes_the_attention_of_torch(llama: Any) -> None:
    assert use_attention(llama, CPU, "float32", "fp32") == "sdpa"
    assert llama.config._attn_implementation == "sdpa"


def test_gpt2_with_its_dropout_takes_varlen_attention_on_an_ampere(gpt2: Any, varlen_on_cpu: Calls) -> None:
    assert choose_attention(A100, "bfloat16", "bf16", packed=True, **kernels_of(gpt2)).choice == ("varlen", "sdpa")

    assert use_attention(gpt2, A100, "float32", "bf16") == "varlen"
    assert gpt2.config._attn_implementation == VARLEN
    assert takes_bounds(gpt2)
    assert {call["query"].dtype for call in varlen_on_cpu} == {torch.bfloat16}
    assert {call["dropout"] for call in varlen_on_cpu} == {0.0, 0.1}


@pytest.mark.usefixtures("varlen_on_cpu")
def test_llama_takes_varlen_attention_before_flex_attention(llama: Any) -> None:
    assert kernels_of(llama)["flex"]

    assert use_attention(llama, A100, "float32", "bf16") == "varlen"


def test_a_kernel_that_is_not_there_is_passed_over_and_all_layers_share_a_mask(
    gpt2: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert use_attention(gpt2, A100, "float32", "bf16") == "sdpa"  # on a CPU, torch has no kernel for varlen

    line = capsys.readouterr().err.replace("\n", " ")
    assert "attention varlen does not work here (Could not run 'aten::_flash_attention_forward'" in line
    assert "trying the next" in line
    assert gpt2.config._attn_implementation == SHARED_MASK
    assert not takes_bounds(gpt2)


@pytest.mark.parametrize("error", [RuntimeError("no compiler"), AssertionError(), KeyError("ptxas"), OSError("no gcc")])
def test_whatever_a_kernel_raises_it_is_passed_over(
    error: Exception, gpt2: Any, varlen_on_cpu: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> torch.Tensor:
        raise error

    register_varlen(failing, (torch.bfloat16,))

    assert use_attention(gpt2, A100, "float32", "bf16") == "sdpa"
    assert f"varlen does not work here ({str(error) or 'AssertionError'}" in capsys.readouterr().err.replace("\n", " ")
    assert varlen_on_cpu == []


def test_a_kernel_that_lets_documents_see_each_other_is_passed_over(
    gpt2: Any, varlen_on_cpu: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    def mixing(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return query.cumsum(0)

    register_varlen(mixing, (torch.bfloat16,))

    assert use_attention(gpt2, A100, "float32", "bf16") == "sdpa"
    assert "lets packed documents see each other" in capsys.readouterr().err.replace("\n", " ")
    assert varlen_on_cpu == []


def test_an_older_gpu_shares_a_mask_between_layers(gpt2: Any) -> None:
    assert use_attention(gpt2, T4, "float32", "fp32") == "sdpa"
    assert gpt2.config._attn_implementation == SHARED_MASK


@pytest.mark.parametrize("name", [VARLEN, SHARED_MASK, "flex_attention"])
def test_a_model_attends_by_sdpa_within_a_block_and_as_before_after_it(name: str, llama: Any) -> None:
    llama.set_attn_implementation(name)

    def within() -> None:
        with plain_attention(llama):
            raise ValueError(llama.config._attn_implementation)

    with pytest.raises(ValueError, match=r"^sdpa$"):
        within()
    assert llama.config._attn_implementation == name


def test_a_model_that_packing_has_not_changed_stays_as_it_is(llama: Any) -> None:
    llama.set_attn_implementation("eager")

    with plain_attention(llama):
        assert llama.config._attn_implementation == "eager"


def test_a_model_that_overflows_is_left_to_training_to_report(gpt2: Any) -> None:
    with torch.no_grad():
        gpt2.lm_head.weight.fill_(torch.inf)

    assert use_attention(gpt2, T4, "float32", "fp32") == "sdpa"


def test_too_little_memory_for_the_check_is_reported(gpt2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    gpt2.register_forward_pre_hook(failing)

    assert use_attention(gpt2, T4, "float32", "fp32") == "sdpa"
    assert "too little memory to check" in capsys.readouterr().err
