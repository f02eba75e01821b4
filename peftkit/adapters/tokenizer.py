"""The tokenizer that lies beside an adapter or a model, as files."""

from __future__ import annotations

import shutil
from pathlib import Path

from peftkit.errors import BaseError

__all__ = ["TOKENIZER_FILES", "copy_tokenizer", "has_tokenizer"]

TOKENIZER_FILES = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
)  # fmt: skip
"""What a tokenizer is saved as."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in a folder."""
    return (folder / "tokenizer_config.json").is_file()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files as they are: opening and saving it would take longer, and write them in another form.

    Raises:
        BaseError: there are none.
    """
    files = [file for pattern in TOKENIZER_FILES for file in sorted(source.glob(pattern)) if file.is_file()]
    if not files:
        raise BaseError("holds no tokenizer.", where=str(source), remedy="Save the base's tokenizer into it.")
    for file in files:
        shutil.copyfile(file, folder / file.name)
