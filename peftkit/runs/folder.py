"""A run folder: its layout, record and checkpoints, and the lock that one process holds while it works there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from peftkit.errors import PeftkitError, RunError, Stopped, TargetError
from peftkit.redaction import redact
from peftkit.runs.manifest import RunManifest, Status
from peftkit.storage import (
    MANIFEST_NAME,
    is_free,
    manifest_faults,
    new_part,
    read_json,
    remove_folder,
    remove_parts,
    sha256_of_file,
    write_fault,
    write_json,
    write_text,
)

__all__ = [
    "ADAPTER_FOLDER", "CARD_NAME", "LOCK_NAME", "PROGRESS_NAME", "Checkpoint", "RunFolder", "checkpoint_place",
    "find_checkpoints", "is_held", "locked", "newest_sound", "rotate", "set_aside",
]  # fmt: skip

ADAPTER_FOLDER = "adapter"
CARD_NAME = "README.md"
"""The model card, where the hub looks for it; people write into it."""

LOCK_NAME = ".lock"
PROGRESS_NAME = "progress.json"
"""The file of a checkpoint that says which run it belongs to and how far that was."""

_CHECKPOINT_NAME = re.compile(r"step-(\d+)")


class _Inside:
    """The path of a name in a run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, kind: type[RunFolder]) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """One run on the disk."""

    path: Path

    recipe = _Inside("recipe.yaml")
    """The resolved recipe, which trains the same run again."""
    manifest = _Inside(MANIFEST_NAME)
    """Status, hashes, versions and metrics of the run."""
    metrics = _Inside("metrics.jsonl")
    """One JSON line for each logged step and each evaluation."""
    audit = _Inside("audit.json")
    """What the model sees of the data, and which tokens are in the loss."""
    samples = _Inside("samples.json")
    """Prompts of the validation data with what the model generated before and after training."""
    evaluation = _Inside("evaluation.json")
    """The quality of generated text, measured by a comparison; no part of the run itself."""
    tensorboard = _Inside("tensorboard")
    """Where `report_to: tensorboard` writes, unless the environment names another place."""
    report = _Inside("report.html")
    """All of it as one page for people."""
    checkpoints = _Inside("checkpoints")
    adapter = _Inside(ADAPTER_FOLDER)
    """What a run of an adapter ships."""
    model = _Inside("model")
    """What a run of `full` ships."""

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"peftkit train {shlex.quote(str(self.path))} --resume"

    @property
    def is_free(self) -> bool:
        """Whether nothing is there."""
        return is_free(self.path)

    def check_free(self) -> None:
        """See that a new run may use this place.

        Raises:
            TargetError: something is there already, or nothing can be.
        """
        try:
            if self.is_free:
                return
        except OSError as error:  # as of a name that is too long
            raise self._closed(error) from error
        remedy = "Name another place with --output; peftkit never writes over a run."
        if self.manifest.is_file():
            remedy = f"Go on with it by --resume, or name another place with --output; {remedy.partition('; ')[2]}"
        raise TargetError("exists already and is not empty.", where=str(self.path), remedy=remedy)

    @contextlib.contextmanager
    def created(self, recipe_yaml: str, manifest: RunManifest) -> Iterator[None]:
        """Hold a new folder; it appears with its recipe and its first manifest, or not at all.

        Raises:
            TargetError: something is there, or nothing can be written there.
        """
        self.check_free()
        try:
            part = new_part(self.path)
        except OSError as error:
            raise self._closed(error) from error
        inside = RunFolder(part)
        with locked(part):
            try:
                write_text(inside.recipe, recipe_yaml)
                inside.write(manifest)
                part.replace(self.path)
            except OSError as error:
                shutil.rmtree(part, ignore_errors=True)
                self.check_free()  # another run was quicker
                raise self._closed(error) from error
            yield

    @contextlib.contextmanager
    def reopened(self) -> Iterator[RunManifest]:
        """Hold the folder of a run that began earlier, without what a process that was killed left unfinished.

        Raises:
            TargetError: it holds no run, or another process is at work in it.
        """
        self.read()
        with locked(self.path):
            remove_parts(self.path)
            remove_parts(self.checkpoints)
            yield self.read()

    @contextlib.contextmanager
    def recording(self, manifest: RunManifest) -> Iterator[None]:
        """Write the manifest when the run ends, whichever way it ends.

        Raises:
            RunError: the disk failed; every checkpoint that is there is whole.
        """
        manifest.status, manifest.error = "running", None
        try:
            yield
            manifest.files = self.hashes()
            self.write(manifest)
        except Stopped as stopped:
            self._record_end(manifest, "stopped")
            remedy = f"Go on with: {self.resume_command}"
            raise Stopped(stopped.signal_number, stopped.what, remedy=remedy) from stopped
        except KeyboardInterrupt:
            self._record_end(manifest, "stopped")
            raise
        except BaseException as error:
            fault = write_fault(error, self.path)
            if fault is not None:
                remedy = f"What was saved is whole; then resume with: {self.resume_command}"
                remedy = remedy if self.manifest.is_file() else "Begin again."
                fault = RunError(fault.what, where=fault.where, remedy=remedy)
            told = fault or error
            manifest.error = redact(str(told) if isinstance(told, PeftkitError) else f"{type(told).__name__}: {told}")
            self._record_end(manifest, "failed")
            if fault is None:
                raise
            raise fault from error

    def discard_output(self, place: Path) -> None:
        """Remove an output that this run wrote and did not come to prove.

        Raises:
            TargetError: there is something else at its place.
        """
        if not place.exists():
            return
        sound = manifest_faults(place) == []
        known = {MANIFEST_NAME, *read_json(place / MANIFEST_NAME)["files"]} if sound else set()
        found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        if not sound or found - known:
            what, remedy = "holds files that this run did not write.", "Move it away, and go on."
            raise TargetError(what, where=str(place), remedy=remedy)
        remove_folder(place)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the recipe, the metrics, the audit and the samples."""
        own = (self.recipe, self.metrics, self.audit, self.samples)
        return {path.name: sha256_of_file(path) for path in own if path.is_file()}

    def write(self, manifest: RunManifest) -> None:
        """Replace the manifest."""
        write_json(self.manifest, manifest.to_json())

    def read(self) -> RunManifest:
        """The manifest on the disk.

        Raises:
            TargetError: there is none, or it is damaged.
        """
        try:
            return RunManifest.from_json(read_json(self.manifest))
        except (OSError, ValueError, TypeError, KeyError) as error:
            what, remedy = "is missing or damaged.", "Name the folder of a run."
            raise TargetError(what, where=str(self.manifest), remedy=remedy) from error

    def _record_end(self, manifest: RunManifest, status: Status) -> None:
        """Record in the manifest how the run ended, if the disk takes it; the user is informed in any case."""
        manifest.status = status
        with contextlib.suppress(OSError):
            manifest.files = self.hashes()
            self.write(manifest)

    def _closed(self, error: OSError) -> TargetError:
        known = write_fault(error, self.path)
        what = known.what if known else f"cannot be written: {error.strerror}."
        return TargetError(what, where=str(self.path), remedy="Name another place with --output.")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that exists. The system lets go of the lock when the process ends, however it ends.

    The lock is the process's own (POSIX), not its children's: a worker that outlives it holds nothing.

    Raises:
        TargetError: another process holds it, or nothing can be written there.
    """
    try:
        opened = (folder / LOCK_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        remedy = "Make the folder writable, or name another --output."
        raise TargetError(f"cannot be written: {error.strerror}.", where=str(folder), remedy=remedy) from error
    with opened as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            remedy = "Wait until it ends, or name another --output."
            raise TargetError(f"is in use by {holder}.", where=str(folder), remedy=remedy) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether another process is at work in a folder."""
    try:
        with (folder / LOCK_NAME).open(encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the name of a checkpoint."""

    step: int
    path: Path

    def faults(self, run_id: str) -> list[str]:
        """Why a run must not resume from it; nothing where every file is as it was written."""
        faults = manifest_faults(self.path)
        if faults is None:
            return ["manifest.json is missing or damaged"]
        if not faults and not self.belongs_to(run_id):
            return ["it belongs to another run"]
        return faults

    def belongs_to(self, run_id: str) -> bool:
        """Whether this run wrote it."""
        try:
            return bool(read_json(self.path / PROGRESS_NAME)["run_id"] == run_id)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def checkpoint_place(folder: Path, step: int) -> Path:
    """Where the checkpoint after a number of optimizer steps belongs."""
    return folder / f"step-{step}"


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every checkpoint in a folder, the newest first, sound or not."""
    named = [(match, path) for path in folder.glob("step-*") if (match := _CHECKPOINT_NAME.fullmatch(path.name))]
    found = [Checkpoint(int(match[1]), path) for match, path in named if path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_sound(folder: Path, run_id: str) -> tuple[Checkpoint | None, list[tuple[Checkpoint, list[str]]]]:
    """The newest checkpoint that verifies, and the newer ones that do not, each with its faults."""
    passed_over: list[tuple[Checkpoint, list[str]]] = []
    for checkpoint in find_checkpoints(folder):
        faults = checkpoint.faults(run_id)
        if not faults:
            return checkpoint, passed_over
        passed_over.append((checkpoint, faults))
    return None, passed_over


def set_aside(checkpoint: Checkpoint) -> Path:
    """Rename a checkpoint that does not verify, which makes room for another one; returns its new place."""
    places = (checkpoint.path.with_name(f"{checkpoint.path.name}.damaged-{number}") for number in count(1))
    return checkpoint.path.rename(next(place for place in places if not place.exists()))


def rotate(folder: Path, run_id: str, keep: int | None, best: int | None) -> list[Checkpoint]:
    """Remove and return this run's oldest checkpoints beyond `keep`, except the one after step `best`.

    What another run or a person put there is neither counted nor touched.
    """
    if keep is None:
        return []
    own = [checkpoint for checkpoint in find_checkpoints(folder) if checkpoint.belongs_to(run_id)]
    old = [checkpoint for checkpoint in own[keep:] if checkpoint.step != best and not checkpoint.path.is_symlink()]
    for checkpoint in old:
        remove_folder(checkpoint.path)
    return old
