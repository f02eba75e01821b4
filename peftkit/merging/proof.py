"""Whether two models compute the same: a probe, its logits here, and its logits in a process without helpers.

Run as `python -m peftkit.merging.proof FOLDER PROBE RESULT`: reads `input_ids` [rows, tokens] from the safetensors file
PROBE, opens the model in FOLDER with Transformers alone, and writes its float32 `logits` to RESULT.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import RunError

__all__ = ["INT8_TOLERANCE", "logits_in_fresh_process", "logits_of", "probe_ids", "relative_error"]

INT8_TOLERANCE = 0.1
"""Relative difference of logits that is accepted of an 8-bit base. LLM.int8() rounds what it multiplies to a 127th of
the largest (Dettmers et al. 2022), so the last bit of a float may decide about a whole step."""

_PROBE_SHAPE = (4, 32)


def probe_ids(vocabulary: int) -> torch.Tensor:
    """Token ids [4, 32] spread over a vocabulary, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, _PROBE_SHAPE, generator=generator)


@torch.inference_mode()
def logits_of(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """A model's logits for token ids [rows, tokens], in evaluation mode: float32 [rows, tokens, vocabulary]."""
    logits: torch.Tensor = model.eval()(input_ids=input_ids.to(model.device)).logits
    return logits.float().cpu()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def logits_in_fresh_process(folder: Path, input_ids: torch.Tensor) -> torch.Tensor:
    """What the model in `folder` says to `input_ids` when a process without PEFT and bitsandbytes opens it.

    Raises:
        RunError: the process could not open the model.
    """
    with tempfile.TemporaryDirectory() as work:
        probe, result = Path(work, "probe.safetensors"), Path(work, "logits.safetensors")
        save_file({"input_ids": input_ids}, probe)
        command = [sys.executable, "-m", "peftkit.merging.proof", str(folder), str(probe), str(result)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["it said nothing"]
            raise RunError(f"a fresh process cannot open the model: {lines[-1]}", where=str(folder))
        return load_file(result)["logits"]


def _main(folder: str, probe: str, result: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    logits = logits_of(model, load_file(probe)["input_ids"])
    helpers = {"peft", "bitsandbytes"} & set(sys.modules)
    if helpers:
        raise SystemExit(f"{' and '.join(sorted(helpers))} was loaded; the proof needs a process without it")
    save_file({"logits": logits.contiguous()}, result)


if __name__ == "__main__":
    _main(*sys.argv[1:])
