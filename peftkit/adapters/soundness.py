"""Whether an adapter is what was saved: found from its files alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from peftkit.adapters.files import CONFIG_NAME, WEIGHTS_NAME, Adapter
from peftkit.errors import TargetError

__all__ = ["check_sound", "config_changes", "not_finite", "tensor_changes", "unchecked"]

_SHOWN = 3


def check_sound(adapter: Adapter) -> None:
    """See that an adapter has no NaN and is, where that is recorded, what was saved.

    Raises:
        TargetError: it has, or is not; the message names what differs.
    """
    broken = not_finite(adapter)
    if broken:
        what = f"holds values in {_some(broken)} that are not finite."
        remedy = "Its training went wrong; train it again with a lower learning rate."
        raise TargetError(what, where=str(adapter.folder / WEIGHTS_NAME), remedy=remedy)
    for name, changes in ((CONFIG_NAME, config_changes(adapter)), (WEIGHTS_NAME, tensor_changes(adapter))):
        if changes:
            what = f"is not what was saved: {_some(changes, '; ')}."
            remedy = "It was edited or damaged; copy or train the adapter again."
            raise TargetError(what, where=str(adapter.folder / name), remedy=remedy)


def not_finite(adapter: Adapter) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [name for name, tensor in adapter.tensors.items() if not np.isfinite(tensor.array()).all()]


def config_changes(adapter: Adapter) -> list[str]:
    """How the configuration differs from the recorded one."""
    if adapter.record is None or adapter.record.adapter_config is None:
        return []
    saved, found = adapter.record.adapter_config, adapter.config
    return [
        f"{key} is {_told(found, key)}, was {_told(saved, key)}"
        for key in sorted({*saved, *found})
        if _told(found, key) != _told(saved, key)
    ]


def tensor_changes(adapter: Adapter) -> list[str]:
    """How the tensors differ from the recorded ones."""
    if adapter.record is None or adapter.record.tensors is None:
        return []
    return list(_tensor_changes(adapter, adapter.record.tensors))


def unchecked(adapter: Adapter) -> str | None:
    """What cannot be checked of an adapter that has no record."""
    if adapter.record is not None:
        return None
    return (
        f"{adapter.folder} has no peftkit.json: whether it has been changed since, on which weights of the base it was "
        "trained, and whether these were quantised, cannot be checked."
    )


def _tensor_changes(adapter: Adapter, saved: dict[str, str]) -> Iterator[str]:
    for name in sorted({*saved, *adapter.tensors}):
        if name not in adapter.tensors:
            yield f"{name} is missing"
        elif name not in saved:
            yield f"{name} is one too many"
        elif adapter.tensors[name].sha256 != saved[name]:
            yield f"{name} has other values or another shape"


def _told(config: dict[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "not there"


def _some(things: list[str], separator: str = ", ") -> str:
    rest = len(things) - _SHOWN
    return separator.join(things[:_SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")
