"""An installed library is compared with what is required and with what was tested."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from peftkit.errors import RunError
from peftkit.runs.versions import (
    LOWEST,
    check_complete,
    examine_library,
    installed_libraries,
    pinned_versions,
    supported_pythons,
)

WANTED = Requirement("torch>=2.11,<3")


@pytest.mark.parametrize(
    ("installed", "tested", "state", "advice"),
    [
        ("2.13.1", "2.13.1", "tested", None),
        ("2.13.1+cpu", "2.13.1", "tested", None),
        ("2.14.0", "2.13.1", "newer", "If something fails: pip install 'torch==2.13.1'"),
        ("2.13.0", "2.13.1", "supported", None),
        ("2.11.0+cu130", "2.13.1", "tested", None),
        ("2.12.0a0+git", "2.13.1", "supported", None),
        ("2.14.0", None, "unknown", None),
        ("2.10.0", "2.13.1", "unfit", "peftkit requires <3,>=2.11. Run pip install 'torch==2.13.1'"),
        ("3.0.0", "2.13.1", "unfit", "peftkit requires <3,>=2.11. Run pip install 'torch==2.13.1'"),
        (None, "2.13.1", "missing", "pip install 'torch==2.13.1'"),
    ],
)
def test_a_version_is_told_apart_with_what_to_do(
    installed: str | None, tested: str | None, state: str, advice: str | None
) -> None:
    library = examine_library(WANTED, installed, tested, "2.11.0")

    assert (library.state, library.advice) == (state, advice)


def test_all_missing_libraries_are_named_with_one_command() -> None:
    missing = [examine_library(Requirement(name), None, None) for name in ("torch>=2.13", "peft")]

    with pytest.raises(RunError) as caught:
        check_complete(missing)

    assert str(caught.value) == "doctor: torch, peft: not installed. Run pip install 'torch>=2.13' 'peft'."


def test_the_libraries_here_are_those_that_the_package_names_and_each_was_tested() -> None:
    libraries = installed_libraries()

    check_complete(libraries)
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= {library.name for library in libraries}
    assert "optuna" in {library.name for library in libraries}  # of a command's extra, and here
    assert "pytest" not in {library.name for library in libraries}  # it belongs to an extra that no command needs
    assert all(library.tested and library.lowest for library in libraries)


def test_a_pinned_library_is_found_by_its_normal_name() -> None:
    assert {"huggingface-hub", "ruamel-yaml", "torch"} <= set(pinned_versions()) & set(pinned_versions(LOWEST))


def test_the_tested_versions_of_python_are_those_of_the_package() -> None:
    assert supported_pythons()[0] == "3.11"
    assert "3.12" in supported_pythons()


def test_a_pin_for_another_python_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOWEST).write_text("# pins\nnumpy==2.0.2 ; python_version < '3'\nnumpy==2.1.0\n\n", encoding="utf-8")
    monkeypatch.setattr("peftkit.runs.versions._FOLDERS", (tmp_path,))

    assert pinned_versions(LOWEST) == {"numpy": "2.1.0"}
