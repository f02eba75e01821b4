"""Tokens and keys: recognised, so that they are in no recipe, file or message."""

from __future__ import annotations

import os
import re

__all__ = ["HIDDEN", "holds_secret", "redact"]

HIDDEN = "[hidden]"
"""What stands in a message in place of a secret."""

_ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "WANDB_API_KEY")
_SHORTEST = 8  # shorter values are words that stand in many texts
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"  # GitHub
    r"|\bsk-[A-Za-z0-9_-]{20,}"  # OpenAI and Anthropic
    r"|\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)"  # a name and a password in an address
)


def holds_secret(text: str) -> bool:
    """Whether a text has in it something of the form of a token, or the token of this environment."""
    return redact(text) != text


def redact(text: str) -> str:
    """The text with every token in it hidden."""
    for name in _ENVIRONMENT:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    return _FORMS.sub(HIDDEN, text)
