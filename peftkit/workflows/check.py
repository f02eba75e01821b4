"""What a verification says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool | None
    """None where it could not be checked."""

    detail: str
