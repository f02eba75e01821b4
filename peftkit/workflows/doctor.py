"""What this machine can do, found out by doing it, and what peftkit decides on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from peftkit.console import size
from peftkit.errors import PeftkitError, RunError
from peftkit.hub import cache_place
from peftkit.models.base import locate_base
from peftkit.models.device import detect_hardware
from peftkit.models.quantise import load_quantised, native_library
from peftkit.models.varlen import has_varlen
from peftkit.planning.decisions import decide
from peftkit.planning.hardware import Decision, Hardware
from peftkit.planning.precision import choose_precision, dtype_of
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Base
from peftkit.redaction import redact
from peftkit.runs.requirements import Library, supported_pythons
from peftkit.runs.versions import installed_versions
from peftkit.storage import cache_folder
from peftkit.workflows.surroundings import reach_hub, room_at

__all__ = ["Check", "Report", "examine"]

_EMBEDDED = Base(model="builtin:tiny-gpt2")
_QLORA = "Only method: qlora needs it; python -m bitsandbytes tells more."


@dataclass(frozen=True)
class Check:
    """Something that was tried."""

    name: str
    """What the machine is to do, as `reach the hub`."""

    works: bool
    needed: bool
    """Whether peftkit needs it; without the rest, something that can be done without is missing."""

    detail: str
    advice: str | None
    """What to do where it does not work."""


@dataclass(frozen=True)
class Report:
    """The machine, the libraries, what was tried, and what is decided."""

    hardware: Hardware
    versions: dict[str, str | None]
    libraries: Sequence[Library]
    pythons: list[str]
    """The versions of Python that were tested, from the lowest."""

    checks: list[Check]
    decisions: list[Decision[Any]]

    def record(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "hardware": self.hardware.record(),
            "versions": self.versions,
            "libraries": [library.record() for library in self.libraries],
            "supported_pythons": self.pythons,
            "checks": [asdict(check) for check in self.checks],
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    def raise_for_failures(self) -> None:
        """Raise RunError if something that peftkit needs does not work."""
        failed = [check.name for check in self.checks if check.needed and not check.works]
        if failed:
            raise RunError(f"this machine cannot {'; nor '.join(failed)}.", where="doctor")


def examine(libraries: Sequence[Library]) -> Report:
    """Try what the three methods need, on the embedded base; `libraries` are those that are installed."""
    hardware = detect_hardware()
    quantises = hardware.device != "mps"  # there, bitsandbytes goes without kernels of its own
    widths = {"4": Quantization(), "8": Quantization(load_in_4bit=False, load_in_8bit=True)}
    checks = [
        _try("use these libraries", lambda: _fitting(libraries)),
        _try("train on a device", lambda: _describe(hardware)),
        _try("open the embedded base", _open_base),
        _try("call bitsandbytes", native_library, needed=False, advice=_QLORA),
        *(
            _try(f"quantise to {bits} bits", partial(_quantise, hardware, to), needed=quantises, advice=_QLORA)
            for bits, to in widths.items()
        ),
        _try("keep tokenised data", _describe_cache),
        _try("keep fetched models", lambda: room_at(cache_place()), needed=False),
        _try("write here", lambda: room_at(Path.cwd()), needed=False),
        _try("reach the hub", reach_hub, needed=False),
    ]
    decisions = decide(hardware, varlen=has_varlen(), flash=find_spec("flash_attn") is not None)
    return Report(hardware, installed_versions(), libraries, supported_pythons(), checks, decisions)


def _try(name: str, check: Callable[[], str], *, needed: bool = True, advice: str | None = None) -> Check:
    try:
        return Check(name, True, needed, redact(check()), None)
    except PeftkitError as error:
        return Check(name, False, needed, redact(error.what), error.remedy or advice)
    except Exception as error:  # noqa: BLE001  the libraries fail in every way, and all of them are findings
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check(name, False, needed, redact(line), advice)


def _fitting(libraries: Sequence[Library]) -> str:
    if not libraries:
        return "peftkit is no installed package here, which would say what it requires"
    unfit = [library for library in libraries if library.state == "unfit"]
    if unfit:
        pins = " ".join(library.pin for library in unfit)
        names = ", ".join(f"{library.name} {library.installed}" for library in unfit)
        raise RunError(f"{names}: not what peftkit requires", remedy=f"Run pip install {pins}")
    newer = [f"{library.name} {library.installed}" for library in libraries if library.state == "newer"]
    beyond = f"; newer than tested: {', '.join(newer)}" if newer else ""
    return f"{len(libraries)} are installed, each in a version that peftkit supports{beyond}"


def _describe(hardware: Hardware) -> str:
    values = torch.ones(8, 8, device=hardware.device)
    if float((values @ values).sum()) != 512.0:
        raise RunError(f"{hardware.name} multiplies wrongly", remedy="Its driver or its memory is broken.")
    kind = f"CPU, {hardware.cpu_cores} cores" if hardware.device == "cpu" else f"{hardware.device_count} GPU"
    return f"{hardware.name}, {kind}, {size(hardware.memory_bytes)}"


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
        raise RunError("its logits are not finite")
    return "a quantised forward pass gives finite logits"


def _describe_cache() -> str:
    folder = cache_folder()
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{room_at(folder)}; {size(held)} of it can be made again"
