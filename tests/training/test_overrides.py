"""What peftkit overrides of the Trainer is there, takes what it took, and is called from where it was called."""

from __future__ import annotations

import inspect

import pytest
import transformers
from packaging.version import Version
from transformers import Trainer

from peftkit.training.trainer import TokenTrainer

OVERRIDES: dict[str, tuple[str, str, list[str]]] = {
    "get_batch_samples": (
        "_run_epoch",
        "batch_samples, num_items_in_batch = self.get_batch_samples(epoch_iterator, num_batches, self.args.device)",
        ["epoch_iterator", "num_batches", "device"],
    ),
    "training_step": (
        "_run_epoch",
        "self.training_step(model, inputs, num_items_in_batch)",
        ["model", "inputs", "num_items_in_batch"],
    ),
    "compute_loss_context_manager": ("training_step", "with self.compute_loss_context_manager():", []),
    "_get_grad_norm": (
        "_run_epoch",
        "grad_norm = self._get_grad_norm(model, grad_norm=grad_norm)",
        ["model", "grad_norm"],
    ),
    "evaluation_loop": (
        "evaluate",
        "output = self.evaluation_loop(",
        ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    ),
    "_move_model_to_device": ("__init__", "self._move_model_to_device(model, args.device)", ["model", "device"]),
    "_maybe_log_save_evaluate": (
        "_run_epoch",
        "self._maybe_log_save_evaluate(",
        ["tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate"],
    ),
    "_save_checkpoint": ("_maybe_log_save_evaluate", "self._save_checkpoint(model, trial)", ["model", "trial"]),
    "_init_training_state": (
        "_inner_training_loop",
        "epochs_trained, steps_trained_in_current_epoch = self._init_training_state(",
        ["max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"],
    ),
    "_load_from_checkpoint": (
        "train",
        "self._load_from_checkpoint(resume_from_checkpoint)",
        ["resume_from_checkpoint", "model"],
    ),
    "_load_optimizer_and_scheduler": (
        "_prepare_for_training",
        "self._load_optimizer_and_scheduler(resume_from_checkpoint)",
        ["checkpoint"],
    ),
    "_load_scaler": ("_prepare_for_training", "self._load_scaler(resume_from_checkpoint)", ["checkpoint"]),
    "_load_rng_state": ("_run_epoch", "self._load_rng_state(resume_from_checkpoint)", ["checkpoint"]),
    "_load_best_model": ("_finalize_training", "self._load_best_model()", []),
}
"""By the method: which of the Trainer's calls it, how, and what it takes."""

READ = {
    "_tr_loss": ("_maybe_log_save_evaluate", "self.state.global_step - self._globalstep_last_logged"),
    "_globalstep_last_logged": ("_maybe_log_save_evaluate", "self._globalstep_last_logged = self.state.global_step"),
    "label_smoother": ("compute_loss", "self.label_smoother is not None"),
    "model_accepts_loss_kwargs": ("_get_num_items_in_batch", "self.model_accepts_loss_kwargs"),
}
"""By the attribute that peftkit sets: where the Trainer reads it."""


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_is_called_from_where_it_was_called(name: str) -> None:
    caller, call, parameters = OVERRIDES[name]

    assert call in inspect.getsource(getattr(Trainer, caller))
    assert [*inspect.signature(getattr(Trainer, name)).parameters] == ["self", *parameters]


@pytest.mark.parametrize("name", READ)
def test_an_attribute_that_is_set_is_read_where_it_was_read(name: str) -> None:
    reader, text = READ[name]

    assert text in inspect.getsource(getattr(Trainer, reader))


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="older ones shard nothing themselves")
def test_the_trainer_asks_whether_the_weights_are_sharded_already() -> None:
    assert "if self.is_distributed_loading_by_transformers" in inspect.getsource(Trainer._prepare_for_training)


def test_every_override_is_listed_here() -> None:
    overridden = {name for name in vars(TokenTrainer) if name in vars(Trainer) and not name.startswith("__")}

    assert overridden == set(OVERRIDES)
