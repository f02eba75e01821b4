"""The libraries that can quantise a base. This is the one list of them; nothing here needs pydantic or torch.

The code of each is in `peftkit/models/quantization/`, in the file of its name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from peftkit.errors import FieldError

__all__ = ["PRESETS", "QUANTIZERS", "Quantizer", "check_available", "quiet_loggers"]


@dataclass(frozen=True)
class Quantizer:
    """What has to be known of a library without its code."""

    presets: Mapping[str, Mapping[str, Any]]
    """Short names for ways to quantise, with what the recipe's `quantization` section says for each."""

    tried: Mapping[str, str]  # what `doctor` tries, with the preset for it
    widths: tuple[int, ...]  # the bits that it can hold a weight in
    package: str  # that has to be installed
    loggers: tuple[str, ...] = ()  # loggers that say which of its kernels a machine has while it is imported
    extra: str | None = None
    """The extra of peftkit's package that installs it; None for a library that is always there."""


QUANTIZERS: Final[Mapping[str, Quantizer]] = {
    "bitsandbytes": Quantizer(
        presets={
            "nf4-double": {},
            "nf4": {"bnb_4bit_use_double_quant": False},
            "fp4": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
            "fp4-double": {"bnb_4bit_quant_type": "fp4"},
            "int8": {"load_in_8bit": True},
        },
        tried={"quantise to 4 bits": "nf4-double", "quantise to 8 bits": "int8"},
        widths=(4, 8),
        package="bitsandbytes",
        loggers=("bitsandbytes",),
    ),
    "torchao": Quantizer(
        presets={"torchao-int8": {"load_in_8bit": True}},
        tried={"quantise to 8 bits by torchao": "torchao-int8"},
        widths=(8,),
        package="torchao",
        loggers=("torchao", "torch.utils._pytree"),
        extra="torchao",
    ),
}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    name: {"backend": backend, **values}
    for backend, quantizer in QUANTIZERS.items()
    for name, values in quantizer.presets.items()
}
"""Every preset, by its name."""


def quiet_loggers() -> None:
    """Keep what the libraries say while they are imported off the terminal, as nobody can act on it."""
    for quantizer in QUANTIZERS.values():
        for name in quantizer.loggers:
            logging.getLogger(name).setLevel(logging.ERROR)


def check_available(backend: str) -> None:
    """See that a library is installed, without importing it.

    Raises:
        FieldError: it is not; names the extra that installs it.
    """
    quantizer = QUANTIZERS[backend]
    if find_spec(quantizer.package) is None:
        wanted = f"peftkit[{quantizer.extra}]" if quantizer.extra else quantizer.package
        what = f"{backend} needs {quantizer.package}, which is not installed."
        raise FieldError("quantization.backend", what, remedy=f"pip install '{wanted}'")
