"""Logits of a saved model, computed by a process that has neither PEFT nor bitsandbytes.

Run as `python -m peftkit.merging.proof FOLDER PROBE RESULT`: reads `input_ids` [rows, tokens] from the safetensors file
PROBE, opens the model in FOLDER with Transformers alone, and writes its float32 `logits` to RESULT.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from peftkit.errors import RunError

__all__ = ["logits_in_fresh_process"]


def logits_in_fresh_process(folder: Path, input_ids: Any, work: Path) -> Any:
    """What the model in `folder` says to `input_ids` when another process opens it; `work` takes temporary files.

    Raises:
        RunError: the process could not open the model with Transformers alone.
    """
    from safetensors.torch import load_file, save_file

    probe, result = work / "probe.safetensors", work / "logits.safetensors"
    save_file({"input_ids": input_ids}, probe)
    command = [sys.executable, "-m", "peftkit.merging.proof", str(folder), str(probe), str(result)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["it said nothing"]
        raise RunError(f"a fresh process cannot open the merged model: {lines[-1]}", where=str(folder))
    return load_file(result)["logits"]


def _main(folder: str, probe: str, result: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.inference_mode():
        logits = model(input_ids=load_file(probe)["input_ids"]).logits.float().contiguous()
    helpers = {"peft", "bitsandbytes"} & set(sys.modules)
    if helpers:
        raise SystemExit(f"{' and '.join(sorted(helpers))} was loaded; the proof needs a process without it")
    save_file({"logits": logits}, result)


if __name__ == "__main__":
    _main(*sys.argv[1:])
