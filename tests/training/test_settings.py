"""Each argument of a library that a recipe may set changes something, which is named here, or has a reason."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, set_seed

from peftkit.errors import FieldError, RecipeError
from peftkit.models.base import locate_base
from peftkit.models.methods.lora import METHOD
from peftkit.models.outline import held_bytes
from peftkit.models.quantization import load_base, quantised_modules
from peftkit.models.start import with_dropout
from peftkit.recipe.hyperparameters import Lora, Quantization, Training
from peftkit.recipe.libraries import BITSANDBYTES_CONFIG, LORA_CONFIG, TRAINING_ARGUMENTS, installed_arguments
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Base
from peftkit.training.run import run
from peftkit.training.trainer import TokenTrainer
from tests import zoo

LORA: dict[str, tuple[Any, str]] = {
    "r": (2, "ranks"),
    "lora_alpha": (32, "scales"),
    "lora_dropout": (0.5, "dropout"),
    "target_modules": (["c_fc"], "modules"),
    "exclude_modules": (["h.1.attn.c_attn"], "modules"),
    "layers_to_transform": ([1], "modules"),
    "layers_pattern": ("h", "modules"),
    "rank_pattern": ({"h.1.attn.c_attn": 2}, "ranks"),
    "alpha_pattern": ({"h.1.attn.c_attn": 4}, "scales"),
    "bias": ("all", "trained"),
    "lora_bias": (True, "trained"),
    "modules_to_save": (["ln_f"], "trained"),
    "use_rslora": (True, "scales"),
    "use_dora": (True, "trained"),
    "init_lora_weights": ("gaussian", "beginning"),
}
LORA_REASONS = {"ensure_weight_tying": "has a part only where a tied embedding is saved whole, which is refused"}
BASE = {"layers_pattern": {"layers_to_transform": [1]}}
"""What a field needs beside it."""

QUANTIZATION: dict[str, tuple[dict[str, Any], str]] = {
    "load_in_4bit": ({"load_in_4bit": True}, "bytes"),
    "load_in_8bit": ({"load_in_8bit": True}, "bytes"),
    "bnb_4bit_quant_type": ({"bnb_4bit_quant_type": "fp4"}, "numbers"),
    "bnb_4bit_use_double_quant": ({"bnb_4bit_use_double_quant": False}, "scales"),
    "bnb_4bit_quant_storage": ({"bnb_4bit_quant_storage": "float16"}, "storage"),
    "llm_int8_skip_modules": ({"llm_int8_skip_modules": ["c_attn"]}, "modules"),
    "llm_int8_threshold": ({"load_in_8bit": True, "llm_int8_threshold": 1.0}, "threshold"),
    "llm_int8_has_fp16_weight": ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "storage"),
}

TRAINING_REASONS = {
    **dict.fromkeys(
        ("learning_rate", "seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim"),
        "tests of training see other weights",
    ),
    "fsdp": "peftkit shards the model itself",
    "average_tokens_across_devices": "several processes always weigh tokens alike",
    "greater_is_better": "has a part only with load_best_model_at_end",
    **dict.fromkeys(
        ("tf32", "log_level", "log_level_replica", "ddp_timeout", "torch_compile", "torch_compile_backend",
         "torch_compile_mode",
         "accelerator_config", "log_on_each_node", "logging_steps", "eval_steps", "per_device_eval_batch_size"),
        "TrainingArguments itself acts on it",
    ),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "the tracker reads it"
    ),
}  # fmt: skip


def adapted(**settings: Any) -> dict[str, Any]:
    """What an adapter on a small model is made of."""
    set_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0)
    model, lora = GPT2LMHeadModel(config), Lora.model_validate(settings)
    model = METHOD.attach(model, lora, METHOD.targets(model, lora), Path("base"))
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {
        "modules": sorted(layers),
        "ranks": [layer.r["default"] for layer in layers.values()],
        "scales": [layer.scaling["default"] for layer in layers.values()],
        "dropout": [str(layer.lora_dropout["default"]) for layer in layers.values()],
        "trained": sorted(trained),
        "beginning": [float(weight.detach().abs().sum()) for weight in trained.values()],
    }


@pytest.mark.parametrize("field", LORA)
def test_each_argument_of_lora_changes_the_adapter(field: str) -> None:
    value, changed = LORA[field]

    without, with_it = adapted(), adapted(**{field: value}, **BASE.get(field, {}))

    assert without[changed] != with_it[changed]


def test_every_argument_of_lora_is_named_or_refused() -> None:
    open_to_recipes = set(LORA_CONFIG.argument_types()) - set(LORA_CONFIG.owned)

    assert open_to_recipes == {*LORA, *LORA_REASONS}


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"layers_to_transform": [7]}, "layers_to_transform", "no target is in layer 7"),
        ({"layers_to_transform": [1], "layers_pattern": "layers"}, "layers_to_transform", "no target is in layer 1"),
        ({"exclude_modules": ["c_atn"]}, "exclude_modules", "excludes none of the targets"),
        ({"exclude_modules": ["c_attn"]}, "exclude_modules", "excludes all of the targets"),
        ({"rank_pattern": {"c_atn": 2}}, "rank_pattern", "matches no module that gets an adapter"),
        ({"alpha_pattern": {"mlp.c_fc": 2}}, "alpha_pattern", "matches no module that gets an adapter"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(settings: Any, field: str, words: str) -> None:
    with pytest.raises(FieldError, match=words) as refused:
        adapted(**settings)

    assert refused.value.field == f"lora.{field}"


def quantised(**settings: Any) -> dict[str, Any]:
    """What a quantised base is made of."""
    base = locate_base(Base(model="builtin:tiny-gpt2"))
    model = load_base(base, base.config(), Quantization.model_validate(settings), "float32", "cpu")
    layers = quantised_modules(model)
    weights = [layer.weight for layer in layers]
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    return {
        "modules": len(layers),
        "bytes": held_bytes(model),
        "numbers": float(logits.abs().sum()),
        "storage": {(weight.dtype, getattr(weight, "has_fp16_weights", None)) for weight in weights},
        "scales": {getattr(getattr(weight, "quant_state", None), "nested", None) for weight in weights},
        "threshold": {getattr(getattr(layer, "state", None), "threshold", None) for layer in layers},
    }


@pytest.mark.parametrize("field", QUANTIZATION)
def test_each_argument_of_bitsandbytes_changes_the_base(field: str) -> None:
    settings, changed = QUANTIZATION[field]
    others = {"load_in_8bit": True} if settings.get("load_in_8bit") and len(settings) > 1 else {}
    others = {"load_in_8bit": True} if field == "load_in_4bit" else others

    assert quantised(**others)[changed] != quantised(**settings)[changed]


def test_every_argument_of_bitsandbytes_is_named_or_refused() -> None:
    assert set(BITSANDBYTES_CONFIG.argument_types()) - set(BITSANDBYTES_CONFIG.owned) == set(QUANTIZATION)


@pytest.mark.parametrize(
    "settings", ["{llm_int8_threshold: 1.0}", "{load_in_8bit: true, bnb_4bit_quant_storage: uint8}"]
)
def test_an_argument_of_the_other_width_is_refused(settings: str, recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no effect on weights in"):
        load_recipe(recipe_path, method="qlora", overrides=[f"quantization={settings}"])


def readers() -> str:
    """The source of what reads training arguments, without what peftkit puts its own in place of."""
    from transformers import trainer, trainer_callback, trainer_utils

    modules = [trainer, trainer_callback, trainer_utils, transformers.integrations.integration_utils]
    if find_spec("transformers.trainer_optimizer"):
        modules.append(import_module("transformers.trainer_optimizer"))
    text = "\n".join(inspect.getsource(module) for module in modules)
    for name in vars(TokenTrainer).keys() & vars(Trainer).keys():
        own, method = vars(TokenTrainer)[name], vars(Trainer)[name]
        if inspect.isfunction(own) and f"super().{name}" not in inspect.getsource(own):
            text = text.replace(inspect.getsource(method), "")
    return text


def test_every_training_argument_is_read_or_refused() -> None:
    from peftkit.compatibility import spelled

    installed, text = installed_arguments(TRAINING_ARGUMENTS), readers()
    open_to_recipes = set(TRAINING_ARGUMENTS.argument_types()) - set(TRAINING_ARGUMENTS.owned)
    known = {name: next(iter(spelled({name: None}, installed))) for name in open_to_recipes | {*Training.model_fields}}

    unread = {
        name for name, here in known.items() if here in installed and not re.search(rf"\bargs\.{here}\b", text)
    }  # fmt: skip

    assert unread - {*TRAINING_REASONS} == set()


@pytest.mark.parametrize("name", ["opt", "gpt_neo", "starcoder2", "seed_oss", "xglm", "biogpt", "gemma3"])
def test_dropout_is_set_in_every_module_that_has_it(name: str, tmp_path: Path) -> None:
    zoo.make(name, tmp_path)
    base = locate_base(Base(model=str(tmp_path)))

    structure = base.structure(with_dropout(base.config(), 0.25))

    inner = getattr(structure.model, "language_model", structure) if name == "gemma3" else structure
    rates = {
        (type(module).__name__, key): value
        for module in inner.modules()
        for key, value in [*vars(module).items(), ("p", getattr(module, "p", None))]
        if re.search("dropout|^p$|pdrop", key) and type(value) is float
    }
    assert rates
    assert set(rates.values()) == {0.25}


def test_a_dropout_that_a_configuration_does_not_take_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.make("mpt", tmp_path)

    config = with_dropout(locate_base(Base(model=str(tmp_path))).config(), 0.25)

    named = "attn_pdrop" in capsys.readouterr().err  # a version of Transformers takes whole numbers alone there
    assert (config.resid_pdrop, config.emb_pdrop) == (0.25, 0.25)
    assert config.attn_config.attn_pdrop == (0 if named else 0.25)


def test_a_base_that_is_quantised_on_the_disk_is_reported_or_refused(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = locate_base(Base(model="builtin:tiny-gpt2"))
    load_base(base, base.config(), Quantization(), "float32", "cpu").save_pretrained(tmp_path / "base")
    base.tokenizer().save_pretrained(tmp_path / "base")
    here = f"base.model={tmp_path / 'base'}"

    for method, setting, words in (
        ("full", "precision=auto", "its weights cannot be trained"),
        ("qlora", "quantization.bnb_4bit_quant_type=fp4", "bnb_4bit_quant_type: would have no effect"),
    ):
        with pytest.raises(RecipeError, match=words):
            run(load_recipe(recipe_path, method=method, overrides=[here, setting], output=tmp_path / method))
        assert not (tmp_path / method).exists()
    run(load_recipe(recipe_path, overrides=[here, "training.max_steps=1"], output=tmp_path / "lora"))
    assert "trains an adapter on the quantised weights" in capsys.readouterr().err
