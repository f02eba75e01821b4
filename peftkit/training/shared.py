"""A Trainer whose steps are shared by several processes, so that they are the steps that one would take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from peftkit.data.formats.format import NO_LABEL
from peftkit.training.processes import Processes
from peftkit.training.weights import Weights

__all__ = ["SharedTrainer"]

_FEW_TOKENS = 2


class SharedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that deals every batch out, each row to one process, and gives those that get none a blank instead."""

    def __init__(self, processes: Processes, weights: Weights, **arguments: Any) -> None:
        self.weights = weights
        super().__init__(model=weights.model, **arguments)
        self.processes = processes
        self.draws_alike = False
        """Whether every process draws the same random numbers: from an epoch's beginning until its order is drawn."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step, the same number in all processes: each waits for the gradients of the others.

        From the first step of an epoch on, each process draws its own dropout.
        """
        if self.processes.are_many:
            epoch_iterator = chain(epoch_iterator, self._blanks())
        samples: tuple[list[dict[str, Any]], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.draws_alike:
            self.part_ways()
        return samples

    def part_ways(self) -> None:
        """Draw other random numbers from here on than the other processes, which have drawn the same so far."""
        self.draws_alike = False
        if self.processes.are_many:
            torch.manual_seed(int(torch.randint(2**62, ())) + self.processes.place.rank)

    def in_step(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Batches, and then blanks until every process has had its own: each waits for the weights of the others."""
        own, blanks = iter(batches), self._blanks()
        while self.processes.largest((batch := next(own, None)) is not None)[0]:
            yield batch or next(blanks)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not self.weights.are_sharded:  # each process moves only its part
            super()._move_model_to_device(model, device)

    def _blanks(self) -> Iterator[dict[str, Any]]:
        """Batches that teach nothing and count for nothing: the beginning of a row, without labels."""
        row = {name: values[:_FEW_TOKENS] for name, values in self.train_dataset[0].items() if name != "number"}
        row["labels"] = np.full_like(row["labels"], NO_LABEL)
        while True:
            yield {**self.data_collator([row]), "num_tokens": np.zeros(1, np.int64)}
