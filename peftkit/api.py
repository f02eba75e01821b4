"""What the commands do, as functions for programs and notebooks.

They are exported by `peftkit` itself. None of them prints, handles signals or ends the process: messages go to the
function that a caller gives, and errors are those of `peftkit.errors`, whose text says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.adapters.files import AS_RECORDED, GivenBase
from peftkit.adapters.merge import MergeReceipt, MergeSettings
from peftkit.adapters.merge import merge as merge_adapters
from peftkit.adapters.target import find_weights
from peftkit.data.audit import Audit
from peftkit.evaluation.evaluate import Evaluation, Measures, data_of, evaluate_target, recorded_recipe
from peftkit.evaluation.generation import generate as generate_completions
from peftkit.experiments.compare import CompareOptions
from peftkit.experiments.compare import compare as compare_runs
from peftkit.models.base import locate_base
from peftkit.planning.plan import Plan
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.loader import load_recipe as load_recipe_file
from peftkit.recipe.schema import Base
from peftkit.runs.comparison import Comparison
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.training.plan import plan as plan_run
from peftkit.training.prepare import audit_recipe
from peftkit.training.run import RunOptions, run

__all__ = ["audit", "base_folder", "compare", "evaluate", "generate", "load_recipe", "merge", "plan", "train"]

Listener = Callable[[str], None]
"""Gets each message as one line of text, as `print` does."""


def load_recipe(
    recipe: str | Path, *, method: str | None = None, overrides: Sequence[str] = (), output: str | Path | None = None
) -> RecipeFile:
    """Read and check a recipe.

    Args:
        recipe: a file, or the name of a shipped recipe, as `quickstart`.
        method: instead of the recipe's own.
        overrides: changes to fields, as `training.learning_rate=1e-4`.
        output: the run folder; None for `runs/NAME`.

    Raises:
        InputError: there is no such recipe.
        RecipeError: everything that is wrong with it, together.
    """
    place = Path(output) if output is not None else None
    return load_recipe_file(find_recipe(str(recipe)), method=method, overrides=overrides, output=place)


def audit(recipe: RecipeFile, *, show: int = 2, tokens: bool = False, on_message: Listener | None = None) -> Audit:
    """Count and check what a recipe trains and validates on, without loading the weights of its base.

    Args:
        recipe: the recipe.
        show: training documents that are given, with what of them is in the loss.
        tokens: whether their tokens are given one by one, too.
        on_message: gets what the audit warns of.

    Raises:
        InputError: the data cannot be read, or training would not start with it.
    """
    with _heard(on_message):
        found, warnings, fault = audit_recipe(recipe, show=show, tokens=tokens)
        for warning in warnings:
            console.warning(warning)
    if fault is not None:
        raise fault
    return found


def plan(recipe: RecipeFile, *, seconds: float | None = 20.0, on_message: Listener | None = None) -> Plan:
    """What a recipe takes on this machine: parameters, memory, time and disk.

    Args:
        recipe: the recipe.
        seconds: how long its steps are measured; None computes everything from the model's structure.
        on_message: gets messages.

    Raises:
        InputError: recipe, base or data are wrong.
        RunError: a step that was measured failed.
    """
    with _heard(on_message):
        return plan_run(recipe, seconds=seconds)


def train(
    recipe: RecipeFile,
    *,
    resume: bool = False,
    allowed_changes: Sequence[str] = (),
    auto_batch: bool = False,
    on_message: Listener | None = None,
) -> tuple[RunFolder, RunManifest]:
    """Train what a recipe says, save it, and verify what was saved.

    Args:
        recipe: the recipe.
        resume: resume the run in the recipe's output folder; start one where there is none.
        allowed_changes: fields that may differ from those that the run started with.
        auto_batch: use smaller batches, accumulated, where a step does not fit into memory.
        on_message: gets messages and the results of evaluations.

    Returns:
        The run's folder, whose `adapter` or `model` is what was trained, and its manifest with all figures.

    Raises:
        InputError: recipe, base or data are wrong, or have changed; nothing has been written then.
        RunError: training or the verification failed.
    """
    options = RunOptions(resume=resume, allowed_changes=tuple(allowed_changes), auto_batch=auto_batch)
    with _heard(on_message):
        return run(recipe, options)


def evaluate(
    target: str | Path,
    data: str | Path | None = None,
    *,
    measures: Measures | None = None,
    base: GivenBase = AS_RECORDED,
    on_message: Listener | None = None,
) -> Evaluation:
    """The perplexity of a run, an adapter, a model or a base, and what else `measures` asks for.

    Args:
        target: a folder or a hub name.
        data: a file, read as the target's recipe reads its own; None for the validation data of that recipe.
        measures: windows, baselines, completions and their scores; None for the perplexity alone.
        base: of an adapter without a record, or whose base has moved.
        on_message: gets messages.

    Raises:
        InputError: the target cannot be opened, or the data cannot be read.
        RunError: the loss is not finite.
    """
    measures = measures or Measures()
    with _heard(on_message):
        recipe = recorded_recipe(str(target), needed=data is None)
        rows = data_of(recipe, None if data is None else Path(data), measures.stride, where=str(target))
        return evaluate_target(str(target), rows, measures, base)


def compare(
    recipe: str | Path, options: CompareOptions, output: str | Path, *, on_message: Listener | None = None
) -> Comparison:
    """Train a recipe by several methods, values and seeds, each run in a process of its own, and compare the results.

    Args:
        recipe: a file, or the name of a shipped recipe.
        options: what is compared.
        output: the comparison's folder; finished runs in it stay as they are.
        on_message: gets messages.

    Raises:
        InputError: the recipe is wrong for one of the runs, or the folder belongs to another comparison.
        RunError: a run failed.
    """
    with _heard(on_message):
        return compare_runs(find_recipe(str(recipe)), options, Path(output))


def merge(
    adapters: str | Path | Mapping[str | Path, float],
    output: str | Path,
    *,
    settings: MergeSettings | None = None,
    base: GivenBase = AS_RECORDED,
    on_message: Listener | None = None,
) -> MergeReceipt:
    """Make a full model of an adapter and its base, and prove that it computes the same.

    Args:
        adapters: an adapter or the run that made it; several of the same base with the factor of each.
        output: a new folder.
        settings: which weights of the base, dtype, size of files; None for the defaults of `peftkit merge`.
        base: of an adapter without a record, or whose base has moved.
        on_message: gets messages.

    Raises:
        InputError: an adapter cannot be opened, or `output` exists.
        RunError: the merged model does not give the adapter's logits.
    """
    parts = adapters if isinstance(adapters, Mapping) else {adapters: 1.0}
    with _heard(on_message):
        found = [(find_weights(Path(folder)), factor) for folder, factor in parts.items()]
        return merge_adapters(found, Path(output), settings or MergeSettings(), base)


def generate(
    target: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 42,
    raw: bool = False,
    base: GivenBase = AS_RECORDED,
    on_message: Listener | None = None,
) -> list[str]:
    """What a run, an adapter, a model or a base writes after each prompt.

    Args:
        target: a folder or a hub name.
        prompts: put into the template of the target's recipe, unless `raw`.
        max_new_tokens: None for what the recipe says.
        temperature: 0 takes the most probable token.
        seed: of sampling.
        raw: whether prompts are given to the model as they are.
        base: of an adapter without a record, or whose base has moved.
        on_message: gets messages.

    Raises:
        InputError: the target cannot be opened.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "raw": raw}
    with _heard(on_message):
        return generate_completions(str(target), prompts, given=base, **options)


def base_folder(model: str) -> Path:
    """The folder of a base in the Transformers format: of `builtin:tiny-gpt2`, a folder, or a hub name that is cached.

    Raises:
        BaseError: it is not here and cannot be downloaded.
    """
    return locate_base(Base(model=model)).folder


@contextmanager
def _heard(listener: Listener | None) -> Iterator[None]:
    """Within the block, messages go to a caller's function or nowhere."""
    with console.heard_by(listener or (lambda _: None)):
        yield
