"""What a run ships is opened as a user would and computes what was trained, in the memory that training had."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from peftkit.adapters.proof import compare_in_fresh_process
from peftkit.compatibility import peft_loses_biases
from peftkit.errors import PeftkitError, RunError
from peftkit.models.base import LocatedBase
from peftkit.recipe.loader import load_recipe
from peftkit.storage import read_json, write_json
from peftkit.training import output
from peftkit.training.run import RunOptions, run
from tests.conftest import EMBEDDED

BIASES = pytest.mark.skipif(peft_loses_biases(), reason="this version of PEFT does not save such biases")
QUICK = ["generation.samples=0", "training.max_steps=3"]


def bytes_alive() -> int:
    """Of all weights in this process."""
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Parameter) and not each.is_meta]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def test_a_model_that_does_not_generate_is_trained_and_shipped_without_samples(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, refused = tmp_path / "base", {"stop_strings": ["."]}  # which Transformers takes with a tokenizer alone
    copytree(EMBEDDED, base)
    write_json(base / "generation_config.json", refused)
    overrides = [f"base.model={base}", "training.max_steps=3"]

    folder, manifest = run(load_recipe(recipe_path, overrides=overrides, output=tmp_path / "run"))

    assert (manifest.status, folder.adapter.is_dir(), folder.samples.exists()) == ("finished", True, False)
    assert [warning for warning in manifest.warnings if "no samples before training" in warning]
    assert "no samples before training" in capsys.readouterr().err


def test_samples_come_after_what_they_must_not_cost(recipe_path: Path, tmp_path: Path) -> None:
    file = load_recipe(recipe_path, overrides=["training.save_strategy=epoch"], output=tmp_path / "run")
    folder, _ = run(file)
    manifest = folder.read()
    folder.write(replace(manifest, status="failed"))
    (folder.path / "samples.json").write_text("[{}]", encoding="utf-8")  # as another version may have left it

    _, resumed = run(file, RunOptions(resume=True))

    assert resumed.status == "finished"
    assert "no samples after training" in resumed.warnings[-1]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_live_model_is_gone_when_what_was_saved_is_opened(
    method: str, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, alive = LocatedBase.load, []

    def counted(*arguments: Any, **more: Any) -> Any:
        alive.append(bytes_alive())
        return load(*arguments, **more)

    monkeypatch.setattr(LocatedBase, "load", counted)
    gc.collect()
    before = bytes_alive()

    run(load_recipe(recipe_path, method=method, overrides=QUICK, output=tmp_path / "run"))

    assert alive == [before, before]


def test_the_live_model_is_gone_when_a_fresh_process_opens_the_whole_one(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = []

    def counted(*arguments: Any) -> Any:
        alive.append(bytes_alive())
        return compare_in_fresh_process(*arguments)

    monkeypatch.setattr(output, "compare_in_fresh_process", counted)
    gc.collect()
    before = bytes_alive()

    run(load_recipe(recipe_path, method="full", overrides=QUICK, output=tmp_path / "run"))

    assert alive == [before]


def damaged(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let something else be saved than what was trained."""
    save = PeftModel.save_pretrained

    def saved(model: Any, folder: Path, *arguments: Any, **more: Any) -> None:
        save(model, folder, *arguments, **more)
        change(Path(folder))

    monkeypatch.setattr(PeftModel, "save_pretrained", saved)


def scale_a_tensor(folder: Path) -> None:
    place = folder / "adapter_model.safetensors"
    tensors = load_file(place)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name] * 1.01}, place)


def change_alpha(folder: Path) -> None:
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**config, "lora_alpha": config["lora_alpha"] * 1.01})


def cut_the_file(folder: Path) -> None:
    place = folder / "adapter_model.safetensors"
    place.write_bytes(place.read_bytes()[:-8])


@pytest.mark.parametrize("change", [scale_a_tensor, change_alpha])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_one_percent_off_is_found_in_half_precision_too(
    method: str, precision: str, change: Any, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.models.device._cpu_has_bf16", lambda: True)
    damaged(monkeypatch, change)

    with pytest.raises(RunError, match="computes other logits than what was trained"):
        run(
            load_recipe(
                recipe_path, method=method, overrides=[*QUICK, f"precision={precision}"], output=tmp_path / "run"
            )
        )


def test_a_file_that_was_cut_is_found(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(monkeypatch, cut_the_file)

    with pytest.raises(PeftkitError, match="adapter"):
        run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"))


@pytest.mark.parametrize(
    "changes",
    [
        ["precision=bf16"],
        ["precision=bf16", "method=qlora"],
        ["precision=bf16", "data.packing=true", "training.eval_strategy=no"],
        ["precision=bf16", "lora.use_dora=true"],
        pytest.param(["precision=bf16", "lora.bias=lora_only"], marks=BIASES),
        ["precision=bf16", "lora.target_modules=all-linear", "base.dtype=float32"],
        ["precision=bf16", "quantization.load_in_4bit=false", "quantization.load_in_8bit=true", "method=qlora"],
        ["precision=bf16", "method=full"],
    ],
    ids=lambda changes: " ".join(change.partition(".")[2] or change for change in changes),
)
def test_in_half_precision_what_was_saved_is_exactly_what_was_trained(
    changes: list[str], recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    for name in ("compare", "compare_in_fresh_process"):
        own = getattr(output, name)

        def kept(*arguments: Any, own: Any = own) -> Any:
            agreement = own(*arguments)
            found.append(agreement.relative_error)
            return agreement

        monkeypatch.setattr(output, name, kept)
    monkeypatch.setattr("peftkit.models.device._cpu_has_bf16", lambda: True)

    run(load_recipe(recipe_path, overrides=[*QUICK, *changes], output=tmp_path / "run"))

    assert len(found) == 1
    assert found[0] < 1e-6, found
