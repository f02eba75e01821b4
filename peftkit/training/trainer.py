"""The Transformers Trainer with four changes.

It computes the loss only where a label is, counts useful tokens, evaluates by tokens, and stops at a NaN.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from peftkit import console
from peftkit.errors import RunError
from peftkit.models.loss import compute_loss_at_labels, evaluate_loss

__all__ = ["TokenTrainer"]


class TokenTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for batches of `peftkit.data.collator.Collator`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if compute_loss_at_labels(self.model, self.args.label_smoothing_factor):
            self.label_smoother = None  # the model smooths itself
            self.model_accepts_loss_kwargs = True
        else:
            console.info("the head is no plain linear layer, so the loss is computed from whole logits: more memory.")
        self.train_tokens = 0
        """Tokens seen in training, without padding."""

        self.step_seconds = 0.0
        """Time spent in the forward and backward passes and between them, without evaluation and saving."""

        self._finite = torch.ones((), dtype=torch.bool, device=self.args.device)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass."""
        start = time.perf_counter()
        self.train_tokens += int(inputs.pop("num_tokens").sum())
        inputs["use_cache"] = False  # with a cache, packed documents would see each other
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._finite &= torch.isfinite(loss)
        if self.args.device.type == "cpu":
            self.check_finite()
        self.step_seconds += time.perf_counter() - start
        return loss

    def current_learning_rate(self) -> float:
        """The rate that the next step will take."""
        return float(self._get_learning_rate())

    def check_finite(self) -> None:
        """Look whether every loss so far was a number. On a GPU this waits for the device, so it is not done each step.

        Raises:
            RunError: one was not.
        """
        if not bool(self._finite):
            raise RunError(
                f"the loss is not a finite number at step {self.state.global_step + 1}.",
                where="training",
                remedy="Lower training.learning_rate, keep max_grad_norm at 1.0, or set precision: fp32.",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, unless the numbers are those of a run that is already lost."""
        self.check_finite()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_finite()  # a checkpoint of NaNs would be resumed from
        super()._save_checkpoint(model, trial)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss and perplexity of all taught tokens together; Trainer's own is a mean of the batches' means."""
        del description, prediction_loss_only, ignore_keys
        loss = evaluate_loss(self.model, dataloader)
        total, tokens = self._over_processes(loss.total), self._over_processes(float(loss.tokens))
        summed = type(loss)(total, int(tokens), loss.sequences)
        metrics = {f"{metric_key_prefix}_loss": summed.mean, f"{metric_key_prefix}_perplexity": summed.perplexity}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=loss.sequences)

    def _over_processes(self, value: float) -> float:
        """The sum of a value over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        gathered = self.accelerator.gather(torch.tensor([value], dtype=torch.float64, device=self.args.device))
        return float(gathered.sum())
