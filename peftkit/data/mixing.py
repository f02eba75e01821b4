"""Which documents of several sources make a data set, and which are held out of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftkit.data.corpus import Part
from peftkit.errors import FieldError

__all__ = ["hold_out", "mix"]


def mix(parts: Sequence[Part], weights: Sequence[float | None], seed: int) -> list[Part]:
    """As many documents as all sources have together, in shares by their weights; without weights, every one once.

    Of a source that has more than its share, some are drawn. Those of one that has fewer come again: all of them as
    often as goes in whole, and then some.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(parts)
    total = sum(len(part.chosen) for part in parts)
    rng = np.random.default_rng(seed)
    mixed: list[Part] = []
    for part, weight in zip(parts, given, strict=True):
        wanted = max(1, round(total * weight / sum(given)))
        whole, rest = divmod(wanted, len(part.chosen)) if len(part.chosen) else (0, 0)
        drawn = np.sort(rng.choice(part.chosen, rest, replace=False))
        mixed.append(Part(part.corpus, np.concatenate([*[part.chosen] * whole, drawn])))
    return mixed


def hold_out(parts: Sequence[Part], share: float, seed: int) -> tuple[list[Part], list[Part]]:
    """The documents to train on, and a share of them all to validate on.

    Equal documents stay together, so that none is in both; the share is as near as that allows, and not above.

    Raises:
        FieldError: one of the two would have no documents.
    """
    digests = np.concatenate([part.corpus.documents.digests[part.chosen] for part in parts])
    unique, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    wanted = max(1, round(share * len(digests)))
    order = np.random.default_rng(seed).permutation(len(unique))
    order = order[counts[order] <= wanted]
    drawn = order[: int(np.searchsorted(np.cumsum(counts[order]), wanted, side="right"))]
    held = np.isin(inverse, drawn)
    if not held.any() or held.all():
        raise FieldError(
            "data.validation",
            f"{share:g} of {len(digests):,} documents, {len(unique):,} of them different, cannot be held out.",
            remedy="Change the share, or name other data.",
        )
    train, validation, start = [], [], 0
    for part in parts:
        mask = held[start : start + len(part.chosen)]
        train.append(Part(part.corpus, part.chosen[~mask]))
        validation.append(Part(part.corpus, part.chosen[mask]))
        start += len(part.chosen)
    return train, validation
