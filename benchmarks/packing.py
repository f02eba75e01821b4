"""What packing is worth: useful tokens per second of the same training, padded and packed.

    python -m benchmarks.packing [--base FOLDER-OR-NAME] [--method lora] [--rounds 3]

Each round trains both ways in turn, in processes of their own, so that a machine's moods fall on both; the ratio of a
round says more than its figures. Documents are the first 2,000 of peftkit's own corpus.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """\
name: packing
base: {{model: "{base}"}}
data:
  train: {{dataset: "builtin:grammar", name: corpus, limit: 2000}}
  max_length: 128
training: {{per_device_train_batch_size: 8, max_steps: {steps}, save_strategy: "no"}}
"""


def tokens_per_second(folder: Path, arguments: argparse.Namespace, packing: str) -> float:
    """Useful tokens per second of one run."""
    command = [sys.executable, "-m", "peftkit", "train", str(folder / "recipe.yaml"), "--method", arguments.method]
    command += ["--set", f"data.packing={packing}", "--output", str(folder / packing), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["metrics"]["tokens_per_second"])


def main() -> None:
    """Print each round's figures and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="builtin:tiny-gpt2")
    parser.add_argument("--method", default="lora", choices=["full", "lora", "qlora"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    for number in range(1, arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe = RECIPE.format(base=arguments.base, steps=arguments.steps)
            (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
            padded, packed = (tokens_per_second(folder, arguments, packing) for packing in ("false", "true"))
        ratios.append(packed / padded)
        print(f"round {number}: padded {padded:,.0f}, packed {packed:,.0f} tokens/s, ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
