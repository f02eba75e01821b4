"""Adapters go where the recipe says, and nowhere that could not be merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from peftkit.errors import FieldError
from peftkit.models.attach import count_parameters
from peftkit.models.base import LocatedBase
from peftkit.models.methods.full import METHOD as FULL
from peftkit.models.methods.lora import METHOD
from peftkit.recipe.hyperparameters import Lora
from tests import zoo

MADE = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.5"), reason="this version cannot make the configuration"
)
NEWER = [pytest.param(name, marks=MADE) for name in ("phimoe", "falcon_h1")]


def small(kind: str = "gpt2", **changes: Any) -> Any:
    if kind == "gpt2":
        config: Any = GPT2Config(
            n_layer=2, n_head=2, n_embd=8, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0
        )
    else:
        config = LlamaConfig(
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=8, intermediate_size=16,
            vocab_size=32, bos_token_id=0, eos_token_id=0, **changes)  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def resolve_targets(structure: Any, wanted: Any) -> list[str]:
    return METHOD.targets(structure, Lora(target_modules=wanted))


def test_auto_is_gpt2s_attention_input() -> None:
    assert resolve_targets(small(), "auto") == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


def test_auto_is_llamas_query_and_value() -> None:
    assert {name.rpartition(".")[2] for name in resolve_targets(small("llama"), "auto")} == {"q_proj", "v_proj"}


def test_all_linear_is_every_conv1d_but_not_the_head() -> None:
    kinds = {name.partition(".h.0.")[2] for name in resolve_targets(small(), "all-linear") if ".0." in name}

    assert kinds == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("bloom", {"query_key_value"}), ("falcon", {"query_key_value"}), ("mpt", {"Wqkv"}), ("codegen", {"qkv_proj"}),
        ("gpt_bigcode", {"c_attn"}), ("phi3", {"qkv_proj"}), ("openai-gpt", {"c_attn"}), ("ctrl", {"Wq", "Wk", "Wv"}),
        ("deepseek_v3", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}), ("jetmoe", {"kv_proj"}),
        ("mamba2", {"in_proj"}), ("phi", {"q_proj", "v_proj"}),
    ],
)  # fmt: skip
def test_auto_is_what_attention_computes_from_hidden_states(name: str, ends: set[str], tmp_path: Path) -> None:
    zoo.make(name, tmp_path)
    base = LocatedBase(name, tmp_path, None)

    found = resolve_targets(base.structure(base.config()), "auto")

    assert {target.rpartition(".")[2] for target in found} == ends


def test_what_rwkv_rescales_and_what_sees_images_are_left_out(tmp_path: Path) -> None:
    found = {}
    for name in ("rwkv", "gemma3"):
        zoo.make(name, tmp_path / name)
        base = LocatedBase(name, tmp_path / name, None)
        found[name] = resolve_targets(base.structure(base.config()), "all-linear")

    assert not [target for target in found["rwkv"] if target.endswith(("attention.output", "feed_forward.value"))]
    assert not [target for target in found["gemma3"] if "language_model" not in target]


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next", "falcon_mamba", *NEWER])
def test_all_linear_is_what_peft_puts_an_adapter_on_in_each_architecture(name: str, tmp_path: Path) -> None:
    zoo.make(name, tmp_path)
    base, settings = LocatedBase(name, tmp_path, None), Lora(target_modules="all-linear", lora_dropout=0)
    targets = METHOD.targets(base.structure(base.config()), settings)

    with torch.device("meta"):
        model = METHOD.attach(base.structure(base.config()), settings, targets, tmp_path)

    assert targets
    assert sorted(model.base_model.targeted_module_names) == sorted(targets)
    assert not model.base_model.targeted_parameter_names


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("deepseek_v3", "down_proj", "weights of the experts"),
        ("mamba", "out_proj", "incompatible with Mamba"),
        pytest.param("phimoe", "router", "matches no module", marks=MADE),
    ],
)
def test_what_peft_cannot_adapt_is_refused_with_its_reason(name: str, module: str, words: str, tmp_path: Path) -> None:
    zoo.make(name, tmp_path)
    base, settings = LocatedBase(name, tmp_path, None), Lora(target_modules=[module])

    with pytest.raises(FieldError, match=words):
        METHOD.targets(base.structure(base.config()), settings)


@MADE
def test_full_training_has_an_effect_where_no_weight_is_a_vector(tmp_path: Path) -> None:
    model = zoo.make("olmo", tmp_path)
    before = FULL.state(model)
    assert not FULL.has_effect(model, before)

    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1

    assert FULL.has_effect(model, before)


def test_a_longer_name_tells_two_layers_apart() -> None:
    assert len(resolve_targets(small(), ["c_proj"])) == 4
    assert resolve_targets(small(), ["attn.c_proj"]) == [f"transformer.h.{layer}.attn.c_proj" for layer in (0, 1)]


def test_a_regular_expression_is_over_whole_names() -> None:
    assert resolve_targets(small(), r".*\.1\.mlp\.c_(fc|proj)") == [
        f"transformer.h.1.mlp.c_{end}" for end in ("fc", "proj")
    ]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["c_attn", "q_proj"], "'q_proj' matches no module"),
        (".*nothing.*", "matches no module"),
        ("c_(attn", "is no regular expression"),
        ([], "is empty"),
        (["wte"], "wte is tied"),
        (["lm_head"], "lm_head is tied"),
    ],
)
def test_targets_that_cannot_be_are_an_error_that_lists_what_the_model_has(targets: Any, words: str) -> None:
    with pytest.raises(FieldError, match=words) as error:
        resolve_targets(small(), targets)

    assert "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj" in str(error.value)


def test_an_untied_head_may_have_an_adapter() -> None:
    assert resolve_targets(small("llama", tie_word_embeddings=False), ["lm_head"]) == ["lm_head"]


def test_a_new_adapter_has_no_effect_until_its_b_moves() -> None:
    model = AutoModelForCausalLM.from_config(small().config)
    adapted = METHOD.attach(model, Lora(r=2), resolve_targets(model, "auto"), Path("somewhere"))

    before = METHOD.has_effect(adapted, {})
    next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).data.fill_(0.1)

    assert not before
    assert METHOD.has_effect(adapted, {})
    assert count_parameters(adapted)[0] == 2 * (2 * 8 + 2 * 24)
    assert adapted.peft_config["default"].base_model_name_or_path == "somewhere"
