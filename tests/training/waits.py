"""What would make the host wait if tensors were on a GPU, counted on a CPU, and a device that computes later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LateResults", "Waits"]

_READS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}
"""What copies a tensor to the host and calls no operator on a CPU."""

_OPERATORS = {
    "aten::_local_scalar_dense",  # item, int, float, bool
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique2",
    "aten::bincount",
}
"""Operators whose result, or its shape, the host has to know."""

_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""They find the places of a mask first."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, within a block, what would wait for a GPU; forward, backward and optimizer alike."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._reads = _Reads(self._read)

    def __enter__(self) -> Waits:
        self._reads.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._reads.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name in _INDEXING and any(each is not None and each.dtype == torch.bool for each in args[1])
        if masked or name in _OPERATORS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def _read(self, name: str) -> None:
        self.names.append(name)


class _Reads(TorchFunctionMode):
    """Calls a function before each read of a tensor by the host."""

    def __init__(self, before: Callable[[str], None], reads: set[Any] = _READS) -> None:
        super().__init__()
        self._before = before
        self._of = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._of:
            self._before(func.__name__)
        return func(*args, **(kwargs or {}))


class LateResults(_Reads):
    """Lets every read of a tensor wait, within a block, until a device would have computed what it was asked for."""

    def __init__(self) -> None:
        names = ("item", "__bool__", "__int__", "__float__")
        super().__init__(self._wait, _READS | {getattr(torch.Tensor, name) for name in names})
        self._done = 0.0

    def ask_for(self, seconds: float) -> None:
        """Give the device work of so many seconds, after that which it has."""
        self._done = max(self._done, time.perf_counter()) + seconds

    def _wait(self, _name: str) -> None:
        time.sleep(max(0.0, self._done - time.perf_counter()))
