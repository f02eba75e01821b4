"""IA3's vectors scale what PEFT says they scale, and nothing is merged, added or trained that could not be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, get_peft_model
from peft.tuners.ia3 import IA3Layer
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.combine import combine_adapters, shrink_adapter
from peftkit.adapters.compare import check_adapter, diff_adapters
from peftkit.adapters.files import Adapter
from peftkit.adapters.inspect import inspect_adapter
from peftkit.adapters.merge import merge
from peftkit.adapters.target import open_adapter
from peftkit.errors import ChangedError, FieldError, RecipeError, TargetError
from peftkit.experiments.compare import arms_of
from peftkit.models.methods.ia3 import METHOD, Scales
from peftkit.recipe.hyperparameters import Ia3
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.storage import sha256_of_file
from peftkit.training.run import RunOptions, run

WEIGHTS = "adapter_model.safetensors"
SAVED = ["training.save_strategy=steps", "training.save_steps=3", "training.learning_rate=1e-2"]


class Small(nn.Module):
    """Layers of both orientations, of which `down` is a feedforward one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.turned_up = Conv1D(8, 6)
        self.turned_down = Conv1D(6, 8)


def small(kind: str = "gpt2") -> Any:
    sizes: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}
    config: Any = GPT2Config(n_layer=1, n_head=2, n_embd=8, **sizes)
    if kind == "llama":
        config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=16, **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.filterwarnings("ignore")
def test_a_layer_with_the_vector_has_the_weight_and_bias_that_peft_merges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small()
    targets = ["up", "down", "turned_up", "turned_down"]
    adapted = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=["down", "turned_down"]))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path)

    updates = Adapter.read(tmp_path).updates
    layers = {name: module for name, module in model.named_modules() if isinstance(module, IA3Layer)}

    assert set(updates) == set(layers) == set(targets)
    for name, layer in layers.items():
        base: Any = layer.get_base_layer()
        before, bias = base.weight.detach().numpy().copy(), base.bias.detach().numpy().copy()
        layer.merge()
        found = updates[name].adapted(before, turned=isinstance(base, Conv1D))
        moved = updates[name].adapted_bias(bias)
        assert np.allclose(found, base.weight.detach().numpy(), atol=1e-6)
        assert np.allclose(bias if moved is None else moved, base.bias.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("gpt2", {"attn.c_attn", "mlp.c_proj"}), ("llama", {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"})],
)
def test_auto_is_what_peft_names_for_the_model(kind: str, names: set[str]) -> None:
    targets = METHOD.targets(small(kind), Ia3())

    assert {name.split(".0.")[1] for name in targets} == names


def test_inputs_are_scaled_of_feedforward_layers_alone(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(small().config)
    targets = METHOD.targets(model, Ia3())

    adapted = METHOD.attach(model, Ia3(), targets, tmp_path)

    config = adapted.peft_config["default"]
    assert config.feedforward_modules == {"transformer.h.0.mlp.c_proj"}
    assert config.target_modules == set(targets)
    assert {name.rpartition(".")[0].removeprefix("base_model.model.") for name, weight in adapted.named_parameters()
            if weight.requires_grad} == {f"{target}.ia3_l" for target in targets}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ["nothing"]}, "'nothing' matches no module"),
        ({"target_modules": ["lm_head"]}, "lm_head is tied"),
        ({"target_modules": ["c_attn"], "feedforward_modules": ["mlp.c_proj"]}, "'mlp.c_proj' is none of the modules"),
    ],
)
def test_modules_that_cannot_be_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FieldError, match=words) as error:
        METHOD.targets(small(), Ia3(**settings))

    assert error.value.field.startswith("ia3.")


def test_a_misspelled_field_is_an_error(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match="feedforward_modules"):
        load_recipe(recipe_path, method="ia3", overrides=["ia3.feed_forward_modules=auto"])


def test_a_new_base_cannot_be_trained_with_vectors_alone(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match="only method: full can train"):
        load_recipe(recipe_path, method="ia3", overrides=["base={init: {n_layer: 1, n_head: 1, n_embd: 8}}"])


def test_vectors_are_compared_by_what_they_change() -> None:
    one, zero = (Scales(np.array(values, np.float32), of_inputs=False) for values in ([1, 2], [1, 1]))

    same, none = one.overlap(one), one.overlap(zero)
    assert same is not None
    assert same.cosine == pytest.approx(1.0)
    assert none is not None
    assert none.cosine is None
    assert one.overlap(replace(one, of_inputs=True)) is None
    assert (one.untouched, zero.untouched) == (False, True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe whose run by IA3 is finished, in `run`."""
    from tests.conftest import write_recipe

    folder = tmp_path_factory.mktemp("ia3")
    run(load_recipe(write_recipe(folder), method="ia3", overrides=SAVED, output=folder / "run"))
    return folder


def test_a_run_learns_and_says_so(trained: Path) -> None:
    manifest = RunFolder(trained / "run").read()

    metrics = manifest.metrics
    assert (manifest.status, manifest.method) == ("finished", "ia3")
    assert metrics.perplexity is not None
    assert metrics.base_perplexity is not None
    assert metrics.perplexity < metrics.base_perplexity
    assert metrics.trainable_parameters == 4 * (3 * 128 + 512)
    card = (trained / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "An IA3 adapter for builtin:tiny-gpt2" in card
    assert "| IA3 | on attn.c_attn, mlp.c_proj |" in card


def test_a_run_that_was_stopped_ends_in_the_same_adapter(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    file = load_recipe(trained / "small.yaml", method="ia3", overrides=SAVED, output=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    manifest = folder.read()
    manifest.status = "stopped"
    folder.write(manifest)
    shutil.rmtree(folder.checkpoints / "step-6")
    shutil.rmtree(folder.adapter)

    with pytest.raises(ChangedError, match=r"ia3\.target_modules"):
        run(load_recipe(trained / "small.yaml", method="ia3", overrides=[*SAVED, "ia3.target_modules=[c_attn]"],
                        output=tmp_path / "run"), RunOptions(resume=True))  # fmt: skip
    _, again = run(file, RunOptions(resume=True))

    assert again.resumed[-1]["step"] == 3
    assert sha256_of_file(folder.adapter / WEIGHTS) == sha256_of_file(trained / "run" / "adapter" / WEIGHTS)


def test_a_merged_model_computes_what_adapter_and_base_did(trained: Path, tmp_path: Path) -> None:
    receipt = merge([(trained / "run" / "adapter", 1.0)], tmp_path / "merged")

    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-5
    assert receipt.tolerance == 1e-5


def test_an_adapter_is_inspected_checked_and_compared(trained: Path) -> None:
    adapter = trained / "run" / "adapter"

    report = inspect_adapter(adapter)
    checks = {check.name: check.passed for check in check_adapter(adapter)}
    difference = diff_adapters(adapter, adapter)

    assert [module.rank for module in report.modules] == [None] * 8
    assert all(module.relative_norm and module.largest for module in report.modules)
    assert report.untouched == []
    assert set(checks.values()) == {True}
    assert [module.cosine for module in difference.modules] == pytest.approx([1.0] * 8)


def test_what_only_products_can_do_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    adapter = trained / "run" / "adapter"

    with pytest.raises(TargetError, match="IA3's vectors, which scale weights"):
        combine_adapters([(adapter, 1.0), (adapter, 1.0)], tmp_path / "sum")
    with pytest.raises(TargetError, match="is an IA3 adapter, which has no ranks"):
        shrink_adapter(adapter, tmp_path / "small", 1)


@pytest.mark.parametrize("found", [None, 3, [3]])
def test_an_adapter_whose_settings_were_edited_is_refused(found: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "feedforward_modules": found}), encoding="utf-8")

    with pytest.raises(TargetError, match="its feedforward_modules is damaged"):
        open_adapter(tmp_path / "adapter", "cpu")


def test_a_comparison_can_have_it_and_has_it_not_unasked(recipe_path: Path) -> None:
    from peftkit.recipe.methods import COMPARED

    (arm,) = arms_of(recipe_path, ("ia3",), {"lora.r": ("2", "4")}, ())

    assert arm.name == "ia3"
    assert COMPARED == ("full", "lora", "qlora")
