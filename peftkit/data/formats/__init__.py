"""Every data format, one file each. A new one is a file here and a line in `FORMATS`.

Formats are plain Python without numpy, pydantic or a tokenizer library: the recipe's schema and the command line read
the list too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from peftkit.data.formats.chat import Chat
from peftkit.data.formats.completion import Completion
from peftkit.data.formats.format import DataFormat
from peftkit.data.formats.instruction import Instruction
from peftkit.data.formats.text import Text
from peftkit.data.formats.tokens import Tokens

__all__ = ["AUTO", "FORMATS"]

AUTO: Final = "auto"
"""What a recipe says for a format that is recognised from the columns."""

FORMATS: Final[Mapping[str, DataFormat[Any]]] = {
    form.name: form for form in (Text(), Completion(), Instruction(), Chat(), Tokens())
}
"""By name, in the order in which messages list them."""
