"""Where the supported versions of the libraries differ, each difference once, with the version that made it.

Recipes and this package use the newest names; older libraries get theirs from here. A difference is recognised by what
a library has where that can be seen, and otherwise by its version.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

from packaging.version import Version

from peftkit.errors import InputError

__all__ = ["EXTRAS", "RENAMED", "peft_loses_biases", "require_extra", "spelled", "varlen_attention"]

RENAMED: Final[Mapping[str, str]] = {
    # TrainingArguments, Transformers 5.23
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
"""Arguments of the libraries' classes by their newest names, with those that older versions know."""

EXTRAS: Mapping[str, tuple[str, ...]] = {"tune": ("optuna",)}
"""The extras of the package that a command needs, by the command's name, with what each installs."""


def spelled(arguments: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Arguments by the names that the installed version knows; one that it knows by no name keeps its own."""
    return {
        RENAMED[name] if name not in known and RENAMED.get(name) in known else name: value
        for name, value in arguments.items()
    }


_varlen: list[tuple[Any | None, bool]] = []  # a cache that torch.compile can look into


def varlen_attention() -> tuple[Any | None, bool]:
    """PyTorch's `varlen_attn`, and whether it asks for `enable_gqa` where key heads serve several query heads.

    None before torch 2.11: in 2.10 it has neither scale nor window. `enable_gqa` came with torch 2.12; 2.11 takes such
    heads as they are. It is imported late: that takes a second.
    """
    if not _varlen:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            _varlen.append((None, False))
        else:
            names = inspect.signature(varlen_attn).parameters
            _varlen.append((varlen_attn if "window_size" in names else None, "enable_gqa" in names))
    return _varlen[0]


def peft_loses_biases() -> bool:
    """Whether PEFT saves an adapter with `bias="lora_only"` without the biases, as versions before 0.21 do."""
    return Version(version("peft")) < Version("0.21")


def require_extra(command: str) -> None:
    """See that the libraries of a command's extra are there, without importing them.

    Raises:
        InputError: some are not; names them, and how to install them.
    """
    missing = [library for library in EXTRAS[command] if find_spec(library) is None]
    if missing:
        raise InputError(f"peftkit {command} needs {', '.join(missing)}: pip install 'peftkit[{command}]'")
