"""What no command has foreseen ends in a line and an exit status; a group's help is known before its commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from peftkit.cli.adapters import COMMANDS as ADAPTER_COMMANDS
from peftkit.cli.adapters import command as adapters
from peftkit.cli.app import COMMANDS, app, main

CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."


@pytest.mark.parametrize(("error", "amount"), [(MemoryError(), ""), (RuntimeError(CPU), ": 8.6 GB more were needed")])
def test_memory_that_is_short_anywhere_is_said_to_be(
    error: Exception, amount: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)

    with pytest.raises(SystemExit) as left:
        main(["generate", "builtin:tiny-gpt2", "--prompt", "one"])

    assert left.value.code == 1
    assert f"error: memory was short{amount}." in capsys.readouterr().err


GROUPS = [(app, COMMANDS), (adapters, ADAPTER_COMMANDS)]


@pytest.mark.parametrize(("group", "summaries"), GROUPS, ids=["peftkit", "adapters"])
def test_each_commands_line_is_whole_in_a_terminal_of_80_columns(
    group: click.Group, summaries: Mapping[str, str]
) -> None:
    shown = CliRunner().invoke(group, ["--help"], terminal_width=80).output

    assert [text for text in summaries.values() if f"  {text}\n" not in shown] == []


@pytest.mark.parametrize(("group", "summaries"), GROUPS, ids=["peftkit", "adapters"])
def test_each_command_has_the_name_that_it_is_found_by(group: click.Group, summaries: Mapping[str, str]) -> None:
    context = click.Context(group)
    found = [command.name for name in summaries if (command := group.get_command(context, name))]

    assert found == group.list_commands(context)


@pytest.mark.parametrize(
    ("group", "name", "hint"), [(app, "trian", "Did you mean train?"), (adapters, "lst", "Did you mean list?")]
)
def test_an_unknown_command_is_refused_with_the_nearest_one(group: click.Group, name: str, hint: str) -> None:
    done = CliRunner().invoke(group, [name])

    assert (done.exit_code, done.stdout) == (2, "")
    assert f"There is no command '{name}'. {hint}" in done.stderr
