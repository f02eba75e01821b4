"""A kernel that does not work on a machine is passed over, and one that mixes documents too."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from peftkit.models.attention import use_attention
from peftkit.planning.hardware import Hardware

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
A100 = Hardware("cuda", "A100", 80 * 10**9, 1, 12, (8, 0))


@pytest.fixture
def llama() -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_a_cpu_takes_the_attention_of_torch(llama: Any) -> None:
    assert use_attention(llama, CPU, "float32") == "sdpa"


def test_what_a_gpu_would_take_is_tried_and_left_where_it_fails(
    llama: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def refusing(attention: str) -> None:
        tried.append(attention)
        if attention != "sdpa":
            raise ValueError("no such kernel here")

    monkeypatch.setattr(llama, "set_attn_implementation", refusing)

    assert use_attention(llama, A100, "float32") == "sdpa"
    assert tried == ["flex_attention", "sdpa"]
    assert "flex_attention does not work here (no such kernel here)" in capsys.readouterr().err
