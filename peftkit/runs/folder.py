"""The layout of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftkit.errors import TargetError
from peftkit.runs.manifest import RunManifest
from peftkit.storage import MANIFEST_NAME, is_free, read_json, write_json, write_text

__all__ = ["ADAPTER_FOLDER", "RunFolder"]

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class RunFolder:
    """One run on the disk."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, which trains the same run again."""
        return self.path / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """What the run says about itself."""
        return self.path / MANIFEST_NAME

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The Trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """What a run of `lora` or `qlora` ships."""
        return self.path / ADAPTER_FOLDER

    @property
    def model(self) -> Path:
        """What a run of `full` ships."""
        return self.path / "model"

    def check_free(self) -> None:
        """See that a new run may use this place.

        Raises:
            TargetError: something is there already.
        """
        if not is_free(self.path):
            raise TargetError(
                "exists already and is not empty.",
                where=str(self.path),
                remedy="Name another place with --output; peftkit never writes over a run.",
            )

    def create(self, recipe_yaml: str, manifest: RunManifest) -> None:
        """Make the folder with its recipe and its first manifest."""
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, recipe_yaml)
        self.write(manifest)

    def write(self, manifest: RunManifest) -> None:
        """Replace the manifest."""
        write_json(self.manifest, manifest.to_json())

    def read(self) -> RunManifest:
        """The manifest on the disk.

        Raises:
            TargetError: there is none, or it is damaged.
        """
        try:
            return RunManifest.from_json(read_json(self.manifest))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TargetError(
                "is missing or damaged.", where=str(self.manifest), remedy="Name the folder of a run."
            ) from error
