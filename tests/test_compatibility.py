"""The newest names reach older libraries by the names that they know."""

from __future__ import annotations

import pytest

from peftkit.compatibility import RENAMED, spelled


@pytest.mark.parametrize(("new", "old"), RENAMED.items())
def test_an_older_library_gets_the_older_name_and_a_newer_one_that_has_both_the_newer(new: str, old: str) -> None:
    assert spelled({new: 1, "seed": 2}, {old, "seed"}) == {old: 1, "seed": 2}
    assert spelled({new: 1, "seed": 2}, {new, old, "seed"}) == {new: 1, "seed": 2}


def test_a_name_that_a_library_does_not_know_at_all_is_left_to_its_error() -> None:
    assert spelled({"activation_checkpointing": True, "other": 1}, set()) == {
        "activation_checkpointing": True,
        "other": 1,
    }
