"""A run that was stopped and gone on with equals one that was not, whatever the recipe says."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = pytest.mark.faults

SETTINGS = {
    "packed": ("data.packing=true", "data.max_length=128"),
    "by steps, the best kept": (
        "training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.eval_steps=2",
    ),
    "by epochs, the best kept": ("training.load_best_model_at_end=true", "training.save_strategy=epoch"),
    "by epochs": ("training.max_steps=-1", "training.num_train_epochs=2.5", "training.save_strategy=epoch"),
    "by length": ("training.train_sampling_strategy=group_by_length",),
    "workers": ("training.dataloader_num_workers=2",),
    "Adafactor": ("training.optim=adafactor",),
    "8-bit AdamW": ("training.optim=adamw_bnb_8bit", "training.lr_scheduler_type=cosine", "training.warmup_steps=3"),
    "plateau": (
        "training.lr_scheduler_type=reduce_lr_on_plateau", "training.eval_strategy=steps", "training.eval_steps=2",
    ),
    "DoRA": ("lora.use_dora=true",),
    "biases and a layer norm": ("lora.bias=lora_only", "lora.modules_to_save=[ln_f]"),
    "checkpointing": ("training.activation_checkpointing=true",),
    "noise": ("training.neftune_noise_alpha=5", "training.label_smoothing_factor=0.1"),
    "a stream": ("data.streaming=true",),
    "another sampler": ("training.accelerator_config={use_seedable_sampler: false}",),
    "no accumulation": ("training.gradient_accumulation_steps=1",),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stop_changes_nothing(name: str, work: Any) -> None:
    changes = [word for change in SETTINGS[name] for word in ("--set", change)]
    status, log = work.train("whole", *changes)
    assert status == 0, log

    stopped = work.begin("run", *changes)
    stopped.send(signal.SIGTERM)

    assert stopped.ended() == 128 + signal.SIGTERM, stopped.log
    status, log = work.train("run", *changes, "--resume")
    assert status == 0, log
    assert work.result("run") == work.result("whole")
