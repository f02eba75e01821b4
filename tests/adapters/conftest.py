"""Adapters of small numbers, without a base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

WriteAdapter = Callable[..., Path]
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
