"""The parts that ask what happens when memory is short, and whether peftkit knows beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.checks import COMMAND, succeeded
from benchmarks.gpu.documents import full_documents, write_documents
from benchmarks.gpu.harness import Bench, Row
from benchmarks.gpu.shapes import TOKENIZER, Shape

__all__ = ["auto_batch", "end_of_run", "shortages"]

_MB = 10**6
_UNEXPECTED = "PEFTKIT_TRACEBACK"
"""What peftkit adds to an error that it did not expect."""

_PLACES: Final = {"step": "a step of", "optimizer": "an optimizer step", "evaluation": "the evaluation of"}
"""How a message begins that names the place where memory is short."""

_END_BOUND = 1.001
"""Of the peak of training, at the end of a run: what is counted in blocks may be a block more."""

_TRUE: Final = Shape("gpt2", 12, 768, 12, 50_257, 1024)
_TINY: Final = Shape("gpt2", 4, 1024, 8, 1024, 128)
"""As large as is needed to tell its optimizer's memory from the noise of a CPU's allocator."""


@dataclass(frozen=True)
class _Sizes:
    """A base that is saved, and batches that are too large for what a process may have."""

    base: str
    rows: str
    weights_bytes: int
    """Of the base in float32."""

    length: int
    room_bytes: int
    """What a step of one row needs in addition to weights, gradients and the optimizer's state, and some more."""

    many_rows: int
    """Whose activations in a step do not fit into that, while those of some of them do."""

    more_rows: int
    """Whose activations in an evaluation, which keeps those of one layer, do not fit either."""

    def recipe(self, folder: Path, name: str, *, method: str, rows: int = 1, evaluated: int = 0, **more: Any) -> str:
        """Write a recipe.

        Args:
            folder: where.
            name: of the recipe.
            method: full, lora or qlora.
            rows: in a step.
            evaluated: rows in a batch of the evaluation, or 0 for none.
            more: further fields of the recipe.
        """
        training = {"per_device_train_batch_size": rows, "max_steps": 2, "save_strategy": "no", "logging_steps": 1}
        training |= {"per_device_eval_batch_size": max(1, evaluated), "eval_strategy": "epoch" if evaluated else "no"}
        data: dict[str, Any] = {"train": {"path": self.rows}, "format": "tokens", "max_length": self.length}
        data |= {"packing": False, "max_leaked": 1.0}
        if evaluated:
            data["validation"] = {"path": self.rows}
        values = {"name": name, "method": method, "base": {"model": self.base}, "data": data, "training": training}
        values |= {"generation": {"samples": 0}, **more}
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        return str(path)


def shortages(bench: Bench) -> Iterator[Row]:
    """Memory that runs out in each place of a run: one clear line and status 1 are right, a traceback is not."""
    sizes = _prepared(bench)
    weights, room = sizes.weights_bytes, sizes.room_bytes
    places = {
        "step": (sizes.recipe(bench.folder, "step", method="full", rows=sizes.more_rows), 4 * weights + room),
        # weights and gradients fit, the optimizer's state, of twice the weights, does not; autocast would add copies
        "optimizer": (sizes.recipe(bench.folder, "optimizer", method="full", precision="fp32"), 3 * weights),
        "evaluation": (
            sizes.recipe(bench.folder, "evaluation", method="full", evaluated=sizes.more_rows),
            4 * weights + room,
        ),
    }
    for place, (recipe, limit) in places.items():
        found = _short(bench, place, recipe, room_bytes=limit)
        yield _message(place, found, {"limit MB": limit / _MB, "names it": _PLACES[place] in found["stderr"]})
    recipe = sizes.recipe(bench.folder, "end", method="lora")
    left = 16 * _MB
    found = _short(bench, "end", recipe, room_after_training=left)
    row = _message("end", found, {"limit MB": left / _MB})
    yield Row("end", row.figures, True, "it needs no more than that") if found["status"] == 0 else row


def auto_batch(bench: Bench) -> Iterator[Row]:
    """A step that does not fit, with `--auto-batch`."""
    sizes = _small(_prepared(bench), bench)
    recipe = sizes.recipe(bench.folder, "auto-batch", method="full", rows=sizes.many_rows)
    folder = bench.folder / "auto-batch"
    command = ["train", recipe, "--no-report", "--auto-batch", "--output", str(folder)]
    limit = 4 * sizes.weights_bytes + sizes.room_bytes
    succeeded(bench.call(COMMAND, arguments=command, room_bytes=limit))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    rows, accumulation = manifest["auto_batch"]["used"]
    right = rows < sizes.many_rows and rows * accumulation == sizes.many_rows
    figures = {"rows": sizes.many_rows, "found": rows, "accumulated": accumulation, "limit MB": limit / _MB}
    yield Row("--auto-batch", figures, right)


def end_of_run(bench: Bench) -> Iterator[Row]:
    """The peak of memory of a whole run against its peak up to the end of training."""
    sizes = _small(_prepared(bench), bench)
    for method in ("lora", "qlora", "full"):
        recipe = sizes.recipe(bench.folder, f"end-{method}", method=method)
        command = ["train", recipe, "--no-report", "--output", str(bench.folder / f"end-{method}")]
        found = succeeded(bench.call(COMMAND, arguments=command))
        ratio = found["peak_bytes"] / found["trained_peak_bytes"]
        figures = {"training MB": found["trained_peak_bytes"] / _MB, "whole run MB": found["peak_bytes"] / _MB}
        # on a CPU, a resident set holds what the allocator has not given back, too
        yield Row(method, {**figures, "ratio": ratio}, ratio <= _END_BOUND if bench.has_gpu else None)


def _prepared(bench: Bench) -> _Sizes:
    """The base, written once, and its rows."""
    shape, length = (_TINY, 16) if bench.scale.smoke else (_TRUE, 512)
    many, more = (128, 4096) if bench.scale.smoke else (128, 1024)
    folder = bench.folder / "short-of-memory"
    with bench.lock:
        if not folder.exists():
            folder.mkdir()
            job = {"folder": str(folder / "base"), "config": shape.config(), "tokenizer": str(TOKENIZER)}
            bench.call("benchmarks.gpu.commands:save_base", **job)
            write_documents(folder / "rows.jsonl", full_documents(more, length))
    weights = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
    room = (150 if bench.scale.smoke else 1500) * _MB
    return _Sizes(str(folder / "base"), str(folder / "rows.jsonl"), weights, length, room, many, more)


def _small(sizes: _Sizes, bench: Bench) -> _Sizes:
    """The same with the embedded base to try the benchmark, where what a batch needs is all that may be short."""
    if not bench.scale.smoke:
        return sizes
    return replace(sizes, base="builtin:tiny-gpt2", weights_bytes=4 * _MB, room_bytes=900 * _MB, many_rows=2048)


def _short(bench: Bench, name: str, recipe: str, **limits: int) -> dict[str, Any]:
    command = ["train", recipe, "--no-report", "--output", str(bench.folder / f"short-{name}")]
    found: dict[str, Any] = bench.call(COMMAND, arguments=command, **limits)
    return found


def _message(place: str, found: dict[str, Any], figures: dict[str, Any]) -> Row:
    """The row of a run that was short of memory."""
    lines = found["stderr"].strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    said = errors[-1] if errors else (lines or ["it said nothing"])[-1]
    expected = "memory" in said and _UNEXPECTED not in said
    clear = len(errors) == 1 and expected and "Traceback" not in found["stderr"]
    right = found["status"] == 1 and clear
    return Row(place, {**figures, "status": found["status"], "error lines": len(errors)}, right, said)
