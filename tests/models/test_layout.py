"""Where the layout of a batch is known, a model computes what it computes when it looks for itself."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, masking_utils

from peftkit.models.attention import known_layout

MODELS = {
    "gpt2": GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=32, pad_token_id=0, bos_token_id=0,
                   eos_token_id=0)
    ).eval(),
    "llama": LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=16,
                    intermediate_size=16, vocab_size=40, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    ).eval(),
}  # fmt: skip
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0]])
TOGETHER = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1]])
ALONE = torch.arange(6).expand(2, 6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("positions", [None, ALONE, TOGETHER])
def test_a_known_layout_changes_no_logit(name: str, positions: torch.Tensor | None) -> None:
    model, inputs = MODELS[name], {"input_ids": IDS, "position_ids": positions, "use_cache": False}
    expected = model(**inputs).logits

    with known_layout(packed=positions is TOGETHER):
        logits = model(**inputs).logits

    assert torch.equal(logits, expected)


def test_after_the_block_models_look_again_whatever_happened_within() -> None:
    before = masking_utils.find_packed_sequence_indices, PreTrainedModel.warn_if_padding_and_no_attention_mask

    with pytest.raises(RuntimeError, match="a step"), known_layout(packed=True):
        raise RuntimeError("a step")

    assert before == (masking_utils.find_packed_sequence_indices, PreTrainedModel.warn_if_padding_and_no_attention_mask)
