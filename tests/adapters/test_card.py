"""The card says what the record and the receipt say, and nothing of the machine that trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.adapters.card import model_card
from peftkit.adapters.record import Record

RECEIPT = {
    "onto": "dequantized",
    "dtype": "float32",
    "tolerance": 1e-5,
    "proof": {
        "sample": "validation data", "tokens": 428, "relative_error": 6.4e-7, "kl_divergence": 1e-12,
        "same_next_token": 1.0,
    },
}  # fmt: skip


@pytest.fixture
def record(runs: dict[str, Path]) -> Record:
    found = Record.read(runs["qlora"] / "adapter")
    assert found is not None
    return found


def test_an_adapters_card_states_base_data_hyperparameters_and_metrics(record: Record) -> None:
    card = model_card(record)

    for row in (
        "| base | builtin:tiny-gpt2 |",
        f"| SHA-256 of the base | {record.base['sha256']} |",
        "| data | train.jsonl |",
        "| method | qlora |",
        "| LoRA | r 4, alpha 8, on attn.c_attn |",
        "| base quantised to | 4 bits, NF4, scales quantised too |",
        "| learning rate | 0.003, linear |",
        "| batch size | 4 |",
        "| length | 6 steps of sequences of at most 64 tokens |",
        f"| perplexity after | {record.metrics['perplexity']:.4f} |",
    ):
        assert row in card
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "peftkit merge FOLDER OUTPUT" in card
    assert "How exactly it was merged" not in card


def test_a_card_names_no_folder_of_the_machine(record: Record) -> None:
    assert str(Path(next(iter(record.data["train"]["files"]))).parent) not in model_card(record)


def test_a_merged_models_card_states_its_receipt(record: Record) -> None:
    card = model_card(record, RECEIPT)

    assert "library_name: transformers" in card
    assert "| compared with the adapter on | 428 tokens of validation data, in a process without PEFT |" in card
    assert "| relative error of the logits | 6.4e-07, 1e-05 allowed |" in card
    assert "pipeline(" in card
    assert "peftkit merge" not in card


def test_a_merge_onto_other_weights_promises_nothing(record: Record) -> None:
    card = model_card(record, RECEIPT | {"onto": "original", "tolerance": None})

    assert "| merged onto | the original base, as float32 |" in card
    assert "nothing promised" in card


def test_a_hub_base_is_told_to_the_hub_and_a_folder_is_not(record: Record) -> None:
    hub = replace(record, base=record.base | {"model": "openai-community/gpt2", "revision": "abc"})
    folder = replace(record, base=record.base | {"model": "/home/me/gpt2"})

    assert "base_model: openai-community/gpt2\n" in model_card(hub)
    assert "| base | openai-community/gpt2 at abc |" in model_card(hub)
    assert "base_model:" not in model_card(folder)
