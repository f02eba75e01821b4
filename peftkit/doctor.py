"""What this machine can do, found out by doing it, and what peftkit decides on it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from peftkit.console import size
from peftkit.errors import PeftkitError, RunError
from peftkit.hub import cache_place
from peftkit.models.attention_kernels import has_varlen
from peftkit.models.base import locate_base
from peftkit.models.device import detect_hardware
from peftkit.models.quantization import Backend, backend_of
from peftkit.planning.decisions import choose_precision, decide, dtype_of
from peftkit.planning.hardware import Decision, Hardware
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.quantizers import PRESETS, QUANTIZERS
from peftkit.recipe.schema import Base
from peftkit.redaction import redact
from peftkit.runs.versions import Library, installed_versions, supported_pythons
from peftkit.storage import cache_folder, free_bytes

__all__ = ["Check", "Report", "examine", "reach_hub", "room_at"]

_EMBEDDED = Base(model="builtin:tiny-gpt2")
_PATIENCE_SECONDS = 3.0
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Check:
    """Something that was tried."""

    name: str  # what the machine is to do, as `reach the hub`
    works: bool
    needed: bool  # whether peftkit needs it; without the rest, something that can be done without is missing
    detail: str
    advice: str | None  # what to do where it does not work


@dataclass(frozen=True)
class Report:
    """The machine, the libraries, what was tried, and what is decided."""

    hardware: Hardware
    versions: dict[str, str | None]
    libraries: Sequence[Library]
    pythons: list[str]  # the versions of Python that were tested, from the lowest
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
    checks = [
        _try("use these libraries", lambda: _fitting(libraries)),
        _try("train on a device", lambda: _describe(hardware)),
        _try("open the embedded base", _open_base),
        *(check for name in QUANTIZERS for check in _quantizes(name, hardware, needed=quantises)),
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
        what, advice = error.what, error.remedy or advice
    except Exception as error:  # noqa: BLE001  the libraries fail in every way, and all of them are findings
        what = f"{type(error).__name__}: {error}".splitlines()[0]
    return Check(name, False, needed, redact(what), advice)


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
    return f"{base.reference}, {base.load(base.config(), 'float32').num_parameters():,} parameters"


def _quantizes(name: str, hardware: Hardware, *, needed: bool) -> Iterator[Check]:
    """Call a library that quantises and try what it is for; a library of an extra may be missing."""
    quantizer = QUANTIZERS[name]
    if quantizer.extra and find_spec(quantizer.package) is None:
        return
    first = Quantization.model_validate(PRESETS[next(iter(quantizer.presets))])
    backend = backend_of(first)
    yield _try(f"call {name}", backend.library, needed=False, advice=backend.advice)
    for what, preset in quantizer.tried.items():
        to = Quantization.model_validate(PRESETS[preset])
        check = partial(_quantise, backend, hardware, to)
        yield _try(what, check, needed=needed and not quantizer.extra, advice=backend.advice)


def _quantise(backend: Backend, hardware: Hardware, quantization: Quantization) -> str:
    base = locate_base(_EMBEDDED)
    dtype = dtype_of(choose_precision("auto", hardware).choice)
    model = backend.load(base, base.config(), quantization, dtype, hardware.device)
    logits = model(input_ids=torch.arange(8, device=model.device)[None]).logits
    if not bool(torch.isfinite(logits).all()):
        raise RunError("its logits are not finite")
    return "a quantised forward pass gives finite logits"


def _describe_cache() -> str:
    held = sum(path.stat().st_size for path in cache_folder().rglob("*") if path.is_file())
    return f"{room_at(cache_folder())}; {size(held)} of it can be made again"


def room_at(folder: Path) -> str:
    """A folder, which may not be there yet, and how much can be written to its disk.

    Raises:
        RunError: it cannot be written to.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise RunError(f"{existing} cannot be written to", remedy="Change its rights, or use another folder.")
    return f"{folder}, {size(free_bytes(existing))} free"


def reach_hub() -> str:
    """Ask the hub for one short answer; neither token nor anything else is sent.

    Raises:
        RunError: it does not answer within three seconds, refuses, or is not to be asked.
    """
    from huggingface_hub import constants, get_session, get_token

    token = "a token is set" if get_token() else "no token is set"
    if constants.HF_HUB_OFFLINE:
        raise RunError(f"HF_HUB_OFFLINE is set; {token}", remedy="Unset it to fetch what is not in the cache.")
    address = f"{constants.ENDPOINT}/api/models?limit=1"
    begun = time.perf_counter()
    try:
        status = _within(_PATIENCE_SECONDS, lambda: get_session().get(address, timeout=_PATIENCE_SECONDS).status_code)
    except Exception as error:  # the client's errors have no base in common that it exports
        reason = str(error) or f"no answer within {_PATIENCE_SECONDS:.0f} seconds"
        raise RunError(f"{constants.ENDPOINT}: {reason}; {token}", remedy=_OFFLINE) from error
    if status >= 400:
        raise RunError(f"{constants.ENDPOINT} refuses with status {status}; {token}", remedy=_OFFLINE)
    return f"{constants.ENDPOINT} in {time.perf_counter() - begun:.1f} s; {token}"


_OFFLINE = "Local folders, builtin: and the cache work without it; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy."


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives; TimeoutError when the time is over, as looking up a name has no limit of its own."""
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  handed on to the thread that waits
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result(timeout=seconds)
