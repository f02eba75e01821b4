"""How a run ends: its manifest says so, and the user is told how to go on."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from peftkit.errors import PeftkitError, RunError, Stopped
from peftkit.redaction import redact
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest, Status
from peftkit.storage import write_fault

__all__ = ["recorded", "resume_command"]


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"peftkit train {shlex.quote(str(folder))} --resume"


@contextlib.contextmanager
def recorded(folder: RunFolder, manifest: RunManifest) -> Iterator[None]:
    """Write the manifest when the run ends, whichever way it ends.

    Raises:
        RunError: the disk failed; every checkpoint that is there is whole.
    """
    manifest.status, manifest.error = "running", None
    try:
        yield
        folder.write(manifest)
    except Stopped as stopped:
        _write_down(folder, manifest, "stopped")
        raise Stopped(
            stopped.signal_number, stopped.what, remedy=f"Go on with: {resume_command(folder.path)}"
        ) from stopped
    except KeyboardInterrupt:
        _write_down(folder, manifest, "stopped")
        raise
    except BaseException as error:
        fault = write_fault(error, folder.path)
        if fault is not None:
            there = folder.manifest.is_file()
            remedy = f"What was saved is whole; then go on with: {resume_command(folder.path)}" if there else None
            fault = RunError(fault.what, where=fault.where, remedy=remedy or "Begin again.")
        told = fault or error
        manifest.error = redact(str(told) if isinstance(told, PeftkitError) else f"{type(told).__name__}: {told}")
        _write_down(folder, manifest, "failed")
        if fault is None:
            raise
        raise fault from error


def _write_down(folder: RunFolder, manifest: RunManifest, status: Status) -> None:
    """Say in the manifest how the run ended, if the disk takes it; the user is told in any case."""
    manifest.status = status
    with contextlib.suppress(OSError):
        manifest.files = folder.hashes()
        folder.write(manifest)
