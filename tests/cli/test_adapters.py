"""`peftkit adapters` and `merge` as users meet them: what is read, what is refused, and what is left behind."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit as package
from peftkit.cli.adapters import COMMANDS
from peftkit.cli.app import main

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]
Damage = Callable[[Path], object]
B = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
A = B.replace("lora_B", "lora_A")
BASE = ("--base", "builtin:tiny-gpt2")


@pytest.fixture
def peftkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, which has the libraries already, in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        with warnings.catch_warnings(), pytest.raises(SystemExit) as leaving:
            main(arguments)
        status = leaving.value.code
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(
            arguments, status if isinstance(status, int) else 1, printed.out, printed.err
        )

    return call


@pytest.fixture
def own(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "own"))


@pytest.fixture
def foreign(own: Path) -> Path:
    (own / "peftkit.json").unlink()
    (own / "manifest.json").unlink()
    return own


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        values = load_file(folder / "adapter_model.safetensors")
        change(values)
        save_file(values, folder / "adapter_model.safetensors")

    return damage


def settings(name: str, **fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(values | fields), encoding="utf-8")

    return damage


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def other_base(folder: Path) -> None:
    values = json.loads((folder / "peftkit.json").read_text(encoding="utf-8"))
    values["base"]["sha256"] = "0" * 64
    (folder / "peftkit.json").write_text(json.dumps(values), encoding="utf-8")


def named(name: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / "peftkit.json").read_text(encoding="utf-8")
        (folder / "peftkit.json").write_text(text.replace('"name": "small"', f'"name": "{name}"'), encoding="utf-8")

    return damage


HEAD = {A.replace("transformer.h.0.attn.c_attn", "lm_head"): torch.ones(4, 128),
        B.replace("transformer.h.0.attn.c_attn", "lm_head"): torch.ones(1024, 4)}  # fmt: skip
DEEPER = {A.replace("h.0", "h.7"): torch.ones(4, 128), B.replace("h.0", "h.7"): torch.ones(384, 4)}
OWN_FAULTS: dict[str, tuple[Damage, str]] = {
    "missing tensor": (tensors(lambda values: values.pop(B)), f"{B} is missing"),
    "extra tensor": (tensors(lambda values: values.update(more=torch.ones(1))), "more is one too many"),
    "edited alpha": (settings("adapter_config.json", lora_alpha=99), "lora_alpha is 99, was 8"),
    "NaN": (tensors(lambda values: values.update({B: values[B] * float("nan")})), "that are not finite"),
    "other base": (other_base, "was trained on another builtin:tiny-gpt2"),
    "base path": (
        settings("adapter_config.json", base_model_name_or_path="/elsewhere"),
        "base_model_name_or_path is '/elsewhere', was 'builtin:tiny-gpt2'"),
    "pickle": (pickled, "as a pickle"),
    "absolute name": (named("/abs"), "peftkit.json: is damaged"),
    "name that leads out": (named("../x"), "peftkit.json: is damaged"),
}  # fmt: skip
FOREIGN_FAULTS: dict[str, tuple[Damage, str]] = {
    "missing tensor": (tensors(lambda values: [values.pop(B), values.pop(A)]), "is missing"),
    "half a pair": (tensors(lambda values: values.pop(B)), "has not both of its matrices"),
    "extra tensor": (tensors(lambda values: values.update(more=torch.ones(1))), "more is one too many"),
    "wrong layer count": (tensors(lambda values: values.update(DEEPER)), "layer 7, but the base's last is 3"),
    "NaN": (tensors(lambda values: values.update({B: values[B] * float("nan")})), "that are not finite"),
    "tied head": (tensors(lambda values: values.update(HEAD)), "adapts lm_head, which is tied"),
    "pickle": (pickled, "as a pickle"),
    "another rank": (settings("adapter_config.json", r=8), "has another shape"),
}


def assert_refused(done: Done, words: str) -> None:
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize("fault", OWN_FAULTS)
def test_a_faulty_adapter_is_refused_in_one_line_and_nothing_is_left(
    fault: str, own: Path, peftkit: Command, tmp_path: Path
) -> None:
    damage, words = OWN_FAULTS[fault]
    damage(own)

    assert_refused(peftkit("merge", "own", "merged"), words)

    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("fault", FOREIGN_FAULTS)
def test_so_is_one_that_was_made_elsewhere(fault: str, foreign: Path, peftkit: Command, tmp_path: Path) -> None:
    damage, words = FOREIGN_FAULTS[fault]
    damage(foreign)

    assert_refused(peftkit("merge", "own", "merged", *BASE), words)

    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("place", ["own", "own/inner"])
def test_no_model_goes_into_its_adapters_folder(place: str, own: Path, peftkit: Command) -> None:
    before = sorted(own.iterdir())

    assert_refused(peftkit("merge", "own", place), "is in the adapter's own folder")

    assert sorted(own.iterdir()) == before


@pytest.mark.usefixtures("foreign")
def test_an_adapter_made_elsewhere_is_merged_with_its_base_named(peftkit: Command) -> None:
    assert_refused(peftkit("merge", "own", "merged"), "Name its base with --base.")

    done = peftkit("merge", "own", "merged", *BASE, "--json")

    receipt = json.loads(done.stdout)
    assert receipt["proof"]["relative_error"] < 1e-5
    assert "cannot be checked" in done.stderr


@pytest.mark.usefixtures("foreign")
def test_a_foreign_adapter_of_a_quantised_base_is_merged_onto_it(peftkit: Command) -> None:
    rounded = json.loads(peftkit("merge", "own", "a", *BASE, "--quantization", "nf4", "--json").stdout)
    plain = json.loads(peftkit("merge", "own", "b", *BASE, "--json").stdout)

    assert rounded["quantization"]["bnb_4bit_quant_type"] == "nf4"
    assert rounded["proof"]["relative_error"] < 1e-5
    assert rounded["outputs"]["model.safetensors"] != plain["outputs"]["model.safetensors"]


def test_a_merge_says_how_exact_it_is(runs: dict[str, Path], peftkit: Command) -> None:
    exact = peftkit("merge", str(runs["qlora"]), "exact")
    loose = peftkit("merge", str(runs["qlora"]), "loose", "--onto", "original", "--dtype", "bfloat16")
    silent = peftkit("merge", str(runs["qlora"]), "silent", "--no-verify", "--shard-size", "1MB")

    assert "opened without PEFT and bitsandbytes, on" in exact.stderr
    assert "tokens of validation data: logits" in exact.stderr
    assert "not those that the adapter was trained on" in loose.stderr
    assert "not compared" in silent.stderr
    assert [done.stdout for done in (exact, loose, silent)] == ["exact\n", "loose\n", "silent\n"]


@pytest.mark.parametrize("size", ["5", "0GB", "many", "5TB"])
def test_a_size_that_is_none_is_told(size: str, peftkit: Command) -> None:
    done = peftkit("merge", "own", "merged", "--shard-size", size)

    assert done.returncode == 2
    assert "is no size; write it as 500MB or 5GB" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, peftkit: Command) -> None:
    done = peftkit("adapters", command, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: peftkit adapters {command}")
    assert "Example" in done.stdout
    assert "\\b" not in done.stdout


def test_a_list_carries_the_same_facts_for_people_and_programs(runs: dict[str, Path], peftkit: Command) -> None:
    folder = str(runs["lora"].parent)
    text = peftkit("adapters", "list", folder).stdout
    values = json.loads(peftkit("adapters", "list", folder, "--json").stdout)

    assert [value["method"] for value in values] == ["lora", "qlora"]
    assert "attn.c_attn" in text
    assert all(f"{value['perplexity']:.4g}" in text for value in values)


def test_listing_needs_no_torch(runs: dict[str, Path]) -> None:
    code = (
        "import sys\nfrom peftkit.cli.app import app\n"
        f"app.main(['adapters', 'list', {str(runs['lora'])!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_inspect_carries_the_same_facts_for_people_and_programs(
    runs: dict[str, Path], peftkit: Command, tmp_path: Path
) -> None:
    text = peftkit("adapters", "inspect", str(runs["lora"]), "--plot", "updates.svg")
    values = json.loads(peftkit("adapters", "inspect", str(runs["lora"]), "--json").stdout)

    assert text.returncode == 0, text.stderr
    assert "drawn: updates.svg" in text.stderr
    assert (tmp_path / "updates.svg").is_file()
    for module in values["modules"]:
        row = next(line for line in text.stdout.splitlines() if line.startswith(str(module["layer"])))
        assert f"{module['relative_norm']:.2%}" in row
        assert f"{module['effective_rank']:.1f}" in row
        assert module["target"] in row


def test_inspect_names_what_learnt_nothing_and_what_is_not_finite(foreign: Path, peftkit: Command) -> None:
    tensors(lambda values: values.update({B: torch.zeros_like(values[B])}))(foreign)
    untouched = peftkit("adapters", "inspect", "own", *BASE)
    tensors(lambda values: values.update({B: values[B] / 0}))(foreign)
    broken = peftkit("adapters", "inspect", "own", *BASE, "--json")

    assert "transformer.h.0.attn.c_attn is untouched" in untouched.stderr
    assert json.loads(broken.stdout)["not_finite"] == [B]


def test_verify_says_yes_no_and_unknown_and_leaves_with_the_right_status(own: Path, peftkit: Command) -> None:
    sound = peftkit("adapters", "verify", "own")
    settings("adapter_config.json", lora_alpha=99)(own)
    edited = peftkit("adapters", "verify", "own")
    values = json.loads(peftkit("adapters", "verify", "own", "--json").stdout)

    assert (sound.returncode, edited.returncode) == (0, 2)
    assert " NO " not in sound.stdout
    assert "is not sound: files: adapter_config.json has changed" in edited.stderr
    assert values["sound"] is False
    for check in values["checks"]:
        word = {True: "yes", False: "NO", None: "unknown"}[check["passed"]]
        assert any(line.split()[:2] == [check["name"], word] for line in edited.stdout.splitlines())


def test_diff_carries_the_same_facts_for_people_and_programs(runs: dict[str, Path], peftkit: Command) -> None:
    pair = (str(runs["lora"]), str(runs["qlora"]))
    text = peftkit("adapters", "diff", *pair).stdout
    values = json.loads(peftkit("adapters", "diff", *pair, "--json").stdout)

    assert values["fields"] == [{"field": "method", "first": "lora", "second": "qlora"}]
    assert any(line.split() == ["method", "lora", "qlora"] for line in text.splitlines())
    for module in values["modules"]:
        assert any(f"{module['cosine']:.3f}" in line for line in text.splitlines() if module["target"] in line)
    assert f"logits {values['logits']['relative_error']:.1e} off" in text


def test_combined_and_smaller_adapters_are_sound_ones(runs: dict[str, Path], peftkit: Command) -> None:
    lora = str(runs["lora"])
    both = peftkit("adapters", "combine", "both", "--adapter", lora, "0.5", "--adapter", lora, "-0.25")
    small = peftkit("adapters", "shrink", lora, "small", "--rank", "1")

    assert (both.stdout, small.stdout) == ("both\n", "small\n")
    assert "rank 8, " in both.stderr
    assert "the exact sum" in both.stderr
    assert "the updates are" in small.stderr
    assert "perplexity" in small.stderr
    for made in ("both", "small"):
        assert peftkit("adapters", "verify", made).returncode == 0
    assert peftkit("merge", "both", "merged").returncode == 0


def test_adapters_of_other_bases_are_not_added(runs: dict[str, Path], peftkit: Command, tmp_path: Path) -> None:
    done = peftkit("merge", str(runs["lora"]), "merged", "--also", str(runs["qlora"]), "0.5")

    assert_refused(done, "quantised in another way")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("own")
def test_a_base_that_has_moved_is_named_for_every_command(peftkit: Command, tmp_path: Path) -> None:
    moved = shutil.copytree(Path(package.__file__).parent / "assets" / "tiny-gpt2", tmp_path / "moved")

    for command in (["generate", "own", "--prompt", "a"], ["evaluate", "own"], ["adapters", "inspect", "own"]):
        assert peftkit(*command, "--base", str(moved)).returncode == 0
        done = peftkit(*command, "--base", str(moved / "nowhere"))
        assert "--base" in done.stderr
        assert "Traceback" not in done.stderr
