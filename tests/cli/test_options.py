"""Options that several commands have."""

from __future__ import annotations

import click
from click.testing import CliRunner

from peftkit.cli import options


@click.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True)
@click.option("--resume", is_flag=True)
@click.option("--report/--no-report", "reports", default=True)
@click.option("--output")
@click.option("--nproc", type=int, default=1)
@click.pass_context
def command(context: click.Context, /, **_: object) -> None:
    for word in options.arguments_of(context, "nproc"):
        click.echo(word)


def words(*arguments: str) -> list[str]:
    return CliRunner().invoke(command, arguments).output.splitlines()


def test_a_command_line_is_made_again_without_one_option() -> None:
    given = ["my.yaml", "--set", "a=1", "--set", "b=[x, y]", "--resume", "--no-report", "--output", "-o dd", "--nproc"]

    assert words(*given, "2") == [
        "my.yaml", "--set=a=1", "--set=b=[x, y]", "--resume", "--no-report", "--output=-o dd"]  # fmt: skip


def test_what_was_not_given_stays_a_default() -> None:
    assert words("my.yaml") == ["my.yaml"]
