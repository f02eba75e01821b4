"""What a recipe chooses among by name, known without the schema: the command line offers it before one is loaded."""

from __future__ import annotations

from typing import Literal

__all__ = ["Format", "Method"]

Method = Literal["full", "lora", "qlora"]
Format = Literal["auto", "text", "completion", "instruction", "chat", "tokens"]
