"""The command line as users meet it: processes, exit statuses, stdout for results and stderr for the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import peftkit as package
from peftkit.cli.app import COMMANDS

Command = Callable[..., subprocess.CompletedProcess[str]]
EMBEDDED = Path(package.__file__).parent / "assets" / "tiny-gpt2"


def test_help_lists_every_command_with_what_it_does(peftkit: Command) -> None:
    done = peftkit("--help")

    assert done.returncode == 0
    assert [command for command in COMMANDS if f"\n  {command} " not in done.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, peftkit: Command) -> None:
    done = peftkit(command, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: peftkit {command}")
    assert "\\b" not in done.stdout  # what tells click to leave the lines of an example as they are


def test_the_whole_job_from_recipe_to_merged_model(peftkit: Command, recipe_path: Path) -> None:
    trained = peftkit("train", str(recipe_path), "--method", "qlora", "--output", "run", "--json")
    manifest = json.loads(trained.stdout)
    assert trained.returncode == 0, trained.stderr
    assert manifest["status"] == "finished"

    evaluated = json.loads(peftkit("evaluate", "run", "--json").stdout)
    assert evaluated["perplexity"] == pytest.approx(manifest["metrics"]["perplexity"], rel=1e-5)
    assert evaluated["method"] == "qlora"

    merged = peftkit("merge", "run", "merged")
    assert (merged.returncode, merged.stdout) == (0, "merged\n")

    again = json.loads(peftkit("evaluate", "merged", "--json").stdout)
    assert again["perplexity"] == pytest.approx(evaluated["perplexity"], rel=1e-4)

    prompt = "name: Red Fox | kind: inn | place: hill | dish: plum pie | price: 3 | welcome: warm\\n"
    texts = [peftkit("generate", target, "--prompt", prompt).stdout for target in ("run", "merged")]
    assert texts[0].strip()
    assert texts[0] == texts[1]


def test_a_base_laid_out_as_the_hubs_cache_trains_by_its_name(
    peftkit: Command, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(EMBEDDED, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    done = peftkit("train", str(recipe_path), "--set", "base.model=someone/tiny", "--output", "run", "--json")

    assert done.returncode == 0, done.stderr
    base = json.loads(done.stdout)["base"]
    assert (base["model"], base["revision"]) == ("someone/tiny", commit)
    assert peftkit("evaluate", "run").returncode == 0
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "someone/tiny"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean train?"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "quikstart"], "Did you mean quickstart?"),
        (["train", "quickstart", "--method", "lorra"], "'lorra' is not one of"),
        (["train", "quickstart", "--set", "training.lr=1"], "--set training.lr: training.lr: there is no lr"),
        (["evaluate", "./nowhere"], "there is no such folder"),
        (["evaluate", "builtin:tiny-gpt2"], "records no recipe"),
        (["generate", "builtin:tiny-gpt2", "--prompt", " "], "--prompt: is empty"),
        (["generate", "builtin:nothing", "--prompt", "a"], "there is no builtin:nothing"),
        (["merge", "builtin:tiny-gpt2", "out"], "there is no such folder"),
        (["recipes", "copy", "quickstart", "no/such/folder/a.yaml"], "there is no such folder"),
        (["recipes", "show", "nothing"], "The shipped ones are: "),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_clear_line_and_status_2(
    arguments: list[str], words: str, peftkit: Command, tmp_path: Path
) -> None:
    done = peftkit(*arguments)

    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_failing_run_leaves_with_status_1(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit(
        "train", str(recipe_path), "--method", "full", "--output", "run",
        "--set", "training.learning_rate=1e30", "--set", "training.max_grad_norm=0")  # fmt: skip

    assert done.returncode == 1
    assert "the loss is not a finite number" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_is_listed_shown_copied_and_checked(peftkit: Command) -> None:
    listed = json.loads(peftkit("recipes", "list", "--json").stdout)
    assert {"quickstart", "gpt2-wikitext2"} <= {recipe["name"] for recipe in listed}

    assert "learning_rate: 5e-5" in peftkit("recipes", "show", "gpt2-wikitext2").stdout

    assert peftkit("recipes", "copy", "gpt2-wikitext2", "mine.yaml").stdout == "mine.yaml\n"
    second = peftkit("recipes", "copy", "quickstart", "mine.yaml")
    assert (second.returncode, "exists already" in second.stderr) == (2, True)

    checked = peftkit("recipes", "check", "mine.yaml", "--method", "full", "--set", "training.seed=7")
    assert "seed: 7" in checked.stdout
    assert "# quantization is checked, and not used by method: full." in checked.stdout


def test_the_schema_is_json(peftkit: Command) -> None:
    assert json.loads(peftkit("recipes", "schema").stdout)["title"] == "peftkit recipe"


@pytest.mark.slow
def test_evaluate_reads_another_file_the_way_the_recipe_reads_its_own(
    peftkit: Command, runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "other.jsonl").write_text('{"prompt": "name: Red Fox\\n", "completion": "The Red Fox."}\n' * 2)

    whole = json.loads(peftkit("evaluate", str(runs["lora"]), "--data", "other.jsonl", "--generate", "--json").stdout)
    first = json.loads(peftkit("evaluate", str(runs["lora"]), "--data", "other.jsonl", "--limit", "1", "--json").stdout)

    assert whole["documents"] == 2
    assert whole["text"]["references"] == 2
    assert first["documents"] == 1
    assert first["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)


@pytest.mark.parametrize(
    ("validation", "options", "words"),
    [
        ("", (), "no validation data. Name a file with --data."),
        ("  validation: 0.1\n", ("--limit", "2"), "--limit: cannot act on a share of the training rows. Name a file"),
    ],
)
def test_a_recipe_without_rows_to_measure_on_says_how_to_give_some(
    validation: str, options: tuple[str, ...], words: str, peftkit: Command, recipe_path: Path
) -> None:
    held = "  validation: {path: validation.jsonl}\n"
    text = recipe_path.read_text(encoding="utf-8")
    recipe_path.write_text(text.replace(held, validation).replace("eval_strategy: epoch", ""), encoding="utf-8")

    done = peftkit("evaluate", "builtin:tiny-gpt2", "--recipe", "small.yaml", *options)

    assert held in text
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_a_base_is_evaluated_on_plain_text_without_a_recipe(peftkit: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The inn by the bridge is called the Red Fox.\n" * 3, encoding="utf-8")

    done = peftkit("evaluate", "builtin:tiny-gpt2", "--data", "text.txt", "--json")

    assert json.loads(done.stdout)["perplexity"] > 1


def test_a_text_is_evaluated_in_windows_that_overlap_and_beside_a_baseline(
    runs: dict[str, Path], peftkit: Command, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The inn by the bridge is called the Red Fox. " * 30, encoding="utf-8")
    command = ("evaluate", "builtin:tiny-gpt2", "--data", "text.txt", "--max-length", "100", "--stride", "64")

    found = json.loads(peftkit(*command, "--baseline", str(runs["lora"]), "--json").stdout)
    refused = peftkit(*command[:-1], "101")

    assert (found["documents"], found["max_length"], found["stride"]) == (1, 100, 64)
    assert found["standard_error"] is None
    assert found["word_perplexity"] > found["perplexity"]
    assert found["baseline"]["difference"]["nats"] == pytest.approx(
        found["eval_loss"] - found["baseline"]["eval_loss"], abs=1e-9
    )
    assert refused.returncode == 2
    assert "--stride: is more than a window, 100 tokens" in refused.stderr


def test_generate_reads_a_prompt_from_standard_input(peftkit: Command) -> None:
    done = peftkit("generate", "builtin:tiny-gpt2", "--max-new-tokens", "8", "--json", stdin="The inn")

    (answer,) = json.loads(done.stdout)
    assert answer["prompt"] == "The inn"
    assert answer["text"]
