"""Training side by side: a tutorial's script, TRL's SFTTrainer and peftkit, on the same documents and steps.

    python -m benchmarks.training --text FILE --tokenizer gpt2 [--rounds 3] [--steps 9] [--json FILE]

The base has GPT-2's true shape and random weights, so nothing but a tokenizer is needed. Each measurement is a process
of its own; those of a round follow each other, in another order each round, so that a machine's moods fall on all; the
ratios of a round say more than its figures. Needs `pip install 'peftkit[bench]'`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contenders import Job

CONTENDERS = ["guide", "trl", "peftkit", "limit"]
LONG = 1024
ROOT = Path(__file__).resolve().parents[1]
Round = dict[str, dict[str, float]]


def make_base(folder: Path, tokenizer: str, layers: int) -> None:
    """GPT-2 of its true shape, or with fewer layers, with random weights and a real tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(42)
    GPT2LMHeadModel(GPT2Config(n_layer=layers)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def measure(job: Job) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.contenders", json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job.name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    line = f"  {job.name:8} {found['tokens_per_second']:7,.1f} tokens/s"
    if found["peak_bytes"]:
        line += f", peak {_gigabytes(found['peak_bytes'])}, of it for the step {_gigabytes(found['step_bytes'])}"
    print(line, flush=True)
    return found


def rounds(arguments: argparse.Namespace, base: Path, method: str) -> Iterator[Round]:
    """Each round's measurements by contender."""
    for number in range(arguments.rounds):
        print(f"\n{method}, round {number + 1}", flush=True)
        shift = number % len(CONTENDERS)
        order = CONTENDERS[shift:] + CONTENDERS[:shift]
        yield {
            name: measure(
                Job(
                    name=name,
                    method=method,
                    base=str(base),
                    text=arguments.text,
                    steps=arguments.steps,
                    batch=arguments.batch,
                    length=arguments.length,
                    trl_packing=arguments.trl_packing,
                )
            )
            for name in order
        }


def long_sequences(arguments: argparse.Namespace, base: Path, method: str) -> Round:
    """The stock Trainer and peftkit on the same full sequences of 1,024 tokens."""
    print(f"\n{method}, {LONG} tokens a sequence", flush=True)
    jobs = [
        Job(name, method, str(base), arguments.text, 3, arguments.long_batch, LONG, whole=True)
        for name in ("guide", "peftkit")
    ]
    return {job.name: measure(job) for job in jobs}


def summary(method: str, found: list[Round], long: Round) -> list[str]:
    """The rows of the table for one method: medians of the figures, and of the rounds' ratios."""

    def median(name: str, field: str) -> float:
        return statistics.median(each[name][field] for each in found)

    def ratio(name: str, to: str) -> float:
        return statistics.median(each[name]["tokens_per_second"] / each[to]["tokens_per_second"] for each in found)

    rows = []
    for name in CONTENDERS[:-1]:
        speed, peak = median(name, "tokens_per_second"), median(name, "peak_bytes")
        step = _gigabytes(long[name]["step_bytes"]) if name in long else ""
        ratios = f"{ratio(name, 'guide'):.2f} | {ratio(name, 'limit'):.2f}"
        rows.append(f"| {method} | {name} | {speed:,.0f} | {ratios} | {_gigabytes(peak)} | {step} |")
    speed = median("limit", "tokens_per_second")
    rows.append(f"| {method} | matrix products alone | {speed:,.0f} | {ratio('limit', 'guide'):.2f} | 1.00 | | |")
    return rows


def machine() -> str:
    """What it was measured with."""
    names = ("torch", "transformers", "peft", "trl", "peftkit")
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in names)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return f"{today}, {cpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def _absolute(path: str) -> str:
    return str(Path(path).resolve())


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=_absolute, help="a text file of a document a line, as WikiText's")
    parser.add_argument("--tokenizer", default="gpt2", help="hub name or folder")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9, help="the first warms up and does not count")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--long-batch", type=int, default=4, help="rows of 1,024 tokens in a step")
    parser.add_argument("--layers", type=int, default=12, help="fewer than GPT-2's 12, to try the benchmark itself")
    parser.add_argument("--trl-packing", default="wrapped", help="wrapped is its fastest strategy on a CPU")
    parser.add_argument("--json", help="write every measurement here")
    return parser.parse_args()


def ratios(found: list[Round], long: Round) -> Iterator[str]:
    """The figures that a change is judged by, a line each."""
    for other in ("guide", "trl", "limit"):
        each = [one["peftkit"]["tokens_per_second"] / one[other]["tokens_per_second"] for one in found]
        yield f"peftkit to {other}: median {statistics.median(each):.2f}, of {', '.join(f'{r:.2f}' for r in each)}"
    memory = long["peftkit"]["step_bytes"] / long["guide"]["step_bytes"]
    yield f"memory of a step at {LONG} tokens a sequence, peftkit to guide: {memory:.2f}"


def main() -> None:
    """Print each round's figures and a table of them all."""
    arguments = parsed()
    table: list[str] = []
    everything: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        make_base(base, arguments.tokenizer, arguments.layers)
        for method in arguments.methods:
            found = list(rounds(arguments, base, method))
            long = long_sequences(arguments, base, method)
            everything[method] = {"rounds": found, "long": long}
            table += summary(method, found, long)
            print("\n".join(ratios(found, long)), flush=True)
    print(f"\n{everything['machine']}\n")
    print("| method | what | tokens/s | to the guide's | of the limit | peak memory | step at 1,024 tokens |")
    print("|---|---|--:|--:|--:|--:|--:|")
    print("\n".join(table))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
