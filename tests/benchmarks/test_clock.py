"""The clock of training steps, and what counts as a useful token."""

from __future__ import annotations

import time

import torch

from benchmarks.clock import StepClock, useful_tokens


class Counted:
    """An observer that notes at how many steps it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")


def test_only_the_timed_steps_count() -> None:
    observer = Counted()
    clock = StepClock(warmup=1, timed=2, observed=1, observer=observer)

    for pause, tokens in ((0.3, 100), (0.01, 3), (0.01, torch.tensor(4)), (0.3, 100)):
        time.sleep(pause)
        clock.step(tokens)

    assert clock.steps == 4
    assert clock.tokens == 7
    assert 0.02 <= clock.seconds < 0.3
    assert observer.calls == ["start", "stop"]


def test_padding_is_recognised_by_the_mask_or_by_id_and_label() -> None:
    ids = torch.tensor([[5, 6, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0]])
    labels = torch.tensor([[-100, 6, 1, -100]])

    assert useful_tokens({"input_ids": ids, "attention_mask": mask}, padding=1) == 3
    assert useful_tokens({"input_ids": ids}, padding=1) == 2
    assert useful_tokens({"input_ids": ids, "labels": labels}, padding=1) == 3  # an end of text that is trained on
    assert useful_tokens({"input_ids": ids}, padding=None) == 4
