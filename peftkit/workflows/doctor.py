"""What this machine can do, found out by doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from peftkit.errors import RunError
from peftkit.models.base import locate_base
from peftkit.models.device import detect_hardware
from peftkit.models.quantise import load_quantised
from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import choose_precision, dtype_of
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Base
from peftkit.runs.versions import installed_versions
from peftkit.storage import cache_folder

__all__ = ["Report", "examine"]

_EMBEDDED = Base(model="builtin:tiny-gpt2")


@dataclass(frozen=True)
class Report:
    """The machine, the libraries, and what was tried."""

    hardware: Hardware
    versions: dict[str, str | None]
    checks: list[dict[str, Any]]
    """Each with `name`, `works` and `detail`."""

    def raise_for_failures(self) -> None:
        """Raise RunError if something that peftkit needs does not work."""
        failed = [check["name"] for check in self.checks if not check["works"]]
        if failed:
            raise RunError(f"this machine cannot {'; nor '.join(failed)}.", where="doctor")


def examine() -> Report:
    """Try what the three methods need, on the embedded base."""
    hardware = detect_hardware()
    checks = [
        _try("train on a device", lambda: _describe(hardware)),
        _try("compute in a precision", lambda: choose_precision("auto", hardware).choice),
        _try("open the embedded base", _open_base),
        _try("quantise to 4 bits", lambda: _quantise(hardware, Quantization())),
        _try("quantise to 8 bits", lambda: _quantise(hardware, Quantization(load_in_4bit=False, load_in_8bit=True))),
        _try("keep tokenised data", _describe_cache),
    ]
    return Report(hardware, installed_versions(), checks)


def _try(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "works": True, "detail": check()}
    except Exception as error:  # noqa: BLE001  the libraries fail in every way, and all of them are findings
        return {"name": name, "works": False, "detail": f"{type(error).__name__}: {error}".splitlines()[0]}


def _describe(hardware: Hardware) -> str:
    values = torch.ones(8, 8, device=hardware.device)
    assert float((values @ values).sum()) == 512.0
    kind = f"{hardware.device_count} GPU" if hardware.device == "cuda" else f"CPU, {hardware.cpu_cores} cores"
    return f"{hardware.name}, {kind}, {hardware.memory_bytes / 1e9:.0f} GB"


def _open_base() -> str:
    base = locate_base(_EMBEDDED)
    model = base.load(base.config(), "float32")
    return f"{base.reference}, {model.num_parameters():,} parameters"


def _quantise(hardware: Hardware, quantization: Quantization) -> str:
    base = locate_base(_EMBEDDED)
    dtype = dtype_of(choose_precision("auto", hardware).choice)
    model = load_quantised(base, base.config(), quantization, dtype, hardware.device)
    logits = model(input_ids=torch.arange(8, device=model.device)[None]).logits
    if not bool(torch.isfinite(logits).all()):
        raise RunError("its logits are not finite.", where="bitsandbytes")
    return "a quantised forward pass gives finite logits"


def _describe_cache() -> str:
    folder = cache_folder()
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder} holds {held / 1e6:,.1f} MB, which can be made again"
