"""Results are printed as they are, and end quietly where nobody reads them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from peftkit import console


def test_a_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_text("[bold] :heart: a\tb")
    console.print_json({"text": ":heart:"})

    assert capsys.readouterr().out == '[bold] :heart: a\tb\n{\n  "text": ":heart:"\n}\n'


def test_marked_parts_stand_in_brackets_where_there_is_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_marked([(False, "the [inn] "), (True, "is old")])

    assert capsys.readouterr().out == "the [inn] ⟦is old⟧\n"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal of 30 columns, which Rich looks up once."""
    monkeypatch.setenv("COLUMNS", "30")
    console.stdout.cache_clear()
    yield
    console.stdout.cache_clear()


@pytest.mark.usefixtures("narrow")
def test_a_table_has_the_width_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table("A title", ["field", "meaning"], [["lora_dropout", "how often inputs are dropped"]])

    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "A title",
        "field         meaning",
        "lora_dropout  how often inputs",
        "              are dropped",
    ]


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    command = [sys.executable, "-m", "peftkit", "explain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()

        assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")
