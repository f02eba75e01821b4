"""The real `peftkit` commands, run in a process that may be short of memory, or killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import limit_memory, peak_bytes

__all__ = ["peftkit", "save_base"]


def peftkit(
    *,
    arguments: list[str],
    room_bytes: int | None = None,
    room_after_training: int | None = None,
    killed_after: str | None = None,
) -> dict[str, Any]:
    """Run a command as a user would.

    Args:
        arguments: what follows `peftkit`.
        room_bytes: memory that it may have; see `benchmarks.gpu.device.limit_memory`.
        room_after_training: memory that it may have in addition to what it has when training has ended.
        killed_after: a folder; this process kills itself, as `kill -9` would, once a checkpoint is in it.

    Returns:
        `status`, `stdout`, `stderr`, `seconds`, `peak_bytes`, and `trained_peak_bytes`, the peak up to the end of
        training.
    """
    if killed_after is not None:
        threading.Thread(target=_kill_after, args=(Path(killed_after),), daemon=True).start()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        marks: dict[str, int] = {}
        with _redirected(1, stdout.fileno()), _redirected(2, stderr.fileno()), _marked(marks, room_after_training):
            if room_bytes is not None:
                limit_memory(room_bytes)
            start = time.perf_counter()
            status = _status(arguments)
            seconds = time.perf_counter() - start
            limit_memory(None)
            sys.stdout.flush()
            sys.stderr.flush()
        found = []
        for file in (stdout, stderr):
            file.seek(0)
            found.append(file.read())
    return {
        "status": status,
        "stdout": found[0],
        "stderr": found[1],
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        **marks,
    }


def save_base(folder: str, config: dict[str, Any], tokenizer: str) -> None:
    """Write a base with random weights in float32, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(42)
    kind = config.pop("model_type")
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def _kill_after(checkpoints: Path) -> None:
    while not any("." not in path.name for path in checkpoints.glob("step-*")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def _status(arguments: list[str]) -> int:
    from peftkit.cli import main

    try:
        main(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  a user would see it
        traceback.print_exc()
        return 70


@contextlib.contextmanager
def _redirected(descriptor: int, target: int) -> Iterator[None]:
    """Send what is written to a file descriptor to another one."""
    kept = os.dup(descriptor)
    os.dup2(target, descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept, descriptor)
        os.close(kept)


@contextlib.contextmanager
def _marked(marks: dict[str, int], room_after_training: int | None) -> Iterator[None]:
    """Note the peak of memory when training ends, and perhaps leave little for what follows."""
    from transformers import Trainer

    stock = Trainer.train

    def train(self: Any, *arguments: Any, **named: Any) -> Any:
        result = stock(self, *arguments, **named)
        marks["trained_peak_bytes"] = peak_bytes()
        if room_after_training is not None:
            _leave(room_after_training)
        return result

    Trainer.train = train
    try:
        yield
    finally:
        Trainer.train = stock


def _leave(room_bytes: int) -> None:
    """Let this process have only so much more than it has now."""
    import torch

    held = 0
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved()
    limit_memory(held + room_bytes)
