"""The best kernel for packed documents that works is taken, and proven to keep them apart; others are passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from peftkit.errors import FieldError
from peftkit.models.attention import (
    check_isolation,
    kernels_of,
    known_layout,
    plain_attention,
    takes_bounds,
    use_attention,
)
from peftkit.models.attention_kernels import SHARED_MASK, VARLEN, register_varlen
from peftkit.models.base import locate_base
from peftkit.models.methods.lora import METHOD
from peftkit.planning.decisions import ChosenPrecision, choose_attention
from peftkit.planning.hardware import Hardware
from peftkit.recipe.hyperparameters import Lora
from peftkit.recipe.schema import Base

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


Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def model() -> Any:
    base = locate_base(Base(model="builtin:tiny-gpt2"))
    config = base.config()
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.1
    return base.load(config, "float32")


def attention_that(change: Change) -> str:
    """The name of an attention by sdpa that changes what comes out, [rows, tokens, heads, width]."""

    def attend(*inputs: Any, **options: Any) -> tuple[torch.Tensor, None]:
        attended, _ = sdpa_attention_forward(*inputs, **options)
        return change(attended), None

    AttentionInterface.register("tried", attend)
    AttentionMaskInterface.register("tried", sdpa_mask)
    return "tried"


def summed_before(values: torch.Tensor) -> torch.Tensor:
    """Of all tokens before, whatever document they are of."""
    return values.cumsum(1) / values.shape[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("was_training", [True, False])
def test_gpt2_keeps_packed_documents_apart(model: Any, precision: ChosenPrecision, was_training: bool) -> None:
    check_isolation(model.train(was_training), precision)

    assert model.training is was_training


def test_neither_weights_nor_gradients_nor_random_numbers_are_changed(model: Any) -> None:
    before = {name: values.clone() for name, values in model.state_dict().items()}
    state = torch.get_rng_state()

    check_isolation(model)

    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_keeps_packed_documents_apart(model: Any, tmp_path: Path) -> None:
    lora = Lora(r=4, lora_dropout=0.1)

    check_isolation(METHOD.attach(model, lora, ["transformer.h.0.attn.c_attn"], tmp_path))


def test_a_forward_pass_that_mixes_documents_is_found(model: Any) -> None:
    model.set_attn_implementation(attention_that(lambda values: values + summed_before(values).detach()))

    with pytest.raises(FieldError, match="gpt2 lets packed documents see each other"):
        check_isolation(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_backward_pass_that_mixes_documents_is_found(model: Any, precision: ChosenPrecision) -> None:
    def leaking(values: torch.Tensor) -> torch.Tensor:
        other = summed_before(values)
        return values + (other - other.detach())  # which adds nothing

    model.set_attn_implementation(attention_that(leaking))

    with pytest.raises(FieldError, match="lets packed documents see each other"):
        check_isolation(model, precision)


def test_a_backward_pass_that_is_wrong_within_a_document_is_found(model: Any) -> None:
    def turned(values: torch.Tensor) -> torch.Tensor:
        return values + (values.roll(1, dims=-1) - values.roll(1, dims=-1).detach()) * (values.shape[1] > 8)

    model.set_attn_implementation(attention_that(turned))

    with pytest.raises(FieldError, match="lets packed documents see each other"):
        check_isolation(model)


def test_a_leak_through_dropout_is_found(model: Any) -> None:
    def leaking(values: torch.Tensor) -> torch.Tensor:
        return values + summed_before(values) if model.training else values

    model.set_attn_implementation(attention_that(leaking))

    with pytest.raises(FieldError, match="lets packed documents see each other"):
        check_isolation(model)


def test_numbers_that_are_not_finite_prove_nothing(model: Any) -> None:
    model.set_attn_implementation(attention_that(lambda values: values * torch.inf))

    with pytest.raises(FloatingPointError, match="not finite"):
        check_isolation(model)


class WithoutPositions(GPT2LMHeadModel):  # type: ignore[misc]
    """An architecture that does not look at positions."""

    def forward(self, position_ids: Any = None, **inputs: Any) -> Any:
        del position_ids
        return super().forward(**inputs)


def test_an_architecture_that_mixes_packed_documents_is_refused(model: Any) -> None:
    mixing = WithoutPositions(model.config)
    mixing.load_state_dict(model.state_dict())

    with pytest.raises(FieldError, match="lets packed documents see each other"):
        check_isolation(mixing)


MODELS = {
    "gpt2": GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=32, pad_token_id=0, bos_token_id=0,
                   eos_token_id=0)
    ).eval(),
    "llama": LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=16,
                    intermediate_size=16, vocab_size=40, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    ).eval(),
}  # fmt: skip
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0]])
TOGETHER = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1]])
ALONE = torch.arange(6).expand(2, 6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("positions", [None, ALONE, TOGETHER])
def test_a_known_layout_changes_no_logit(name: str, positions: torch.Tensor | None) -> None:
    model, inputs = MODELS[name], {"input_ids": IDS, "position_ids": positions, "use_cache": False}
    expected = model(**inputs).logits

    with known_layout(packed=positions is TOGETHER):
        logits = model(**inputs).logits

    assert torch.equal(logits, expected)


def test_after_the_block_models_look_again_whatever_happened_within() -> None:
    before = masking_utils.find_packed_sequence_indices, PreTrainedModel.warn_if_padding_and_no_attention_mask

    with pytest.raises(RuntimeError, match="a step"), known_layout(packed=True):
        raise RuntimeError("a step")

    assert before == (masking_utils.find_packed_sequence_indices, PreTrainedModel.warn_if_padding_and_no_attention_mask)
