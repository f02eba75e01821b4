"""Going on with a run: what it was, what has changed since, and from which checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit import console
from peftkit.errors import ChangedError, InputError, TargetError
from peftkit.recipe.loader import RecipeFile, load_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.checkpoints import Checkpoint, newest_sound, set_aside
from peftkit.runs.differences import Difference, check_differences, input_differences, recipe_differences
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.storage import file_fault
from peftkit.training.job import Job

__all__ = ["Past", "check_finished", "restart_point"]


@dataclass(frozen=True)
class Past:
    """A run as it was written down when it began."""

    folder: RunFolder
    manifest: RunManifest
    recipe: Recipe

    @classmethod
    def read(cls, folder: RunFolder, manifest: RunManifest) -> Past:
        """The run in a folder.

        Raises:
            TargetError: its recipe cannot be read any more.
        """
        try:
            return cls(folder, manifest, load_recipe(folder.recipe).recipe)
        except InputError as error:
            raise TargetError(
                f"cannot be read as the recipe of this run: {error.lines()[0]}",
                where=str(folder.recipe),
                remedy="Use the peftkit that wrote it, or begin a run in another --output.",
            ) from error

    def as_batched(self, file: RecipeFile) -> RecipeFile:
        """A recipe with the batches that were found to fit, if it has those from which these were found."""
        found = self.manifest.auto_batch or {}
        training = file.recipe.training
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        changes: dict[str, int] = {}
        if found and [getattr(training, name) for name in names] == found["recipe"]:
            changes |= zip(names, found["used"], strict=True)
        if "evaluation" in found and training.per_device_eval_batch_size == found["evaluation"][0]:
            changes["per_device_eval_batch_size"] = found["evaluation"][1]
        return file.with_training(changes) if changes else file

    def changes(self, recipe: Recipe) -> list[Difference]:
        """The fields in which a recipe is another one."""
        return recipe_differences(self.recipe.model_dump(mode="json"), recipe.model_dump(mode="json"))

    def check(self, job: Job, now: RunManifest, allowed: Sequence[str]) -> list[Difference]:
        """Everything that has changed, all of which may.

        Raises:
            ChangedError: something may not.
        """
        found = [*self.changes(job.recipe), *input_differences(self.manifest, now)]
        check_differences(found, allowed, str(self.folder.path))
        for difference in found:
            console.warning(f"going on with a change: {difference}")
        return found


def check_finished(past: Past, recipe: Recipe) -> None:
    """See that a finished run is the one that is asked for, and that what it left is still what it was.

    Raises:
        ChangedError: it is another one.
        TargetError: something of it is damaged.
    """
    changes = [str(change) for change in past.changes(recipe)]
    if changes:
        remedy = "It is finished, so it stays as it is: begin a run in another --output."
        raise ChangedError(changes, where=str(past.folder.path), remedy=remedy)
    for name, sha256 in past.manifest.outputs.items():
        if fault := file_fault(past.folder.path, name, sha256):
            remedy = "See `peftkit verify`; train again with another --output."
            raise TargetError(f"the run is finished, but {fault}.", where=str(past.folder.path), remedy=remedy)


def restart_point(past: Past) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was passed over; that is told, kept, and put out of the way."""
    checkpoint, passed_over = newest_sound(past.folder.checkpoints, past.manifest.run_id)
    notes = []
    for damaged, faults in passed_over:
        place = set_aside(damaged)
        notes.append(f"{damaged.path.name}: {'; '.join(faults)}")
        console.warning(f"{damaged.path} is passed over: {'; '.join(faults)}. It is {place.name} now.")
    if checkpoint is None:
        console.info(f"{past.folder.path} has no checkpoint that verifies, so the run begins again.")
    else:
        console.info(f"going on from {checkpoint.path}.")
    return checkpoint, notes
