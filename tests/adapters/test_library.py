"""A folder's adapters are listed by what is in their files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peftkit.adapters.inspect import list_adapters
from peftkit.errors import TargetError


def test_adapters_are_found_below_a_folder_with_what_is_known_of_them(runs: dict[str, Path], tmp_path: Path) -> None:
    for method in ("full", "lora"):
        shutil.copytree(runs[method], tmp_path / method)
    shutil.copytree(runs["lora"] / "adapter", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "peftkit.json").unlink()
    shutil.copytree(runs["lora"] / "adapter", tmp_path / ".hidden.part")
    shutil.copytree(runs["lora"] / "adapter", tmp_path / "torn")
    (tmp_path / "torn" / "adapter_model.safetensors").write_bytes(b"")

    elsewhere, lora, torn = list_adapters(tmp_path)

    assert lora.adapter == str(tmp_path / "lora")
    assert (lora.base, lora.method, lora.ranks, lora.targets) == ("builtin:tiny-gpt2", "lora", [4], ["attn.c_attn"])
    assert lora.bytes > 10_000
    assert lora.perplexity is not None
    assert lora.base_perplexity is not None
    assert (elsewhere.base, elsewhere.method, elsewhere.perplexity) == ("builtin:tiny-gpt2", None, None)
    assert torn.fault == "is damaged or incomplete."


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert list_adapters(tmp_path) == []
    with pytest.raises(TargetError, match="no such folder"):
        list_adapters(tmp_path / "nowhere")
