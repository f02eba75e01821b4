"""`--auto-batch`: halve a batch until it fits into memory, and remember what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peftkit.errors import MemoryRunError
from peftkit.planning.memory import fitting_batch
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.loader import RecipeFile

__all__ = ["Found", "as_found", "beyond_auto_batch", "describe_batches", "smaller_batch"]

Found = dict[str, list[int]]
"""`auto_batch` of a manifest: batch size and accumulation as the recipe has them, and as they fitted."""

_TRAINING = ("per_device_train_batch_size", "gradient_accumulation_steps")
_EVALUATION = "per_device_eval_batch_size"


def smaller_batch(
    training: Training, error: MemoryRunError, found: Found | None
) -> tuple[dict[str, int], Found] | None:
    """Half of the batch that did not fit, or as many rows as would, in the same optimizer steps.

    Returns:
        The hyperparameters that change, and what has been found so far; None where no batch can be smaller.
    """
    before = [training.per_device_train_batch_size, training.gradient_accumulation_steps]
    if error.batch is None:
        return None
    if error.batch == "evaluation":
        rows = training.per_device_eval_batch_size // 2
        known = found or {"recipe": before, "used": before}
        first = known.get("evaluation", [training.per_device_eval_batch_size])[0]
        return ({_EVALUATION: rows}, {**known, "evaluation": [first, rows]}) if rows else None
    smaller = fitting_batch(lambda rows: error.rows is None or rows <= error.rows, *before)
    if smaller is None:
        return None
    return dict(zip(_TRAINING, smaller, strict=True)), {"recipe": before, **(found or {}), "used": list(smaller)}


def as_found(file: RecipeFile, found: Found | None) -> RecipeFile:
    """A recipe with the batches that were found to fit, if it has those from which they were found."""
    training = file.recipe.training
    changes: dict[str, int] = {}
    if found and [getattr(training, name) for name in _TRAINING] == found["recipe"]:
        changes |= zip(_TRAINING, found["used"], strict=True)
    if found and "evaluation" in found and training.per_device_eval_batch_size == found["evaluation"][0]:
        changes[_EVALUATION] = found["evaluation"][1]
    return file.with_training(changes) if changes else file


def describe_batches(training: Training) -> str:
    """How many rows are computed at a time."""
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    batch = "one row" if rows == 1 else f"{rows} rows"
    evaluated = training.per_device_eval_batch_size
    return f"{batch} at a time, accumulated {accumulation} times, and {evaluated} at a time in evaluations."


@contextmanager
def beyond_auto_batch(*, asked: bool) -> Iterator[None]:
    """Say why --auto-batch cannot help, where memory is short within the block and it was asked for."""
    try:
        yield
    except MemoryRunError as error:
        if asked:
            why = f"the {error.batch} batch is one row already" if error.batch else "no batch has a part in this"
            error.remedy = f"{error.remedy or ''} --auto-batch cannot help: {why}.".strip()
        raise
