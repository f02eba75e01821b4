"""The versions of Python and of the libraries: which are installed, which are required, and which were tested."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import peftkit
from peftkit.compatibility import EXTRAS
from peftkit.errors import RunError
from peftkit.recipe.quantizers import QUANTIZERS

__all__ = [
    "LOWEST", "NEWEST", "PACKAGES", "Library", "check_complete", "examine_library", "installed_libraries",
    "installed_versions", "pinned_versions", "supported_pythons", "version_of",
]  # fmt: skip

_QUANTIZERS = tuple(quantizer.package for quantizer in QUANTIZERS.values())
PACKAGES = ("torch", "transformers", "peft", *_QUANTIZERS, "accelerate", "datasets", "tokenizers", "safetensors")
"""The libraries whose version can change what a run computes."""

State = Literal["tested", "supported", "newer", "unknown", "unfit", "missing"]

NEWEST = "constraints.txt"
LOWEST = "constraints-lowest.txt"
"""The two lists of versions that all tests, and those that touch libraries, run with."""

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package carries the lists inside it; a checkout has them beside it, where pip is pointed at them.
_FOLDERS = (_PACKAGE / "assets", _PACKAGE.parent)
_PYTHON = "Programming Language :: Python :: 3."


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


@dataclass(frozen=True)
class Library:
    """One library that peftkit requires."""

    name: str
    installed: str | None
    required: str
    """As `>=2.13`; empty where any will do."""

    lowest: str | None
    tested: str | None
    """The lowest and the newest version that peftkit was tested with; None where that is not known."""

    state: State
    """`tested`: the lowest or the newest tested version. `supported`: between them. `newer` than both. `unknown`:
    nothing is known to have been tested. `unfit`: not what is required."""

    @property
    def pin(self) -> str:
        """The argument for pip, quoted for a shell."""
        return f"'{self.name}=={self.tested}'" if self.tested else f"'{self.name}{self.required}'"

    @property
    def advice(self) -> str | None:
        """What to do; None where there is nothing to do."""
        return {
            "newer": f"If something fails: pip install {self.pin}",
            "unfit": f"peftkit requires {self.required}. Run pip install {self.pin}",
            "missing": f"pip install {self.pin}",
        }.get(self.state)

    def record(self) -> dict[str, Any]:
        """The library for programs."""
        return {**asdict(self), "advice": self.advice}


def installed_libraries() -> list[Library]:
    """Every library that peftkit requires, as its own package says; none where peftkit itself is not installed."""
    lowest, newest = pinned_versions(LOWEST), pinned_versions(NEWEST)
    return [
        examine_library(wanted, version_of(wanted.name), newest.get(name), lowest.get(name))
        for wanted in _required()
        for name in [canonicalize_name(wanted.name)]
    ]


def check_complete(libraries: Sequence[Library]) -> None:
    """Check that every library is installed.

    Raises:
        RunError: some are missing; all of them are named.
    """
    missing = [library for library in libraries if library.state == "missing"]
    if missing:
        names, pins = ", ".join(library.name for library in missing), " ".join(library.pin for library in missing)
        raise RunError(f"{names}: not installed.", where="doctor", remedy=f"Run pip install {pins}.")


def examine_library(
    wanted: Requirement, installed: str | None, tested: str | None, lowest: str | None = None
) -> Library:
    """Compare what is installed of a library with what is required and the versions that were tested."""
    state: State
    if installed is None:
        state = "missing"
    elif not wanted.specifier.contains(installed, prereleases=True):
        state = "unfit"
    elif tested is None:
        state = "unknown"
    else:
        public = Version(Version(installed).public)  # without what a build adds, as +cpu
        state = "newer" if public > Version(tested) else "supported"
        if public in {Version(pin) for pin in (tested, lowest) if pin}:
            state = "tested"
    return Library(wanted.name, installed, str(wanted.specifier), lowest, tested, state)


def pinned_versions(name: str = NEWEST) -> dict[str, str]:
    """The version of each library in a list, by its normal name; empty where the list is gone."""
    file = next((folder / name for folder in _FOLDERS if (folder / name).is_file()), None)
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    pins = [Requirement(line) for line in lines if "==" in line and not line.startswith("#")]
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def supported_pythons() -> list[str]:
    """The versions of Python that peftkit was tested with, as its package says; none where it is not installed."""
    try:
        classifiers = metadata("peftkit").get_all("Classifier") or []
    except PackageNotFoundError:
        return []
    return sorted((f"3.{name.removeprefix(_PYTHON)}" for name in classifiers if name.startswith(_PYTHON)), key=Version)


def _required() -> Iterator[Requirement]:
    """The libraries that peftkit's package requires, and those of its extras that are installed."""
    try:
        lines = requires("peftkit") or []
    except PackageNotFoundError:
        return
    extras = (*EXTRAS, *(quantizer.extra for quantizer in QUANTIZERS.values() if quantizer.extra))
    for line in lines:
        wanted = Requirement(line)
        if _applies(wanted, "") or (version_of(wanted.name) and any(_applies(wanted, extra) for extra in extras)):
            yield wanted


def _applies(wanted: Requirement, extra: str) -> bool:
    """Whether a requirement holds here, with an extra of the package or, where that is empty, without any."""
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})
