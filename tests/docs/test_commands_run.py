"""Every command that a page shows is run, in the page's order, or stands on the list of those that are not."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML

from peftkit.cli.app import app
from peftkit.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("commands.md", "hardware.md", "recipe.md")
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name not in GENERATED
}

BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

NOT_RUN = {
    "pip install -c constraints.txt": "the tests run in what it installed, as `.ci/run` does from nothing",
    "pip install -c constraints-lowest.txt": "`.ci/run` does, and runs tests there",
    "pip install -c torch.txt": "it would install into the environment of the tests",
    "pytest": "this is it",
    "peftkit quickstart": "tests/experiments/test_quickstart.py runs it",
    "HF_TOKEN=hf_... peftkit push": "it sends to the hub",
    "accelerate launch --multi_gpu": "it needs two GPUs",
    "torchrun --nproc-per-node 2": "tests/training/test_launch.py runs it",
}
"""Beginnings of commands, each with why it is not run."""

FEWER = {"--seeds 3": "--seeds 1", "=4,8,16": "=4,8", "1e-5,5e-5,2e-4": "1e-5,2e-4", "--nproc 8": "--nproc 2"}
"""What is made smaller in a command, so that its test ends soon."""

SAID = {
    "docs/tutorials/choose.md": ["Did you mean learning_rate?"],
    "docs/tutorials/merge.md": ["opened without PEFT and bitsandbytes", "would be private"],
    "docs/tutorials/resume.md": ["nothing is left to do", "finished"],
    "docs/tutorials/story.md": ["nothing is left to do", "more than chance", "opened without PEFT and bitsandbytes"],
}
"""What a page promises that its commands say."""

WITH_COMMANDS = [name for name, path in PAGES.items() if "```sh\n" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_of_a_page_run_in_their_order(
    name: str, folder_of: Callable[[Path], Path], environment: dict[str, str]
) -> None:
    folder = folder_of(PAGES[name])
    script = "\n".join(command for command in commands(PAGES[name]) if not is_listed(command))
    for many, few in FEWER.items():
        script = script.replace(many, few)

    done = run(["bash", "-exc", script], folder, environment)

    assert done.returncode == 0, done.stderr[-3000:]
    assert [words for words in SAID.get(name, []) if words not in done.stdout + done.stderr] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if "```python\n" in path.read_text("utf-8")])
def test_the_python_of_a_page_runs_after_a_merge(
    name: str, folder_of: Callable[[Path], Path], environment: dict[str, str]
) -> None:
    folder = folder_of(PAGES[name])
    run(["peftkit", "merge", "runs/first", "my-model", "--no-verify"], folder, environment).check_returncode()

    done = run(["python", "-c", "".join(blocks(PAGES[name], "python"))], folder, environment)

    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["docs/comparing.md", "docs/data.md"])
def test_the_parts_of_a_recipe_that_a_page_shows_are_right(name: str) -> None:
    parts = [text for text in blocks(PAGES[name], "yaml") if not text.startswith("# ")]
    whole = {"name": "whole", "base": {"model": "gpt2"}, "data": {"train": {"path": "a.jsonl"}, "validation": 0.1}}

    recipes = [Recipe.model_validate(whole | YAML(typ="safe").load(part)) for part in parts]

    assert recipes


def test_what_is_not_run_is_on_a_page() -> None:
    shown = [command for page in PAGES.values() for command in commands(page)]

    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in shown)] == []


@pytest.mark.parametrize("name", PAGES)
def test_only_blocks_for_a_shell_begin_lines_with_a_command(name: str) -> None:
    others = [text for kind, text in BLOCK.findall(PAGES[name].read_text("utf-8")) if kind not in ("sh", "slurm")]

    assert [
        line for text in others for line in text.splitlines() if re.match(r"(\$ )?(python -m )?peftkit ", line)
    ] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_commands_and_options_that_exist(name: str) -> None:
    prose = BLOCK.sub("", PAGES[name].read_text(encoding="utf-8"))
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    inline = [span for span in spans if re.match(r"([A-Z_]+=\S+ )*peftkit [a-z]", span)]

    assert [problem for line in [*inline, *commands(PAGES[name])] for problem in unknown_in(line)] == []


def commands(page: Path) -> list[str]:
    """The commands of a page in their order, each on a line of its own."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def blocks(page: Path, kind: str) -> Iterator[str]:
    """The texts of a page's blocks of one kind."""
    yield from (text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == kind)


def is_listed(command: str) -> bool:
    """Whether the list says why a command is not run."""
    return command.startswith(tuple(NOT_RUN))


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of a page."""
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def unknown_in(line: str) -> Iterator[str]:
    """The commands and options of a line that peftkit does not have."""
    words = shlex.split(line.partition("peftkit ")[2], comments=True)
    command: click.Command = app
    context = click.Context(app)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words.pop(0))
        if inner is None:
            yield f"no command: {line}"
            return
        command = inner
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    yield from (f"no {word}: {line}" for word in words if word.startswith("--") and word not in {*known, "--help"})
