"""The versions that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import peftkit

__all__ = ["PACKAGES", "installed_versions", "version_of"]

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")
"""The libraries whose version can change what a run computes."""


def installed_versions() -> dict[str, str | None]:
    """Version of Python, of peftkit and of each library; None where one is not installed."""
    return {
        "python": platform.python_version(),
        "peftkit": peftkit.__version__,
        **{package: version_of(package) for package in PACKAGES},
    }


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
