"""The command line of the GPU benchmark."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.goals import goals
from benchmarks.gpu.harness import Bench, Outcome, run_parts
from benchmarks.gpu.registry import PARTS
from benchmarks.gpu.shapes import FULL, SMOKE
from benchmarks.gpu.table import folder_name, in_order, read_parts, write_results
from benchmarks.gpu.workers import Workers, has_gpu

RESULTS = Path(__file__).resolve().parents[1] / "results"


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU too, to try the benchmark itself")
    parser.add_argument("--output", type=Path, help="folder of gpu.json and gpu.md; unset: results/CARD-DATE")
    parser.add_argument(
        "--only",
        help=f"parts by name, with commas; others in --output stay: {', '.join(part.name for part in PARTS)}",
    )
    parser.add_argument("--budget", type=float, default=470, help="seconds after which no part begins (%(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the parts, and return the exit status: 1 if one failed."""
    arguments = parsed()
    start = time.monotonic()
    names = [part.name for part in PARTS]
    wanted = arguments.only.split(",") if arguments.only else names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        sys.exit(f"there is no part {unknown[0]}; there are: {', '.join(names)}")
    scale = SMOKE if arguments.smoke else FULL
    together = 4 if has_gpu() else 2
    with tempfile.TemporaryDirectory(prefix="peftkit-gpu-") as name:
        pool = Workers(Path(name), spare=together)
        try:
            machine = pool.call("benchmarks.gpu.device:machine", {}, 120)
            folder = arguments.output or RESULTS / folder_name(machine, smoke=scale.smoke)
            folder.mkdir(parents=True, exist_ok=True)
            bench = Bench(scale, machine, Path(name), pool, deadline=start + arguments.budget)

            def save(outcomes: list[Outcome]) -> None:
                outcomes = in_order([*earlier, *outcomes], names)
                found = goals(outcomes, machine, smoke=scale.smoke)
                seconds = round(time.monotonic() - start, 1)
                write_results(folder, outcomes, found, machine, smoke=scale.smoke, seconds=seconds)

            parts = [part for part in PARTS if part.name in wanted]
            earlier = read_parts(folder, machine) if arguments.only else []
            outcomes = run_parts(parts, bench, save, together=together, report=_report)
        finally:
            pool.close()
    print(f"{folder}/gpu.md, {folder}/gpu.json")
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _report(outcome: Outcome) -> None:
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"{outcome.seconds:6.1f} s  {outcome.part:12} {outcome.status}{reason}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
