"""`peftkit.json`: how an adapter or a model was made, and what it must still be when it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import TargetError
from peftkit.recipe.schema import Recipe
from peftkit.storage import read_json, sha256_of_json

__all__ = ["RECEIPT_NAME", "RECORD_NAME", "Record"]

RECORD_NAME = "peftkit.json"
RECEIPT_NAME = "merge.json"
"""What a merged model was made of and how it was proven, beside its record."""


@dataclass(frozen=True)
class Record:
    """The fingerprint of what a run ships. Everything of it but the metrics is checked when it is opened again."""

    recipe: Recipe
    base: dict[str, Any]
    """Name, revision, and SHA-256 of the configuration and of each weight file, with one over all of them."""

    base_dtype: str
    """Torch's name of the number type that the base was held in while training."""

    data: dict[str, Any]
    """Where the data came from, the hashes of its files, and its counts."""

    metrics: dict[str, Any]
    versions: dict[str, str | None]
    adapter_config: dict[str, Any] | None = None
    """PEFT's configuration as it was saved; None for a whole model."""

    tensors: dict[str, str] | None = None
    """SHA-256 of each of an adapter's tensors; None for a whole model, whose files `manifest.json` holds to account."""

    made_from: list[dict[str, Any]] | None = None
    """The adapters that this one is the weighted sum or the compression of, if it was not trained itself."""

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder, or None where there is none: then peftkit did not make what is there.

        Raises:
            TargetError: it is damaged.
        """
        place = folder / RECORD_NAME
        if not place.exists():
            return None
        try:
            values = read_json(place)
            fields = {name: values[name] for name in cls.__dataclass_fields__ if name != "recipe"}
            return cls(recipe=Recipe.model_validate(values["recipe"]), **fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError("is damaged.", where=str(place), remedy="Copy or export it again.") from error

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        recipe = self.recipe.model_dump(mode="json", exclude={"output"})
        return {
            "recipe": recipe,
            "recipe_sha256": sha256_of_json(recipe),
            "base": self.base,
            "base_dtype": self.base_dtype,
            "quantization": recipe["quantization"] if self.recipe.base_quantization else None,
            "data": self.data,
            "metrics": self.metrics,
            "versions": self.versions,
            "adapter_config": self.adapter_config,
            "tensors": self.tensors,
            "made_from": self.made_from,
        }
