"""Whether a run folder holds what its run wrote, by every hash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftkit.recipe.methods import METHODS
from peftkit.runs.folder import CARD_NAME, RunFolder, find_checkpoints, is_held
from peftkit.runs.manifest import RunManifest
from peftkit.storage import file_fault

__all__ = ["Check", "verify_run"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked, or could not be where `passed` is None."""

    name: str
    passed: bool | None
    detail: str


def verify_run(path: Path) -> tuple[RunManifest, list[Check]]:
    """Check the recipe, the records, each output and each checkpoint of a run against their SHA-256.

    Raises:
        TargetError: there is no run, or its manifest is damaged.
    """
    folder = RunFolder(path)
    manifest = folder.read()
    if manifest.status == "running" and not is_held(path):
        manifest.status = "interrupted"
    return manifest, [*_own_files(folder, manifest), *_outputs(folder, manifest), *_checkpoints(folder, manifest)]


def _own_files(folder: RunFolder, manifest: RunManifest) -> Iterator[Check]:
    for place in (folder.recipe, folder.metrics, folder.audit, folder.samples):
        name = place.name
        if name in manifest.files:
            yield _verdict(name, [file_fault(folder.path, name, manifest.files[name])])
        elif place.is_file():
            yield Check(name, None, f"the run is {manifest.status}, and its hash is taken when it ends")


def _outputs(folder: RunFolder, manifest: RunManifest) -> Iterator[Check]:
    shipped = folder.adapter.name if METHODS[manifest.method].section else folder.model.name
    for place in (folder.adapter, folder.model):
        recorded = {name: sha for name, sha in manifest.outputs.items() if name.startswith(f"{place.name}/")}
        if recorded:
            card = f"{place.name}/{CARD_NAME}"  # people may change it
            names = [name for name in recorded if name != card]
            yield _verdict(place.name, [file_fault(folder.path, name, recorded[name]) for name in names])
        elif place.is_dir():
            yield Check(place.name, None, f"the run is {manifest.status}, and has not proven it yet")
        elif manifest.status == "finished" and place.name == shipped:
            yield Check(place.name, False, "is missing")


def _checkpoints(folder: RunFolder, manifest: RunManifest) -> Iterator[Check]:
    for checkpoint in find_checkpoints(folder.checkpoints):
        name = checkpoint.path.relative_to(folder.path).as_posix()
        faults = checkpoint.faults(manifest.run_id)
        yield _verdict(name, faults, len(list(checkpoint.path.iterdir())))


def _verdict(name: str, faults: list[str | None] | list[str], files: int | None = None) -> Check:
    wrong = [fault for fault in faults if fault]
    count = len(faults) if files is None else files
    right = "as it was written" if count == 1 else f"{count} files as they were written"
    return Check(name, not wrong, "; ".join(wrong) or right)
