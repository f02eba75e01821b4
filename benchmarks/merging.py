"""Merging side by side: PEFT's `merge_and_unload` and `save_pretrained`, and peftkit without its proof.

    python -m benchmarks.merging --tokenizer gpt2 [--rounds 3] [--layers 12]

The base has GPT-2's true shape and random weights, and so has the adapter: r 8 on `c_attn`, or on every linear layer.
Each merge is a process of its own, which imports all libraries first. Memory is how far the resident set rises above
what it was then; time runs from there to the finished folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.training import make_base

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"c_attn": ["c_attn"], "all-linear": "all-linear"}
STATUS = Path("/proc/self/status")


def make_adapter(base: Path, folder: Path, targets: str) -> None:
    """An adapter of random numbers, saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS[targets], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)


def merge_with_peft(base: Path, adapter: Path, output: Path) -> None:
    """What PEFT's documentation does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)


def merge_with_peftkit(base: Path, adapter: Path, output: Path) -> None:
    """`peftkit merge --no-verify`."""
    from peftkit.adapters.files import GivenBase
    from peftkit.adapters.merge import MergeSettings, merge

    merge([(adapter, 1.0)], output, MergeSettings(verify=False), GivenBase(str(base)))


MERGES: dict[str, Callable[[Path, Path, Path], None]] = {"peft": merge_with_peft, "peftkit": merge_with_peftkit}


def contend(name: str, base: str, adapter: str, output: str) -> None:
    """One merge, in this process: print its seconds and bytes."""
    import peft
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel  # noqa: F401

    import peftkit.adapters.merge

    del peft, peftkit
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again
    before, begin = _bytes("VmRSS"), time.perf_counter()
    MERGES[name](Path(base), Path(adapter), Path(output))
    print(json.dumps({"seconds": time.perf_counter() - begin, "bytes": _bytes("VmHWM") - before}))


def measure(name: str, base: Path, adapter: Path) -> dict[str, float]:
    """One merge in a process of its own."""
    with tempfile.TemporaryDirectory(dir=base.parent) as work:
        places = [str(base), str(adapter), f"{work}/out"]
        command = [sys.executable, "-m", "benchmarks.merging", "--contend", name, *places]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name:8} {found['seconds']:5.2f} s, {found['bytes'] / 1e6:5.0f} MB", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--contend", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contend:
        contend(*arguments.contend)
        return
    with tempfile.TemporaryDirectory() as work:
        base = Path(work, "base")
        make_base(base, arguments.tokenizer, arguments.layers)
        for targets in TARGETS:
            adapter = Path(work, targets)
            make_adapter(base, adapter, targets)
            print(targets)
            rounds = [
                {name: measure(name, base, adapter) for name in sorted(MERGES, reverse=bool(number % 2))}
                for number in range(arguments.rounds)
            ]
            for unit in ("seconds", "bytes"):
                ratios = [found["peftkit"][unit] / found["peft"][unit] for found in rounds]
                each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"  {unit} of PEFT's: {statistics.median(ratios):.2f} ({each})")


def _bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
