"""Small adapters without a base, and random adapters on bases of two shapes, written by PEFT alone."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import peftkit as package

WriteAdapter = Callable[..., Path]
EMBEDDED = Path(package.__file__).parent / "assets" / "tiny-gpt2"
TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
MakeAdapter = Callable[..., Path]
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4}


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    """Writes an adapter for two layers of 6 inputs and 5 outputs; settings and tensors can be changed."""

    def write(
        name: str = "adapter", *, seed: int = 0, rank: int = 2, tensors: dict[str, Any] | None = None, **config: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(seed)
        numbers: dict[str, Any] = {}
        for layer in (0, 1):
            module = f"base_model.model.h.{layer}.proj"
            numbers[f"{module}.lora_A.weight"] = rng.normal(size=(rank, 6)).astype(np.float32)
            numbers[f"{module}.lora_B.weight"] = rng.normal(size=(5, rank)).astype(np.float32)
        numbers |= tensors or {}
        kept = {name: tensor for name, tensor in numbers.items() if tensor is not None}
        save_file(kept, folder / "adapter_model.safetensors")
        settings = CONFIG | {"r": rank, "target_modules": ["proj"]} | config
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded GPT-2, whose head is tied and layers are Conv1D, and a Llama whose are neither."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    llama = tmp_path_factory.mktemp("bases") / "llama"
    set_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(llama)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, llama / name)
    return {"gpt2": EMBEDDED, "llama": llama}


@pytest.fixture
def make_adapter(bases: dict[str, Path], tmp_path: Path) -> MakeAdapter:
    """Writes an adapter with PEFT, every trained number of it random."""

    def make(
        base: str, name: str = "adapter", *, seed: int = 0, words: int | None = None, tables: Any = "auto", **lora: Any
    ) -> Path:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(bases[base], dtype=torch.float32)
        if words is not None:
            model.resize_token_embeddings(words, mean_resizing=False)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[base], "fan_in_fan_out": base == "gpt2"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of a head that is trained apart from the embedding
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**settings, **lora}))
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted.save_pretrained(tmp_path / name, save_embedding_layers=tables)
        return tmp_path / name

    return make
