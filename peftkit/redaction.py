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
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"  # GitHub
    r"|(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}"  # OpenAI and Anthropic
    r"|AKIA[0-9A-Z]{16}(?![0-9A-Z])"  # Amazon
    r"|(?<=://)[^/\s:@]*:[^/\s]+(?=@)"  # a name and a password in an address
)


def holds_secret(text: str) -> bool:
    """Whether a text has in it something of the form of a token, or the token of this environment."""
    return redact(text) != text


def redact(text: str) -> str:
    """The text with every token in it hidden."""
    values = (os.environ.get(name, "").strip() for name in _ENVIRONMENT)
    for value in sorted(values, key=len, reverse=True):  # one could begin as another does
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    while (hidden := _FORMS.sub(HIDDEN, text)) != text:  # one may have stood where another began
        text = hidden
    return text
