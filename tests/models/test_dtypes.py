"""Weights are held in the dtypes that training needs, and methods are measured in the same one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GPT2Config, LlamaConfig, PhiConfig, set_seed

from peftkit.models import dtypes
from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.dtypes import computing, exact_float32, float32_modules, hold
from peftkit.models.loss import evaluate_loss, row_losses
from peftkit.models.methods.lora import METHOD
from peftkit.models.quantization import load_base, quantised_modules
from peftkit.recipe.hyperparameters import Lora, Quantization
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Base
from peftkit.training.prepare import prepare_run

SHAPES = {
    "gpt2, tied": GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=260, n_positions=64, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=32, intermediate_size=64,
        vocab_size=260, attention_bias=True, bos_token_id=0, eos_token_id=0),
    "gemma 2, which bounds its logits": Gemma2Config(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=32, head_dim=16,
        intermediate_size=64, vocab_size=260, bos_token_id=0, eos_token_id=0),
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocatedBase:
    folder = tmp_path_factory.mktemp("base")
    set_seed(0)
    AutoModelForCausalLM.from_config(SHAPES[request.param]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate_base(Base(model="builtin:tiny-gpt2")).folder).save_pretrained(folder)
    return LocatedBase(str(folder), folder, None)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(260, (4, 32), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def dtypes_of(model: Any) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def test_beside_fp16_linear_layers_are_held_in_it_and_embeddings_and_norms_in_float32(base: LocatedBase) -> None:
    model = base.load(base.config(), "float16")
    exact = base.load(base.config(), "float32")

    found = dtypes_of(model)

    kept = [name for name, dtype in found.items() if dtype == torch.float32]
    assert {name for name in found if "proj" in name or "c_attn" in name} <= set(found) - set(kept)
    assert {name for name in found if any(word in name for word in ("embed", "wte", "wpe", "norm", "ln_"))} <= set(kept)
    weights = dict(exact.named_parameters())
    assert all(torch.equal(dict(model.named_parameters())[name], weights[name]) for name in kept)  # never rounded


def test_the_structure_is_held_as_the_model_is(base: LocatedBase) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        structure = hold(base.structure(base.config()), dtype)

        assert dtypes_of(structure) == dtypes_of(base.load(base.config(), dtype))


def test_loading_in_fp16_leaves_the_model_class_as_it_was(base: LocatedBase) -> None:
    kind = type(base.structure(base.config()))
    before = kind._keep_in_fp32_modules

    base.load(base.config(), "float16")

    assert kind._keep_in_fp32_modules == before


def test_a_quantised_base_computes_in_fp16_and_keeps_its_norms_exact(base: LocatedBase) -> None:
    model = load_base(base, base.config(), Quantization(), "float16", "cpu")

    names = float32_modules(base.structure(base.config()), "float16")

    kept = [model.get_submodule(name) for name in names]
    assert all(weight.dtype == torch.float32 for module in kept for weight in module.parameters(recurse=False))
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert {layer.compute_dtype for layer in layers} == {torch.float16}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "lora", [Lora(bias="all"), Lora(bias="lora_only"), Lora(use_dora=True), Lora(modules_to_save=["lm_head"])]
)
def test_all_that_is_trained_is_float32(lora: Lora, dtype: str, base: LocatedBase) -> None:
    model = base.load(base.config(), dtype)

    model = METHOD.attach(model, lora, METHOD.targets(model, Lora(target_modules="all-linear")), base.folder)

    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    with computing(model):
        model(**batch()).loss.backward()
    assert all(weight.grad is not None for weight in trained.values())


@pytest.fixture
def bf16_weights(base: LocatedBase) -> tuple[Any, Any]:
    """A base held in float32 and one held in bf16, of the same weights, all of which bf16 can hold."""
    held = base.load(base.config(), "bfloat16")
    exact = base.load(base.config(), "float32")
    exact.load_state_dict({name: value.float() for name, value in held.state_dict().items()})
    return exact, held


# Gemma's embedding is multiplied with a number that is rounded to the dtype that it is held in
@pytest.mark.parametrize("base", ["gpt2, tied", "llama"], indirect=True, scope="module")
def test_the_dtype_that_weights_are_held_in_changes_no_measured_loss(bf16_weights: tuple[Any, Any]) -> None:
    exact, held = bf16_weights
    batches = [batch()]

    found = [evaluate_loss(model, batches, "bf16").mean for model in (exact, held)]

    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_logits_far_from_zero_are_measured_exactly(base: LocatedBase) -> None:
    model = base.load(base.config(), "float32")
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full((260,), -100.0))  # the same for each token: no loss changes
    inputs = batch()

    ((nats, tokens),) = row_losses(model, [inputs], "bf16")

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(input_ids=inputs["input_ids"]).last_hidden_state
    logits = hidden.bfloat16().double() @ head.weight.detach().bfloat16().double().T - 100
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    wanted = functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    assert float(nats.sum() / tokens.sum()) == pytest.approx(float(wanted), rel=1e-5)


def test_a_model_in_float32_computes_as_it_is(base: LocatedBase) -> None:
    model = base.load(base.config(), "float32")

    with computing(model):
        assert not torch.is_autocast_enabled("cpu")


SMALL = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=600, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=16, intermediate_size=32,
        vocab_size=600, bos_token_id=0, eos_token_id=0),
    "phi, whose head has a bias": PhiConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=32, vocab_size=600,
        bos_token_id=0, eos_token_id=0),
}  # fmt: skip
IDS = torch.arange(40)[None]


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", SMALL)
def test_half_precision_weights_give_the_logits_of_the_same_numbers_in_float32(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "WIDENED_BYTES", 5000)  # a head in several parts
    torch.manual_seed(0)
    half = AutoModelForCausalLM.from_config(copy.deepcopy(SMALL[kind])).to(dtype)
    whole = copy.deepcopy(half).float()
    before = {name: (id(weight), weight.dtype) for name, weight in half.named_parameters()}
    rounded = logits_of(half)

    with exact_float32(half):
        found = logits_of(half)

    expected = logits_of(whole)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    assert {name: (id(weight), weight.dtype) for name, weight in half.named_parameters()} == before
    assert torch.equal(logits_of(half), rounded)


def test_a_frozen_bias_that_was_rounded_in_place_is_the_bases_own_meanwhile(recipe_path: Path) -> None:
    job = prepare_run(load_recipe(recipe_path, method="qlora"))
    model = job.load()
    with exact_float32(model):
        expected = logits_of(model)

    for module in quantised_modules(model):
        module.compute_dtype = torch.bfloat16  # as on a GPU, with biases that were loaded in float32
    logits_of(model)
    rounded = [module.bias for module in quantised_modules(model)]

    assert {bias.dtype for bias in rounded} == {torch.bfloat16}
    with exact_float32(model):
        assert torch.equal(logits_of(model), expected)
    assert all(module.bias is bias for module, bias in zip(quantised_modules(model), rounded, strict=True))
