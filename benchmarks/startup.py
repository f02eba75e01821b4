"""How long the first commands of a user take, beside a bare click program of one command.

    python -m benchmarks.startup [--rounds 15] [--before CHECKOUT]

Each measurement is a process of its own, from its start to its end, with everything compiled; in a round a command
follows the bare program directly. `--before` measures the package of another checkout in the same rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("--help", "recipes list", "explain", "explain lora.r", "explain save_steps")
BARE = '''\
import click


@click.command("bare")
@click.option("--name", help="A name.")
def main(name):
    """A program of one command."""
    click.echo(name)
'''


def seconds_of(module: str, arguments: str, folder: Path) -> float:
    """Time of one process that calls the `main` of a module in a folder."""
    command = [sys.executable, "-c", f"from {module} import main; main()", *arguments.split()]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def line(arguments: str, packages: Sequence[Path], bare: Path, rounds: int) -> str:
    """A row of the table: the medians of the bare program and of each package, and their ratios in the rounds."""
    found: list[list[float]] = []
    for _ in range(rounds + 1):
        times = [seconds_of("bare", "--help", bare)]
        found.append([*times, *(seconds_of("peftkit.cli", arguments, package) for package in packages)])
    measured = found[1:]  # the first round compiles, and fills the caches
    cells = [f"{median(times) * 1000:.0f} ms" for times in zip(*measured, strict=True)]
    for number in range(1, len(packages) + 1):
        ratios = sorted(times[number] / times[0] for times in measured)
        cells.append(f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return f"| `peftkit {arguments}` | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the first commands beside a bare click program.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="Measure this one's package, too.")
    asked = parser.parse_args()
    packages = {"before": asked.before, "now": ROOT} if asked.before else {"now": ROOT}
    print(f"| command | bare click | {' | '.join([*packages, *(f'ratio {name}' for name in packages)])} |")
    print("|---|" + "--:|" * (1 + 2 * len(packages)))
    with tempfile.TemporaryDirectory(prefix="peftkit-startup-") as name:
        (Path(name) / "bare.py").write_text(BARE, encoding="utf-8")
        for arguments in COMMANDS:
            print(line(arguments, list(packages.values()), Path(name), asked.rounds), flush=True)


if __name__ == "__main__":
    main()
