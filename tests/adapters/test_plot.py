"""The picture of an adapter is drawn, in a file of the kind that its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.adapters.inspect import ModuleUpdate, plot_updates
from peftkit.errors import InputError


def update(layer: int | None, target: str, relative_norm: float | None) -> ModuleUpdate:
    return ModuleUpdate(f"h.{layer}.{target}", layer, target, 4, 2.0, 1.5, relative_norm, 3.2, 0.1, False)


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_drawn(suffix: str, begins: bytes, tmp_path: Path) -> None:
    place = tmp_path / f"updates.{suffix}"

    plot_updates([update(0, "q", 0.1), update(1, "q", 0.2), update(1, "v", 0.3), update(None, "head", 0.1)], "a", place)

    assert place.read_bytes().startswith(begins)


def test_the_numbers_are_in_it(tmp_path: Path) -> None:
    relative, absolute = tmp_path / "relative.svg", tmp_path / "absolute.svg"

    plot_updates([update(0, "q", 0.123), update(1, "q", 0.2)], "title", relative)
    plot_updates([update(0, "q", None), update(1, "q", 0.2)], "title", absolute)

    assert "<!-- 0.123 -->" in relative.read_text(encoding="utf-8")
    assert "<!-- 1.500 -->" in absolute.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["updates.txt", "updates", "nowhere/updates.png"])
def test_a_place_that_is_none_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no place for a picture"):
        plot_updates([update(0, "q", 0.1)], "a", tmp_path / name)
