"""Files made by somebody with bad intentions: no code of theirs runs, and nothing is written outside."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import peftkit

ASSET = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._place),)


def pickled(owned: Path, *places: Path) -> None:
    for place in places:
        place.write_bytes(pickle.dumps(Payload(owned)))


@pytest.fixture
def owned(work: Any) -> Path:
    """The place that code of somebody else's would make, if it ran."""
    place: Path = work.path / "owned"
    return place


@pytest.fixture
def base(work: Any) -> Path:
    """A base that has come from somewhere."""
    place: Path = work.path / "base"
    shutil.copytree(ASSET, place)
    return place


def test_the_payload_works_where_it_is_opened(owned: Path) -> None:
    pickle.loads(pickle.dumps(Payload(owned)))

    assert owned.is_dir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", pytest.param("model.pt", marks=pytest.mark.faults)])
def test_a_pickled_base_is_refused(name: str, work: Any, base: Path, owned: Path) -> None:
    (base / "model.safetensors").unlink()
    pickled(owned, base / name)

    status, log = work.train("run", "--set", f"base.model={base}")

    assert status == 2, log
    assert "safetensors" in log
    assert not owned.exists()
    assert not (work.path / "run").exists()


@pytest.mark.faults
def test_a_pickled_adapter_is_refused(work: Any, owned: Path) -> None:
    adapter = work.path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    pickled(owned, adapter / "adapter_model.bin")

    results = [
        work.run("merge", "adapter", "merged", "--base", "builtin:tiny-gpt2"),
        work.run("generate", "adapter", "--prompt", "x", "--base", "builtin:tiny-gpt2"),
        work.run("adapters", "inspect", "adapter", "--base", "builtin:tiny-gpt2"),
    ]

    assert [status for status, _ in results] == [2, 2, 2], results
    assert not owned.exists()
    assert not (work.path / "merged").exists()


def test_pickles_in_a_checkpoint_are_not_opened(work: Any, owned: Path, undisturbed: Any) -> None:
    work.stop("run")
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "scaler.pt")
    for checkpoint in work.checkpoints("run"):
        pickled(owned, *(checkpoint / name for name in names), checkpoint / "adapter_model.bin")

    status, log = work.train("run", "--resume")

    assert status == 0, log
    assert not owned.exists()
    assert work.result("run") == undisturbed("lora")


def test_a_run_writes_no_pickle(work: Any) -> None:
    assert work.train("run")[0] == 0

    kinds = {path.suffix for path in (work.path / "run").rglob("*") if path.is_file()}

    assert kinds == {".safetensors", ".json", ".jsonl", ".yaml", ".md", ""}  # the last is the lock
    assert not [path for path in (work.path / "run").rglob("*.json") if path.read_bytes()[:1] == b"\x80"]


@pytest.mark.faults
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_base_is_not_run(file: str, work: Any, base: Path, owned: Path) -> None:
    (base / "theirs.py").write_text(f"import os\nos.mkdir({str(owned)!r})\n", encoding="utf-8")
    settings = json.loads((base / file).read_text(encoding="utf-8"))
    names = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M", "AutoTokenizer": ["theirs.T", None]}
    unknown = {"model_type": "theirs"} if file == "config.json" else {"tokenizer_class": "Theirs"}
    (base / file).write_text(json.dumps(settings | {"auto_map": names} | unknown), encoding="utf-8")

    status, log = work.train("run", "--set", f"base.model={base}")

    assert status in (0, 2), log  # of a tokenizer, the file that all of them have may do
    assert "Do you wish to run" not in log
    assert not owned.exists()


@pytest.mark.faults
def test_a_data_set_with_a_script_is_not_run(work: Any, owned: Path) -> None:
    folder = work.path / "theirs"
    folder.mkdir()
    (folder / "theirs.py").write_text(f"import os\nos.mkdir({str(owned)!r})\n", encoding="utf-8")

    status, log = work.train("run", "--set", f"data.train={{dataset: {folder}}}")

    assert status == 2, log
    assert not owned.exists()


@pytest.mark.faults
def test_a_chat_template_reaches_nothing(work: Any, owned: Path) -> None:
    template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(owned) + "') }}"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (work.path / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 8, encoding="utf-8")
    changes = ("data.format=chat", f"data.template={json.dumps(template)}", "data.validation=0.5")

    status, log = work.train("run", *(word for change in changes for word in ("--set", change)))

    assert status == 2, log
    assert not owned.exists()


@pytest.mark.faults
@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.system", "!include {}"])
def test_a_tag_in_a_recipe_is_refused(value: str, work: Any, owned: Path) -> None:
    recipe = work.path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(f"{text}description: {value.format(owned)}\n", encoding="utf-8")

    status, log = work.train("run")

    assert status == 2, log
    assert "has the tag" in log
    assert not owned.exists()


@pytest.mark.faults
@pytest.mark.parametrize("change", ["name=../outside", "output=../outside", "output=runs/../../outside"])
def test_a_name_that_leads_out_of_the_folder_is_refused(change: str, work: Any) -> None:
    status, log = work.run("train", "recipe.yaml", "--set", change)

    assert status == 2, log
    assert f"error: --set {change.partition('=')[0]}: " in log
    assert not (work.path.parent / "outside").exists()


@pytest.mark.faults
def test_an_index_that_leads_out_of_the_base_is_refused(work: Any, base: Path) -> None:
    shutil.copy(base / "model.safetensors", work.path / "outside.safetensors")
    shutil.move(base / "model.safetensors", base / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "../outside.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    status, log = work.train("run", "--set", f"base.model={base}")

    assert status == 2, log
    assert "../outside.safetensors" in log


@pytest.mark.faults
def test_a_manifest_that_leads_out_of_its_folder_is_not_followed(work: Any, undisturbed: Any) -> None:
    work.stop("run")
    newest = work.checkpoints("run")[0]
    manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["../../../secret.txt"] = {"bytes": 1, "sha256": "0" * 64}
    (newest / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    status, log = work.train("run", "--resume")

    assert status == 0, log
    assert f"{newest.name} is passed over: ../../../secret.txt is no file below it" in log
    assert work.result("run") == undisturbed("lora")


@pytest.mark.faults
def test_the_base_that_a_foreign_adapter_names_is_not_followed(work: Any, base: Path) -> None:
    assert work.train("run")[0] == 0
    adapter = work.path / "foreign"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(work.path / "run" / "adapter" / name, adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(base)}), encoding="utf-8"
    )

    status, log = work.run("generate", "foreign", "--prompt", "x")
    named, named_log = work.run("generate", "foreign", "--prompt", "x", "--base", str(base))

    assert (status, named) == (2, 0), log + named_log
    assert "--base" in log
