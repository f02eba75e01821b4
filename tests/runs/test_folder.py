"""A run folder holds one run, and its manifest comes back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.errors import TargetError
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest, RunMetrics
from peftkit.runs.versions import PACKAGES, installed_versions


def manifest() -> RunManifest:
    return RunManifest(
        "small", "lora", "abc", {"model": "gpt2"}, {"train": {}}, installed_versions(), {"device": "cpu"}
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "small")
    written = manifest()
    written.metrics = RunMetrics(perplexity=1.5, train_tokens=10)

    with folder.created("name: small\n", written):
        assert folder.read() == written

    assert folder.read() == written
    assert folder.recipe.read_text(encoding="utf-8") == "name: small\n"


def test_what_is_not_known_is_null() -> None:
    assert manifest().to_json()["metrics"]["perplexity"] is None


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").touch()

    with (
        pytest.raises(TargetError, match="peftkit never writes over a run"),
        RunFolder(tmp_path).created("name: small\n", manifest()),
    ):
        pytest.fail("the block must not run")

    assert [path.name for path in tmp_path.iterdir()] == ["something"]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": "x"}'])
def test_a_damaged_manifest_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")

    with pytest.raises(TargetError, match=r"manifest\.json: is missing or damaged"):
        RunFolder(tmp_path).read()


def test_versions_name_every_library() -> None:
    versions = installed_versions()

    assert set(PACKAGES) <= set(versions)
    assert versions["torch"]
