"""Saving side by side: the stock Trainer's checkpoints, and those that verify.

    python -m benchmarks.checkpoints --text train.txt --tokenizer gpt2 [--rounds 3] [--steps 24] [--every 8]

Both train GPT-2's true shape with random weights through the same Trainer, on the same rows, and save at the same
steps. Only what saving does differs: the stock one writes and is done; peftkit's also syncs each file to the disk,
takes its SHA-256, writes the manifest, and only then gives the folder its name, all in a thread. Time runs from the
first step until the last checkpoint is whole. Each run is a process of its own, and the two take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.training import make_base

ROOT = Path(__file__).resolve().parents[1]


def contend(name: str, recipe: str, method: str, output: str) -> None:
    """One run, in this process: print its seconds."""
    from transformers import Trainer

    import peftkit.training.trainer as own
    from peftkit.recipe.loader import load_recipe
    from peftkit.training.run import run

    if name == "stock":
        own.TokenTrainer._save_checkpoint = Trainer._save_checkpoint  # type: ignore[method-assign]
    _, manifest = run(load_recipe(Path(recipe), method=method, output=Path(output)))
    print(json.dumps({"seconds": manifest.metrics.train_seconds}))


def measure(name: str, recipe: Path, method: str, work: Path) -> float:
    """Seconds of one run."""
    output = work / "run"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--contend", name, str(recipe), method, str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {method} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def recipe_text(base: Path, text: Path, steps: int, every: int) -> str:
    """The recipe of both."""
    return f"""\
name: checkpoints
base: {{model: {base}}}
data:
  train: {{path: {text}}}
  format: text
  max_length: 128
  packing: true
training: {{max_steps: {steps}, save_strategy: steps, save_steps: {every}, logging_steps: {steps}}}
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--contend", nargs=4)
    arguments = parser.parse_args()
    if arguments.contend:
        contend(*arguments.contend)
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_base(work / "base", arguments.tokenizer, arguments.layers)
        recipe = work / "recipe.yaml"
        recipe.write_text(
            recipe_text(work / "base", arguments.text.resolve(), arguments.steps, arguments.every), encoding="utf-8"
        )
        for method in ("full", "lora"):
            rounds = [
                {contender: measure(contender, recipe, method, work) for contender in ("stock", "verified")}
                for _ in range(arguments.rounds)
            ]
            for each in rounds:
                print(f"{method}: stock {each['stock']:.1f} s, verified {each['verified']:.1f} s")
            ratios = [each["verified"] / each["stock"] for each in rounds]
            print(f"{method}: verified / stock = {statistics.median(ratios):.3f} (median of {len(ratios)})")


if __name__ == "__main__":
    main()
