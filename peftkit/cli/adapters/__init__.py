"""`peftkit adapters`: what is in an adapter, whether it is sound, what changed, and new ones made of it."""

from __future__ import annotations

from peftkit.cli.adapters.group import command

__all__ = ["command"]
