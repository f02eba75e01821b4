"""The card says what the record and the receipt say, and nothing of the machine that trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.adapters.card import model_card
from peftkit.adapters.files import Record
from peftkit.metrics import METRICS
from peftkit.recipe.schema import Recipe

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
        "| batch size | 4 |",
        "| `training.learning_rate` | 0.003 |",
        "| `training.lr_scheduler_type` | linear |",
        "| `training.warmup_steps` | 0 |",
        "| `training.max_steps` | 6 |",
        "| `data.max_length` | 64 |",
        "| `data.train.path` | train.jsonl |",
        "| `precision` | auto |",
        f"| perplexity | {METRICS['perplexity'].text(record.metrics['perplexity'])} |",
    ):
        assert row in card
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "peftkit merge FOLDER OUTPUT" in card
    assert "How exactly it was merged" not in card


def test_whatever_the_recipe_sets_is_on_the_card(record: Record) -> None:
    changes = {
        "precision": "fp32",
        "on_nonfinite": "skip",
        "training": {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-6},
            "warmup_steps": 0.1,
            "max_steps": 6,
        },
        "lora": {"init_lora_weights": "orthogonal", "rank_pattern": {"c_attn": 2}},
        "generation": {"num_beams": 4},
    }
    values = record.recipe.model_dump(mode="json")
    card = model_card(replace(record, recipe=Recipe.model_validate(values | changes)))

    for row in (
        "| `precision` | fp32 |",
        "| `on_nonfinite` | skip |",
        "| `training.lr_scheduler_type` | cosine_with_min_lr |",
        '| `training.lr_scheduler_kwargs` | {"min_lr": 1e-06} |',
        "| `training.warmup_steps` | 0.1 |",
        "| `lora.init_lora_weights` | orthogonal |",
        '| `lora.rank_pattern` | {"c_attn": 2} |',
        "| `generation.num_beams` | 4 |",
    ):
        assert row in card


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
