"""What a folder holds is told by its files, and opened only on what it belongs on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.adapters.files import Adapter, GivenBase
from peftkit.adapters.target import check_fit, find_adapter, find_held_base, find_target, open_adapter, open_target
from peftkit.errors import TargetError
from peftkit.recipe.hyperparameters import Quantization


@pytest.mark.parametrize(
    ("place", "kind"), [("full", "model"), ("full/model", "model"), ("lora", "adapter"), ("qlora/adapter", "adapter")]
)
def test_runs_adapters_and_models_are_told_apart(place: str, kind: str, runs: dict[str, Path]) -> None:
    target = find_target(str(runs["full"].parent / place))

    assert target.kind == kind
    assert target.recipe is not None
    assert target.recipe.name == "small"


def test_any_other_name_is_a_models() -> None:
    assert find_target("gpt2").kind == "model"
    assert find_target("builtin:tiny-gpt2").recipe is None


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
def test_a_path_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(TargetError, match="there is no such folder"):
        find_target(name)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="holds neither a run, an adapter nor a model"):
        find_target(str(tmp_path))


def test_a_model_is_no_adapter(runs: dict[str, Path]) -> None:
    with pytest.raises(TargetError, match="is not an adapter"):
        find_adapter(runs["full"])


def test_an_adapter_is_not_put_on_another_base(runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    record = json.loads((adapter / "peftkit.json").read_text(encoding="utf-8"))
    record["base"]["sha256"] = "0" * 64
    (adapter / "peftkit.json").write_text(json.dumps(record), encoding="utf-8")

    with pytest.raises(TargetError, match="was trained on another builtin:tiny-gpt2"):
        open_target(find_target(str(adapter)), "cpu")


@pytest.mark.parametrize("content", ["", "{", '{"recipe": {}}'])
def test_a_damaged_record_is_an_error(content: str, runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    (adapter / "peftkit.json").write_text(content, encoding="utf-8")

    with pytest.raises(TargetError, match="damaged"):
        find_target(str(adapter))


EMBEDDED = "builtin:tiny-gpt2"
GIVEN = GivenBase(EMBEDDED)
B = "base_model.model.transformer.h.{}.attn.c_attn.lora_B.weight"


@pytest.fixture
def own(runs: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter that peftkit made."""
    return Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "own"))


@pytest.fixture
def foreign(own: Path) -> Path:
    """One without a record, as PEFT makes it."""
    (own / "peftkit.json").unlink()
    return own


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def reconfigure(folder: Path, **fields: Any) -> None:
    place = folder / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def fit(folder: Path) -> None:
    adapter = Adapter.read(folder)
    check_fit(adapter, find_held_base(adapter, GIVEN))


def test_a_recorded_adapter_knows_its_base(own: Path) -> None:
    held = find_held_base(Adapter.read(own))

    assert (held.base.reference, held.quantization, held.dtype) == (EMBEDDED, None, "float32")


def test_a_base_that_has_moved_is_named_and_still_checked(own: Path, tmp_path: Path) -> None:
    folder = find_held_base(Adapter.read(own)).base.folder
    moved, changed = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("moved", "changed"))
    tensors = load_file(changed / "model.safetensors")
    tensors["transformer.ln_f.bias"] += 1e-3
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})

    assert find_held_base(Adapter.read(own), GivenBase(str(moved))).base.folder == moved
    with pytest.raises(TargetError, match="was trained on another builtin:tiny-gpt2"):
        find_held_base(Adapter.read(own), GivenBase(str(changed)))


def test_a_base_that_is_gone_is_told_with_the_way_to_name_it(own: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"its base is not there: there is no folder .*nowhere.*--base"):
        find_held_base(Adapter.read(own), GivenBase(str(tmp_path / "nowhere")))


def test_the_base_that_a_foreign_adapter_names_is_not_opened_unasked(foreign: Path) -> None:
    reconfigure(foreign, base_model_name_or_path="/elsewhere")

    with pytest.raises(TargetError, match=r"names '/elsewhere' as its base, which is not opened unasked.*--base"):
        find_held_base(Adapter.read(foreign))


def test_a_foreign_adapter_works_with_what_cannot_be_checked_said(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = open_adapter(foreign, "cpu", GIVEN)

    assert "cannot be checked" in capsys.readouterr().err
    assert model.active_adapters == ["default"]


def test_a_foreign_adapter_can_be_put_on_a_quantised_base_and_an_own_one_cannot(
    runs: dict[str, Path], foreign: Path
) -> None:
    given = GivenBase(EMBEDDED, Quantization())

    assert find_held_base(Adapter.read(foreign), given).quantization == Quantization()
    with pytest.raises(TargetError, match="records how its base was quantised"):
        find_held_base(Adapter.read(runs["lora"] / "adapter"), given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: [tensors.pop(B.format(0).replace("_B", part)) for part in ("_A", "_B")], "is missing"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "more is one too many"),
        (lambda tensors: tensors.update({B.format(0): torch.ones(380, 4)}), "has another shape"),
        (
            lambda tensors: tensors.update({name.format(0).replace("h.0", "h.4"): tensors[name.format(0)].clone()
                                            for name in (B, B.replace("_B", "_A"))}),
            "holds tensors for layer 4, but the base's last is 3",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 128),
                                            "base_model.model.lm_head.lora_B.weight": torch.ones(1024, 4)}),
            "adapts lm_head, which is tied",
        ),
    ],
    ids=["missing", "extra", "shape", "layers", "tied"],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], words: str, foreign: Path
) -> None:
    rewrite(foreign, change)

    with pytest.raises(TargetError, match=words):
        fit(foreign)


def test_settings_that_match_nothing_are_refused(foreign: Path) -> None:
    reconfigure(foreign, target_modules=["nothing"])

    with pytest.raises(TargetError, match="cannot be put on its base"):
        fit(foreign)
