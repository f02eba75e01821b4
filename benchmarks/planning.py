"""What `peftkit plan` says against what `peftkit train` then measures.

    python -m benchmarks.planning --text FILE --tokenizer gpt2 [--seconds 20]

Three methods, two bases (the embedded one, and GPT-2 in its true shape with random weights) and two lengths of the
sequences. Each plan and each training is a process of its own; a training follows its plan, so that both find the
machine in much the same mood.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.training import make_base

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("full", "lora", "qlora")
RECIPE = """\
name: planned
base: {{model: "{base}"}}
data:
  train: {{path: {text}}}
  validation: 0.01
  format: text
  max_length: {length}
training:
  per_device_train_batch_size: {rows}
  per_device_eval_batch_size: {rows}
  max_steps: {steps}
  eval_strategy: epoch
  save_strategy: steps
  save_steps: {saves}
generation: {{samples: 0}}
"""


def peftkit(*arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "peftkit", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(recipe: Path, method: str, seconds: float, output: Path) -> tuple[str, float, float]:
    """A line of the table, and what was planned of what was measured: memory and time."""
    (planned,) = peftkit("plan", str(recipe), "--method", method, "--seconds", str(seconds))["plans"]
    (dry,) = peftkit("plan", str(recipe), "--method", method, "--dry")["plans"]
    metrics = peftkit("train", str(recipe), "--method", method, "--no-report", "--output", str(output))["metrics"]
    shutil.rmtree(output)
    peak, time = metrics["peak_memory_bytes"], metrics["train_seconds"]
    memory, duration = planned["peak_memory_bytes"] / peak, planned["train_seconds"] / time
    line = (
        f"{planned['peak_memory_bytes'] / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {memory:.2f} | "
        f"{dry['peak_memory_bytes'] / peak:.2f} | {planned['train_seconds']:.0f} s "
        f"({planned['train_seconds_low']:.0f} to {planned['train_seconds_high']:.0f}) | {time:.0f} s | {duration:.2f}"
    )
    return line, memory, duration


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_base(work / "gpt2", arguments.tokenizer, 12)
        text = arguments.text.resolve()
        shapes = [
            ("embedded", "builtin:tiny-gpt2", 64, 32, 80),
            ("embedded", "builtin:tiny-gpt2", 128, 32, 50),
            ("gpt2", str(work / "gpt2"), 128, 4, 14),
            ("gpt2", str(work / "gpt2"), 512, 2, 10),
        ]
        print("| base | rows of tokens | method | planned | peak | ratio | dry | planned | time | ratio |")
        print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
        worst = [0.0, 0.0]
        for base, model, length, rows, steps in shapes:
            recipe = work / "planned.yaml"
            values = {"base": model, "text": text, "length": length, "rows": rows, "steps": steps, "saves": steps // 2}
            recipe.write_text(RECIPE.format(**values), encoding="utf-8")
            for method in METHODS:
                line, *ratios = compare(recipe, method, arguments.seconds, work / "run")
                print(f"| {base} | {rows} of {length} | {method} | {line} |", flush=True)
                worst = [max(most, abs(ratio - 1)) for most, ratio in zip(worst, ratios, strict=True)]
        print(f"\nat most {worst[0]:.0%} off in memory, {worst[1]:.0%} in time")


if __name__ == "__main__":
    main()
