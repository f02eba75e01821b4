"""The Trainer of a run: loss only where a label is, evaluation by tokens, and no step with numbers that are none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from peftkit import console
from peftkit.data.collator import INPUTS, ON_HOST
from peftkit.errors import RunError
from peftkit.models.dtypes import autocast_to, compute_dtype
from peftkit.models.layout import known_layout
from peftkit.models.loss import Loss, compute_loss_at_labels, evaluate_loss
from peftkit.planning.precision import ChosenPrecision
from peftkit.shortage import forget_frames, is_out_of_memory
from peftkit.training.memory import evaluating
from peftkit.training.prepare import Run
from peftkit.training.resumable import ResumableTrainer
from peftkit.training.sharded import whole_tensor
from peftkit.training.weights import Weights

__all__ = ["TokenTrainer"]

_NAMED = 3
_OVERFLOWS = 50
"""Steps in a row whose fp16 gradients may overflow while their scale, which is halved each time, is looked for."""


@dataclass
class _Step:
    """What is there of an optimizer step before it is taken; on a GPU the losses may still have to be computed."""

    losses: list[torch.Tensor] = field(default_factory=list)
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)


class TokenTrainer(ResumableTrainer):
    """A Trainer for batches of `peftkit.data.collator.Collator`."""

    def __init__(self, run: Run, weights: Weights, **arguments: Any) -> None:
        super().__init__(run, weights, **arguments)
        self._takes_label_indices = compute_loss_at_labels(self.model, self.args.label_smoothing_factor)
        if self._takes_label_indices:
            self.label_smoother = None  # the model smooths itself
            self.model_accepts_loss_kwargs = True
        else:
            console.info("the head is no plain linear layer, so the loss is computed from whole logits: more memory.")
        self.weights.spread()
        # where they are sharded, Trainer is to leave them as they are
        self.is_distributed_loading_by_transformers = self.weights.are_sharded
        self._step: _Step | None = None
        self._overflows = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step, which begins here."""
        self.clock.start()
        samples: tuple[list[dict[str, Any]], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass.

        Returns:
            Zero, on the CPU, which Trainer adds to the losses to be logged. The real loss is added by `_check_step`:
            here it would be waited for.
        """
        if self._step is None:
            self._step = _Step()
        self._step.batches.append(dict(inputs))
        self.newest_inputs = {name: inputs[name] for name in INPUTS if name in inputs}
        packed = inputs["packed"]
        for name in ON_HOST if self._takes_label_indices else (*ON_HOST, "label_indices"):
            inputs.pop(name, None)
        inputs["use_cache"] = False  # with a cache, packed documents would see each other
        try:
            with known_layout(packed=packed):
                loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_frames(error)
            short = error
        else:
            self._step.losses.append(loss)
            return torch.zeros(())
        raise self.shortage(self.newest_inputs) from short

    @property
    def precision(self) -> ChosenPrecision:
        """What matmuls are computed in, in training as in evaluation."""
        return "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Autocast where weights are held in 16 bits too, whatever the precision: they meet others in float32."""
        contexts: contextlib.ExitStack = super().compute_loss_context_manager()
        contexts.enter_context(autocast_to(self._compute_dtype, self.model.device))
        return contexts

    @cached_property
    def _compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.model, self.precision)

    def current_learning_rate(self) -> float:
        """The rate that the next step will take."""
        return float(self._get_learning_rate())

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """The norm, once the step is known to be one; Trainer asks for it before each, and logs it."""
        return self._check_step(whole_tensor(super()._get_grad_norm(model, grad_norm)))

    def _check_step(self, norm: Any) -> float:
        """See that losses and gradients of a step are numbers, and stop or leave it out; gives the gradients' norm.

        This is where a step waits for the device, and the only place: all that the host must know comes in one piece.

        Raises:
            RunError: they are not, and the recipe does not say to skip.
        """
        assert self._step is not None
        step, self._step = self._step, None
        *losses, norm = torch.stack([*step.losses, torch.as_tensor(norm, device=step.losses[0].device)]).tolist()
        self.clock.lap()
        finite = [math.isfinite(loss) for loss in losses]
        tokens = sum(int(batch["num_tokens"].sum()) for batch in step.batches)
        broken, tokens_of_all = self.processes.sums(finite.count(False), tokens)
        self.progress.train_tokens += int(tokens_of_all)
        if not broken and (math.isfinite(norm) or self._may_overflow()):
            self._overflows = 0 if math.isfinite(norm) else self._overflows
            for loss in losses:
                self._tr_loss += loss
            return float(norm)
        blamed = [batch for batch, sound in zip(step.batches, finite, strict=True) if not (broken and sound)]
        what = "loss" if broken else "gradient norm"
        line = f"the {what} is not a finite number at step {self.state.global_step + 1}{self._named(blamed)}"
        if self.run.recipe.on_nonfinite == "stop":
            raise RunError(
                f"{line}.",
                where="training",
                remedy="Lower training.learning_rate, keep max_grad_norm at 1.0, or set precision: fp32. If the rows "
                "are to blame, remove them, or set on_nonfinite: skip.",
            )
        self.progress.skipped_steps += 1
        self.run.warn(f"{line}; the step is skipped.")
        self._leave_out()
        return float(norm)

    def _may_overflow(self) -> bool:
        """In fp16 the scaler finds its scale by overflowing, and leaves such a step out itself."""
        self._overflows += 1
        return self.accelerator.scaler is not None and self._overflows < _OVERFLOWS

    def _leave_out(self) -> None:
        """Take no optimizer step, and log no loss for it; the schedule goes on."""
        self._globalstep_last_logged += 1
        if self.accelerator.scaler is None:
            self.accelerator.gradient_state._set_sync_gradients(False)  # the optimizer's step does nothing then

    def _named(self, batches: list[dict[str, Any]]) -> str:
        """Where the rows stand that are to blame, as far as they can be told from the others of their batch."""
        alone: list[int] = []
        if not self.weights.are_sharded:  # no process could compute a row by itself
            alone = [number for batch in batches for number in _rows_that_break(self.model, batch, self.precision)]
        numbers = alone or [int(number) for batch in batches for number in batch.get("numbers", ())]
        found = self.processes.gathered((self.run.data.train.places(numbers[:_NAMED]), len(numbers)))
        places = [place for few, _ in found for place in few][:_NAMED]
        count = sum(each for _, each in found)
        if not places:
            return ""
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        return f", in {'rows' if count > 1 else 'the row'} {', '.join(places)}{more}"

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss and perplexity of all taught tokens together; Trainer's own is a mean of the batches' means.

        Raises:
            RunError: the loss is not finite.
            MemoryRunError: a batch does not fit into memory.
        """
        del description, prediction_loss_only, ignore_keys
        self.clock.stop()
        batches = self.in_step(dataloader) if self.weights.are_sharded else dataloader
        with evaluating(self.args.per_device_eval_batch_size):
            own = evaluate_loss(self.model, batches, self.precision)
        total, tokens, sequences = self.processes.sums(own.total, own.tokens, own.sequences)
        loss = Loss(total, int(tokens), int(sequences))
        if not math.isfinite(loss.total):
            when = f"after step {self.state.global_step}" if self.state.global_step else "before the first step"
            raise RunError(
                f"the loss of the validation data is not a finite number {when}.",
                where="evaluation",
                remedy="Lower training.learning_rate, or check that the base is sound.",
            )
        metrics = {f"{metric_key_prefix}_loss": loss.mean, f"{metric_key_prefix}_perplexity": loss.perplexity}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=loss.sequences)


def _rows_that_break(model: Any, batch: dict[str, Any], precision: ChosenPrecision) -> list[int]:
    """The numbers of the rows of a batch that have a loss which is not finite even alone, without dropout."""
    if "numbers" not in batch or len(batch["numbers"]) != len(batch["input_ids"]):
        return []  # rows that were put one after the other are not taken apart again
    broken = []
    for index, number in enumerate(batch["numbers"].tolist()):
        length = int(batch["num_tokens"][index])  # padding could break the row too
        row = {name: batch[name][index : index + 1, :length] for name in INPUTS if name in batch}
        taught = bool((row["labels"][:, 1:] >= 0).any())
        if taught and not math.isfinite(evaluate_loss(model, [row], precision).total):
            broken.append(int(number))
    return broken
