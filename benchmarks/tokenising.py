"""What ten times the data costs: seconds and memory of reading, tokenising and keeping a text, and of opening it again.

    python -m benchmarks.tokenising --text FILE --tokenizer FOLDER [--copies 10] [--rounds 3]

The text is taken a few times over for the small file and ten times that for the large one, with a number before each
line, so that no two lines are the same. Each measurement is a process of its own; its memory is its largest resident
set and that of the largest process that tokenised for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = """
import json, resource, sys, time
from peftkit.data.prepare import prepare
from peftkit.models.base import open_tokenizer
from peftkit.recipe.schema import Data
from pathlib import Path

data = Data.model_validate({"train": {"path": sys.argv[1]}, "max_length": 512})
tokenizer = open_tokenizer(Path(sys.argv[2]))
start = time.perf_counter()
found = prepare(data, tokenizer).train
seconds = time.perf_counter() - start
whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
peak = sum(resource.getrusage(who).ru_maxrss for who in whose) * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "tokens": found.counts.tokens}))
"""


def measure(text: Path, tokenizer: str, cache: Path) -> dict[str, float]:
    """One preparation in a process of its own."""
    command = [sys.executable, "-c", WORKER, str(text), tokenizer]
    environment = {**os.environ, "PEFTKIT_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(path: Path, text: str, copies: int) -> None:
    """The text some times over, with no line twice."""
    lines = [line for line in text.splitlines() if line.strip()]
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(f"{copy} {line}\n" for line in lines)


def main() -> None:
    """Print each round, and the medians of its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokenizer", required=True, help="a folder")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    text = Path(arguments.text).read_text(encoding="utf-8")
    times, memories = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"small": folder / "small.txt", "large": folder / "large.txt"}
        write(files["small"], text, arguments.copies)
        write(files["large"], text, 10 * arguments.copies)
        for number in range(1, arguments.rounds + 1):
            found = {
                size: measure(path, arguments.tokenizer, folder / f"{size}-{number}") for size, path in files.items()
            }
            again = measure(files["large"], arguments.tokenizer, folder / f"large-{number}")
            times.append(found["large"]["seconds"] / found["small"]["seconds"])
            memories.append(found["large"]["peak_bytes"] / found["small"]["peak_bytes"])
            shown = [
                f"{size} {one['tokens']:,} tokens in {one['seconds']:.1f} s, {one['peak_bytes'] / 1e6:,.0f} MB"
                for size, one in (*found.items(), ("again", again))
            ]
            print(f"round {number}: {'; '.join(shown)}", flush=True)
    ratio, memory = statistics.median(times), statistics.median(memories)
    print(f"ten times the data: {ratio:.1f} times the time, {memory:.2f} the memory")


if __name__ == "__main__":
    main()
