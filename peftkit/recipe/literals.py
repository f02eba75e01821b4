"""What a recipe chooses among by name, known without the schema: the command line offers it before one is loaded."""

from __future__ import annotations

from typing import Literal

__all__ = ["Method"]

Method = Literal["full", "lora", "qlora"]
