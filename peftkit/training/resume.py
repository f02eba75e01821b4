"""Resume a run: what it was, what has changed since, and from which checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from peftkit import console
from peftkit.errors import ChangedError, InputError, TargetError
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.differences import (
    Difference,
    act_on_optimizer,
    check_differences,
    input_differences,
    recipe_differences,
)
from peftkit.runs.folder import RunFolder, newest_sound, set_aside
from peftkit.runs.manifest import RunManifest
from peftkit.storage import file_fault, write_text
from peftkit.training.prepare import Run

__all__ = ["Past", "read_past", "reopened"]


@dataclass(frozen=True)
class Past:
    """A run as it was recorded when it last ended."""

    folder: RunFolder
    manifest: RunManifest
    recipe: Recipe

    def is_finished(self, recipe: Recipe, allowed: Sequence[str]) -> bool:
        """Whether nothing is left to do, once it is known to be the run that is asked for.

        Raises:
            ChangedError: it is another one, by its recipe.
            TargetError: it is finished, and something of it is damaged.
        """
        changes, where = self._changes(recipe), str(self.folder.path)
        if self.manifest.status != "finished":
            check_differences(changes, allowed, where)  # before anything is loaded
            return False
        if changes:
            remedy = "It is finished, so it stays as it is: begin a run in another --output."
            raise ChangedError([str(change) for change in changes], where=where, remedy=remedy)
        for name, sha256 in self.manifest.outputs.items():
            if fault := file_fault(self.folder.path, name, sha256):
                remedy = "See `peftkit verify`; train again with another --output."
                raise TargetError(f"the run is finished, but {fault}.", where=where, remedy=remedy)
        return True

    def continue_in(self, run: Run, allowed: Sequence[str]) -> None:
        """Make a prepared run this one: with its id and history, from its newest checkpoint that verifies.

        Raises:
            ChangedError: something has changed that is not allowed to.
        """
        run.run_id, manifest = self.manifest.run_id, run.manifest
        changes = [*self._changes(run.recipe), *input_differences(self.manifest, manifest)]
        check_differences(changes, allowed, str(self.folder.path))
        for change in changes:
            console.warning(f"going on with a change: {change}")
        passed_over = self._find_checkpoint(run)
        run.adopt = act_on_optimizer(changes)
        manifest.auto_batch = self.manifest.auto_batch
        manifest.warnings = list(dict.fromkeys([*self.manifest.warnings, *manifest.warnings]))
        step = run.checkpoint.step if run.checkpoint else 0
        now = {"step": step, "passed_over": passed_over, "changes": [asdict(change) for change in changes]}
        manifest.resumed = [*self.manifest.resumed, now]

    def write_over(self, run: Run) -> None:
        """Put the recipe and the manifest of the resumed run into the folder, and remove an unverified output."""
        for place in (self.folder.adapter, self.folder.model):
            self.folder.discard_output(place)  # it was not verified, or the run would be finished
        write_text(self.folder.recipe, run.file.resolved_yaml())
        self.folder.write(run.manifest)

    def _changes(self, recipe: Recipe) -> list[Difference]:
        return recipe_differences(self.recipe.model_dump(mode="json"), recipe.model_dump(mode="json"))

    def _find_checkpoint(self, run: Run) -> list[str]:
        """Set the newest checkpoint that verifies; returns those passed over, which are reported, kept, and renamed."""
        run.checkpoint, passed_over = newest_sound(self.folder.checkpoints, run.run_id)
        notes = []
        for damaged, faults in passed_over:
            place = set_aside(damaged)
            notes.append(f"{damaged.path.name}: {'; '.join(faults)}")
            console.warning(f"{damaged.path} is passed over: {'; '.join(faults)}. It is {place.name} now.")
        if run.checkpoint is None:
            console.info(f"{self.folder.path} has no checkpoint that verifies, so the run begins again.")
        else:
            console.info(f"going on from {run.checkpoint.path}.")
        return notes


@contextmanager
def reopened(folder: RunFolder, *, resume: bool) -> Iterator[Past | None]:
    """Hold the folder of a run that is to be resumed; None for a new run, whose place is free.

    Raises:
        TargetError: the place is not free, or there is no run in it whose recipe can be read.
    """
    if resume and not folder.is_free:
        with folder.reopened() as manifest:
            yield read_past(folder, manifest)
        return
    if resume:
        console.info(f"there is nothing to go on with in {folder.path}: a run begins.")
    folder.check_free()
    yield None


def read_past(folder: RunFolder, manifest: RunManifest) -> Past:
    """The run in a folder.

    Raises:
        TargetError: its recipe cannot be read any more.
    """
    try:
        return Past(folder, manifest, load_recipe(folder.recipe).recipe)
    except InputError as error:
        what = f"cannot be read as the recipe of this run: {error.lines()[0]}"
        remedy = "Use the peftkit that wrote it, or begin a run in another --output."
        raise TargetError(what, where=str(folder.recipe), remedy=remedy) from error
