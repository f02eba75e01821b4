"""Tiny random causal language models of every architecture that Transformers can make small.

They have the embedded base's tokenizer and fewer than a million parameters, and are saved in a fraction of a second.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

import peftkit

__all__ = ["NAMES", "make"]

_TOKENIZER = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"
_VOCABULARY = 1024
_TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}

_DENSE: dict[str, Any] = {
    "vocab_size": _VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
_GROUPED = {**_DENSE, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 16}
_GPT = {"vocab_size": _VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
_STATE = {"vocab_size": _VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MIXER = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_FALCON = {"vocab_size": _VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_DEEPSEEK = {
    **_DENSE, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip

_SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "vocab_size": _VOCABULARY, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256,
    },
    "gpt_neox": _DENSE,
    "gptj": {**_GPT, "rotary_dim": 8},
    "codegen": {**_GPT, "rotary_dim": 8},
    "opt": {
        "vocab_size": _VOCABULARY, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256, "word_embed_proj_dim": 64,
    },
    "bloom": {"vocab_size": _VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "mpt": {
        "vocab_size": _VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 2,
    },
    "falcon": _FALCON,
    "falcon_alibi": {
        **_FALCON, "model_type": "falcon", "alibi": True, "multi_query": False, "bias": True, "parallel_attn": False,
    },
    "llama": _GROUPED,
    "llama_tied": {**_GROUPED, "model_type": "llama", "tie_word_embeddings": True},
    "mistral": _GROUPED,
    "ministral": _HEADS,
    "qwen2": _GROUPED,
    "qwen2_tied": {**_GROUPED, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _HEADS,
    "qwen2_moe": {
        **_GROUPED, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {**_HEADS, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {
        **_HEADS, "num_hidden_layers": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        "num_experts": 4, "num_experts_per_tok": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "mixtral": {**_GROUPED, **_EXPERTS},
    "gemma": _HEADS,
    "gemma2": _HEADS,
    "gemma3_text": {**_HEADS, "sliding_window": 32},
    "gemma3n_text": {
        **_HEADS, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": _VOCABULARY, "laurel_rank": 8,
        "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "vaultgemma": _HEADS,
    "phi": _DENSE,
    "phi3": _GROUPED,
    "phimoe": {**_GROUPED, **_EXPERTS},
    "stablelm": _GROUPED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED,
    "olmoe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "granite": {**_GROUPED, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "granitemoe": {**_GROUPED, **_EXPERTS},
    "cohere": _GROUPED,
    "cohere2": _GROUPED,
    "starcoder2": _GROUPED,
    "smollm3": _GROUPED,
    "nemotron": _GROUPED,
    "persimmon": _DENSE,
    "helium": _HEADS,
    "glm": _HEADS,
    "glm4": _HEADS,
    "exaone4": {**_HEADS, "sliding_window": 32},
    "ernie4_5": _HEADS,
    "hunyuan_v1_dense": _HEADS,
    "seed_oss": _HEADS,
    "arcee": _GROUPED,
    "apertus": _GROUPED,
    "bitnet": _GROUPED,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {**_HEADS, **_EXPERTS, "sliding_window": 32},
    "jetmoe": {
        "vocab_size": _VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "kv_channels": 16, "intermediate_size": 64, **_EXPERTS, "max_position_embeddings": 256,
    },
    "mamba": _STATE,
    "mamba2": {**_STATE, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    "falcon_mamba": _STATE,
    "falcon_h1": {**_HEADS, **_MIXER, "mamba_d_ssm": 128},
    "jamba": {
        **_GROUPED, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "bamba": {**_GROUPED, **_MIXER, "attn_layer_indices": [1]},
    "recurrent_gemma": {
        "vocab_size": _VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "lru_width": 64, "attention_window_size": 32,
    },
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 32},
    "rwkv": {
        "vocab_size": _VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64,
        "intermediate_size": 128, "context_length": 256,
    },
    "xglm": {
        "vocab_size": _VOCABULARY, "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "biogpt": _DENSE,
    "ctrl": {**_GPT, "dff": 128},
    "openai-gpt": _GPT,
    "gemma3": {
        "text_config": {**_HEADS, **_TOKENS, "sliding_window": 32},
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        "mm_tokens_per_image": 4, "boi_token_index": 1001, "eoi_token_index": 1002, "image_token_index": 1003,
    },
}  # fmt: skip

NAMES = tuple(_SETTINGS)
"""The model types; where one is here twice, with what sets them apart."""


def make(name: str, folder: Path) -> PreTrainedModel:
    """Save a model with random weights, the same every time, and its tokenizer.

    The matrices are three times as large as Transformers makes them, so that a wrong one shows in the logits.
    """
    settings = {"model_type": name, **_TOKENS, **_SETTINGS[name]}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3.0)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_TOKENIZER / file, folder / file)
    return model
