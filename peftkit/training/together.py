"""A run by several processes: one of them leads, and the others follow."""

from __future__ import annotations

from peftkit.errors import InputError
from peftkit.recipe.loader import RecipeFile
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.training.follow import follow
from peftkit.training.processes import joined
from peftkit.training.run import RunOptions, run

__all__ = ["run_together"]


def run_together(file: RecipeFile, options: RunOptions) -> tuple[RunFolder, RunManifest] | None:
    """Train what a recipe says, together with the other processes that a launcher has started; or alone.

    Returns:
        Folder and manifest of the run in the main process; None in the others.

    Raises:
        InputError, RunError, Stopped: as `run` does, in all of them.
    """
    with joined() as processes:
        if options.auto_batch and processes.are_many:
            remedy = "Find the batch in one process first; its manifest tells it."
            raise InputError("works in one process alone.", where="--auto-batch", remedy=remedy)
        if processes.is_main:
            return run(file, options, processes)
        follow(file, processes)
        return None
