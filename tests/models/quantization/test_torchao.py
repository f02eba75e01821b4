"""What torchao makes of a base trains, is turned back into plain numbers, and merges as exactly as a plain one."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from peftkit.errors import FieldError, RecipeError
from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.quantization import backend_of, load_base
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.libraries import check_installed
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.quantizers import PRESETS
from peftkit.recipe.schema import Base

INT8 = Quantization.model_validate(PRESETS["torchao-int8"])
CHANGES = [
    "quantization={backend: torchao, load_in_8bit: true}",
    "training.save_strategy=steps",
    "training.save_steps=3",
]
IDS = torch.arange(40)[None]
is_here = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not is_here, reason="torchao is an extra, and not installed")


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> LocatedBase:
    """GPT-2, whose layers are Conv1D, and a Llama, whose layers are Linear."""
    if request.param == "gpt2":
        return locate_base(Base(model="builtin:tiny-gpt2"))
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(intermediate_size=48, **sizes)).save_pretrained(tmp_path / "llama")
    return LocatedBase("llama", tmp_path / "llama", None)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


@needs_torchao
def test_a_dequantised_base_computes_what_the_quantised_one_does(base: LocatedBase) -> None:
    backend = backend_of(INT8)
    quantised = load_base(base, base.config(), INT8, "float32", "cpu")
    expected = logits(quantised)

    plain = base.load(base.config(), "float32")
    original = logits(plain)
    layers = backend.prepared(base.structure(base.config()), INT8, "float32")
    for name, layer in layers.items():
        module = plain.get_submodule(name)
        turned = isinstance(module, Conv1D)
        rounded = backend.rounded(layer, module.weight.data.T if turned else module.weight.data)
        module.weight.data.copy_(rounded.T if turned else rounded)

    scale = expected.abs().max()
    assert set(layers) == set(backend.modules(quantised))
    assert (logits(plain) - expected).abs().max() / scale < 1e-5
    assert (original - expected).abs().max() / scale > 1e-4


@needs_torchao
def test_every_layer_but_embeddings_and_head_is_quantised(base: LocatedBase) -> None:
    modules = backend_of(INT8).modules(load_base(base, base.config(), INT8, "float32", "cpu"))

    assert len(modules) == {"gpt2": 16, "llama": 14}[base.config().model_type]
    assert not any("head" in name or "wte" in name or "embed" in name for name in modules)


@needs_torchao
def test_a_run_trains_resumes_and_merges_to_rounding(recipe_path: Path, tmp_path: Path) -> None:
    from peftkit.adapters.merge import merge
    from peftkit.runs.folder import RunFolder
    from peftkit.storage import sha256_of_file
    from peftkit.training.run import RunOptions, run

    file = load_recipe(recipe_path, method="qlora", overrides=CHANGES, output=tmp_path / "run")
    folder, first = run(file)
    weights = folder.adapter / "adapter_model.safetensors"
    trained = sha256_of_file(weights)
    shutil.rmtree(folder.checkpoints / "step-6")
    shutil.rmtree(folder.adapter)
    first.status = "stopped"
    RunFolder(folder.path).write(first)
    _, again = run(file, RunOptions(resume=True))
    receipt = merge([(folder.adapter, 1.0)], tmp_path / "merged")

    assert again.resumed[-1]["step"] == 3
    assert sha256_of_file(weights) == trained
    assert again.metrics.perplexity is not None
    assert again.metrics.base_perplexity is not None
    assert again.metrics.perplexity < again.metrics.base_perplexity
    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-5
    assert receipt.tolerance == 1e-5
    assert "torchao's int8 weights" in (folder.adapter / "README.md").read_text(encoding="utf-8")


@needs_torchao
def test_a_plan_counts_a_byte_for_each_quantised_weight(recipe_path: Path) -> None:
    from peftkit.training.plan import plan

    found = plan(load_recipe(recipe_path, method="qlora", overrides=CHANGES), seconds=None)
    plain = plan(load_recipe(recipe_path, method="lora", overrides=CHANGES), seconds=None)

    layers = 4 * 12 * 128 * 128  # of each layer's four matrices
    assert plain.memory["weights"] - found.memory["weights"] == pytest.approx(3 * layers, rel=0.03)


def test_without_the_library_a_recipe_is_refused_with_the_extra(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.recipe.quantizers.find_spec", lambda _: None)

    with pytest.raises(FieldError) as error:
        check_installed(load_recipe(recipe_path, method="qlora", overrides=CHANGES).recipe)

    assert error.value.field == "quantization.backend"
    assert "pip install 'peftkit[torchao]'" in str(error.value)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{backend: torchoa, load_in_8bit: true}", "Did you mean torchao"),
        ("{backend: torchao}", "it holds weights in 8 bits"),
        ("{backend: torchao, load_in_8bit: true, llm_int8_threshold: 5.0}", "is bitsandbytes' own"),
    ],
)
def test_what_it_does_not_take_is_an_error(section: str, words: str, recipe_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_path, method="qlora", overrides=[f"quantization={section}"])

    assert words in " ".join(error.value.lines())
