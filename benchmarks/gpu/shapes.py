"""How large everything is: the models in their true shapes, or tiny ones to try the benchmark itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from safetensors.numpy import save_file

import peftkit
from peftkit.planning.plan import operations_of_a_token

__all__ = ["BASES", "FULL", "SMOKE", "TOKENIZER", "Method", "Scale", "Shape", "make_base_folder", "model_flops"]

Method = Literal["full", "lora", "qlora"]

TOKENIZER = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"
"""The folder of the embedded tokenizer, of 1,024 tokens."""


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder."""

    kind: Literal["gpt2", "llama"]
    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int
    key_heads: int = 0
    inner: int = 0

    def config(self) -> dict[str, Any]:
        """What Transformers reads as `config.json`; end-of-text and padding are those of the embedded tokenizer."""
        common = {"vocab_size": self.vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
        if self.kind == "gpt2":
            sizes = {"n_layer": self.layers, "n_embd": self.width, "n_head": self.heads, "n_positions": self.positions}
            return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **common, **sizes}
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            **common,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "max_position_embeddings": self.positions,
            "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        }

    @property
    def matmul_weights(self) -> int:
        """Weights that a token is multiplied with: those of the linear layers and the head, not the embeddings."""
        head = self.vocabulary * self.width
        if self.kind == "gpt2":
            return self.layers * 12 * self.width**2 + head
        keys = self.width * self.key_heads // self.heads
        return self.layers * self.width * (2 * self.width + 2 * keys + 3 * self.inner) + head


@dataclass(frozen=True)
class Scale:
    """Sizes of the jobs."""

    smoke: bool
    patience: float = 1.0
    """How many times its budget a part may take, as the machine is no H100."""

    loss_tokens: int = 8 * 1024
    """Enough for the summed loss of a new GPT-2 to be beyond what fp16 can hold."""

    loss_width: int = 768
    loss_vocabulary: int = 50_257
    warmup: int = 3
    timed: int = 12
    observed: int = 3
    """Steps after the timed ones that are only looked at by the profiler."""

    profiled: int = 10
    length: int = 4096
    """Tokens in a row of the Llama shape."""

    quickstart: tuple[str, ...] = ()
    """Overrides of the shipped recipe."""


FULL: Final = Scale(smoke=False)
SMOKE: Final = Scale(
    smoke=True,
    patience=5.0,
    loss_width=32,
    loss_vocabulary=3_001,
    warmup=1,
    timed=2,
    observed=2,
    profiled=2,
    length=128,
    quickstart=("training.max_steps=12", "data.validation.limit=32"),
)

BASES: Final[dict[str, tuple[Shape, Shape]]] = {
    "GPT-2 124M": (
        Shape("gpt2", 12, 768, 12, 50_257, 1024),
        Shape("gpt2", 2, 64, 4, 1024, 512),
    ),
    "GPT-2 355M": (
        Shape("gpt2", 24, 1024, 16, 50_257, 1024),
        Shape("gpt2", 3, 64, 4, 1024, 512),
    ),
    "Llama-3.1-8B": (
        Shape("llama", 32, 4096, 32, 128_256, 131_072, key_heads=8, inner=14_336),
        Shape("llama", 2, 64, 4, 1024, 4096, key_heads=2, inner=160),
    ),
}
"""Each in its true shape and in a tiny one."""


def make_base_folder(folder: Path, shape: Shape) -> Path:
    """A base without its weights: configuration, the embedded tokenizer, and a weights file that holds nothing.

    The tokenizer's 1,024 tokens are the first of the base's vocabulary. A step computes the same with any of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    save_file({"placeholder": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def model_flops(shape: Shape, method: Method, context: float) -> float:
    """Floating-point operations that the model needs for one token of a training step, forward and backward.

    A weight has 6, or 4 where it is not trained (see `operations_of_a_token`). Attention's two matmuls have 12 in each
    layer for each of the model's widths and each token that is attended to (Chowdhery et al. 2022, appendix B). Neither
    what is computed again nor an adapter's own matmuls are counted.

    Args:
        shape: of the model.
        method: whether its weights are trained.
        context: tokens that a token attends to on average, half a document's length under a causal mask.
    """
    weights = operations_of_a_token(shape.matmul_weights, trains_all=method == "full")
    return weights + 12 * shape.layers * shape.width * context
