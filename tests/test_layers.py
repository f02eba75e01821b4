"""Imports point down: the layers of the package, checked on its source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import peftkit

PACKAGE = Path(peftkit.__file__).parent
LAYERS = (
    {"api", "cli"},
    {"experiments"},
    {"training"},
    {"evaluation", "report"},
    {"adapters", "doctor", "fetch"},
    {"models", "data"},
    {"planning"},
    {"runs"},
    {"recipe"},
    {"compatibility", "console", "errors", "hub", "redaction", "shortage", "storage"} | {"data.formats", "metrics"},
)
"""From the top down. Only the modules of the lowest layer import each other."""

DEPTH = {package: depth for depth, layer in enumerate(LAYERS) for package in layer}
COMPUTING = {"models", "data", "adapters", "doctor", "training", "evaluation"}
ALLOWED = {
    "torch": {"compatibility", *COMPUTING},
    "transformers": {"data.formats", *COMPUTING},  # in a conversation that is rendered
    "click": {"cli"},
    "peft": {"models", "adapters"},
    "bitsandbytes": {"models"},
}
HEAVY = ("torch", "transformers", "peft", "datasets", "numpy")
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in DEPTH)


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever the statement is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "peftkit":
            yield from (f"peftkit.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def package(name: str) -> str:
    """The package of a module by its dotted name: a part of a package that has a layer of its own is one."""
    first, second, *_ = [*name.split(".")[1:], ""]
    return f"{first}.{second}" if f"{first}.{second}" in DEPTH else first


def package_of(path: Path) -> str:
    return package(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_from_its_own_package_and_the_layers_below(path: Path) -> None:
    own = package_of(path)

    others = {package(name) for name in imports(path) if name.startswith("peftkit.")} & set(DEPTH) - {own}

    assert {other for other in others - LAYERS[-1] if DEPTH[other] <= DEPTH[own]} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_library_is_imported_only_by_the_packages_that_own_it(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)} & set(ALLOWED)

    assert {library for library in libraries if package_of(path) not in ALLOWED[library]} == set()


BY_RICH = ("rich", "pygments", "markdown_it", "mdurl")
"""Rich, which draws tables, and what it imports."""


def loaded_by(arguments: list[str]) -> set[str]:
    """The modules that a command of the command line imports, in a process of its own."""
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom peftkit.cli.app import app\n"
        f"app.main({arguments!r}, standalone_mode=False)\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["adapters", "--help"],
        ["recipes", "--help"],
        ["recipes", "list"],
        ["recipes", "list", "--json"],
        ["explain"],
        ["explain", "lora.r"],
        ["explain", "save_steps"],
        ["explain", "--json"],
    ],
    ids=" ".join,
)
def test_what_is_asked_first_imports_click_and_rich_alone(arguments: list[str]) -> None:
    packages = {name.partition(".")[0] for name in loaded_by(arguments)} - sys.stdlib_module_names

    assert packages <= {"click", "peftkit", *BY_RICH}


def test_the_help_of_the_command_line_imports_no_commands_file() -> None:
    loaded = loaded_by(["--help"])

    assert {name for name in loaded if name.startswith("peftkit.cli.")} == {"peftkit.cli.app"}
    assert loaded.isdisjoint(BY_RICH)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--help"],
        ["recipes", "check", "gpt2-wikitext2"],
        ["explain", "save_steps", "--recipe", "gpt2-wikitext2"],
    ],
)
def test_a_light_command_imports_no_heavy_library(arguments: list[str]) -> None:
    assert loaded_by(arguments) & set(HEAVY) == set()
