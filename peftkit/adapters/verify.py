"""Everything that can be checked of an adapter, one thing after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from peftkit.adapters.base import AS_RECORDED, Footing, GivenBase, check_fit, find_footing, put_adapter
from peftkit.adapters.files import Adapter, meaning_of, read_adapter
from peftkit.adapters.proof import compare, logits_of
from peftkit.adapters.sample import Sample
from peftkit.adapters.soundness import config_changes, not_finite, tensor_changes
from peftkit.errors import MemoryRunError, PeftkitError
from peftkit.runs.folder import CARD_NAME
from peftkit.runs.verify import Check
from peftkit.shortage import memory_for
from peftkit.storage import manifest_faults

__all__ = ["check_adapter"]


def check_adapter(folder: Path, given: GivenBase = AS_RECORDED) -> list[Check]:
    """Check an adapter's files, values and fingerprint, that it is its base's, and that it has an effect.

    What rests on a check that failed is not tried.

    Raises:
        TargetError: the folder holds no adapter that can be read.
        MemoryRunError: its base does not fit into memory.
    """
    adapter = read_adapter(folder)
    checks = [_files(folder), _values(adapter), *_fingerprint(adapter), _learnt(adapter)]
    if all(check.passed is not False for check in checks):
        checks += _on_its_base(adapter, given)
    return checks


def _files(folder: Path) -> Check:
    faults = manifest_faults(folder, editable=(CARD_NAME,))
    if faults is None:
        return Check("files", None, "no manifest.json says what they were")
    return Check("files", not faults, "; ".join(faults) or "as they were written")


def _values(adapter: Adapter) -> Check:
    broken = not_finite(adapter)
    detail = f"not finite in {', '.join(broken[:3])}" if broken else f"{adapter.parameters:,} numbers, all finite"
    return Check("values", not broken, detail)


def _fingerprint(adapter: Adapter) -> Iterator[Check]:
    for name, changes in (("settings", config_changes(adapter)), ("tensors", tensor_changes(adapter))):
        if adapter.record is None:
            yield Check(name, None, "no peftkit.json says what they were")
        else:
            yield Check(name, not changes, "; ".join(changes[:3]) or "as they were saved")


def _learnt(adapter: Adapter) -> Check:
    updates = meaning_of(adapter).updates
    untouched = [module for module, each in updates.items() if each.untouched]
    if updates and len(untouched) == len(updates):
        return Check("training", False, f"of every module, {adapter.method.beginning}, as before training")
    detail = f"{len(updates) - len(untouched)} of {len(updates)} modules have left their beginning"
    return Check("training", True, detail)


def _on_its_base(adapter: Adapter, given: GivenBase) -> Iterator[Check]:
    try:
        footing = find_footing(adapter, given)
    except PeftkitError as error:
        unknown = adapter.record is None and given.model is None
        yield Check("base", None if unknown else False, error.what)
        return
    known = adapter.record is not None
    whose = "the very one that it was trained on" if known else "which one it was trained on is not recorded"
    yield Check("base", True if known else None, f"{footing.base.reference}: {whose}")
    try:
        check_fit(adapter, footing)
    except PeftkitError as error:
        yield Check("fit", False, error.what)
        return
    yield Check("fit", True, f"{len(adapter.tensors)} tensors, just those that its settings call for")
    yield _effect(adapter, footing)


def _effect(adapter: Adapter, footing: Footing) -> Check:
    """Whether the adapter changes what its base says."""
    model = footing.load("cpu")
    sample = Sample.read(adapter.folder, model.get_input_embeddings().weight.shape[0])
    try:
        with memory_for("the logits of its sample", where=str(adapter.folder), remedy="Free memory that others use."):
            before = logits_of(model, sample)
            change = compare(logits_of(put_adapter(model, adapter), sample), before, sample)
    except MemoryRunError:
        raise  # it says nothing about the adapter
    except PeftkitError as error:
        return Check("effect", False, error.what)
    detail = f"on {change.tokens:,} tokens of {change.sample}, logits move by {change.relative_error:.1%}"
    if change.expected_perplexity is not None:
        detail += f", perplexity {change.expected_perplexity:,.4g} → {change.found_perplexity:,.4g}"
    return Check("effect", change.largest_difference > 0, detail)
