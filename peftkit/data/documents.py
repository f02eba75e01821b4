"""Documents as token ids, many of them in a few arrays, in memory or in files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Documents", "Ints", "open_documents", "write_documents"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Documents one after the other; five bytes a token."""

    input_ids: npt.NDArray[np.int32]
    """[tokens]."""

    taught: npt.NDArray[np.bool_]
    """[tokens]: whether the token is a label. The first of a document has nothing that it could be predicted from."""

    lengths: npt.NDArray[np.int32]
    """[documents]: tokens of each."""

    label_tokens: npt.NDArray[np.int32]
    """[documents]: taught tokens of each."""

    ends: npt.NDArray[np.bool_]
    """[documents]: whether the last taught token is an end token, so that the model learns to stop."""

    digests: npt.NDArray[np.uint64]
    """[documents]: the same for documents of the same tokens and labels."""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def offsets(self) -> Ints:
        """[documents]: where each begins among all tokens."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return ends - self.lengths

    def tokens_of(self, number: int) -> npt.NDArray[np.int32]:
        """The tokens of one document."""
        begin = int(self.offsets[number])
        return self.input_ids[begin : begin + int(self.lengths[number])]

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """All documents of some others, in order."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES}
        return cls(**columns)


_DTYPES: Final[dict[str, Any]] = dict(
    zip(
        (field.name for field in fields(Documents)),
        (np.int32, np.bool_, np.int32, np.int32, np.bool_, np.uint64),
        strict=True,
    )
)


def write_documents(folder: Path, batches: Iterable[Documents]) -> None:
    """Write documents into a folder, a file for each array; only one batch is in memory at a time."""
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _DTYPES}
        for batch in batches:
            for name, file in files.items():
                file.write(getattr(batch, name).astype(_DTYPES[name], copy=False).tobytes())


def open_documents(folder: Path) -> Documents:
    """Documents that were written into a folder; tokens are read from the disk when they are asked for."""
    columns = {}
    for name, dtype in _DTYPES.items():
        path = folder / f"{name}.bin"
        columns[name] = np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
    return Documents(**columns)
