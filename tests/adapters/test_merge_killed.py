"""A merge that is killed leaves nothing that looks complete and is not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from peftkit.adapters.proof import Sample, compare, logits_of
from peftkit.adapters.target import open_adapter
from peftkit.storage import manifest_faults

# One process imports the libraries and forks a child for each merge, so that the kills fall into the merge itself.
MERGES = """
import os, sys, time
from pathlib import Path
from peftkit.adapters.merge import MergeSettings, merge
import peft, transformers.models.gpt2
adapter, place = Path(sys.argv[1]), Path(sys.argv[2])
for number in range(int(sys.argv[3])):
    child = os.fork()
    if not child:
        print("begun", os.getpid(), flush=True)
        merge([(adapter, 1.0)], place / str(number), MergeSettings(verify=sys.argv[4] == "verify"))
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def folders_that_load(place: Path) -> list[Path]:
    """Everything that a library would take for a model, whatever its name."""
    return [config.parent for config in place.rglob("config.json")]


def error_of(place: Path, expected: list[torch.Tensor], sample: Sample) -> float | None:
    """How far a folder's logits are off; None where it does not load."""
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError):
        return None
    return compare(logits_of(model, sample), expected, sample).relative_error


@pytest.mark.parametrize(("proof", "kills"), [("no-verify", 10), pytest.param("verify", 10, marks=pytest.mark.slow)])
def test_a_merge_killed_at_any_moment_leaves_nothing_wrong(
    proof: str, kills: int, runs: dict[str, Path], tmp_path: Path
) -> None:
    adapter = runs["qlora"] / "adapter"
    command = [sys.executable, "-c", MERGES, str(adapter), str(tmp_path), str(kills + 1), proof]
    moments, seconds = random.Random(kills), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for number in range(kills + 1):
            child = int(process.stdout.readline().split()[1])
            begin = time.monotonic()
            if number:  # the first is left alone, to see how long a merge takes
                time.sleep(moments.uniform(0, seconds))
                with contextlib.suppress(ProcessLookupError):  # this one was quicker than the first
                    os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "ended\n"
            seconds = seconds or time.monotonic() - begin
    sample = Sample.read(adapter, 1024)
    expected = logits_of(open_adapter(adapter, "cpu")[0], sample)

    complete = [place for place in tmp_path.iterdir() if not place.name.startswith(".")]
    assert {place.name: manifest_faults(place) for place in complete} == {place.name: [] for place in complete}
    assert tmp_path / "0" in complete
    errors = {place.name: error_of(place, expected, sample) for place in folders_that_load(tmp_path)}
    assert {name: error for name, error in errors.items() if error is not None and not error < 1e-5} == {}
