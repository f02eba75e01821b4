"""The probe finds documents that see each other, in what a model computes and in its gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from peftkit.errors import FieldError
from peftkit.models.attention import check_isolation
from peftkit.models.base import locate_base
from peftkit.models.methods.lora import METHOD
from peftkit.planning.precision import ChosenPrecision
from peftkit.recipe.hyperparameters import Lora
from peftkit.recipe.schema import Base

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
