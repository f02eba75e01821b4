"""What no command has foreseen ends in a line and an exit status."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from peftkit.cli.app import main

CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."


@pytest.mark.parametrize(("error", "amount"), [(MemoryError(), ""), (RuntimeError(CPU), ": 8.6 GB more were needed")])
def test_memory_that_is_short_anywhere_is_said_to_be(
    error: Exception, amount: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)

    with pytest.raises(SystemExit) as left:
        main(["generate", "builtin:tiny-gpt2", "--prompt", "one"])

    assert left.value.code == 1
    assert f"error: memory was short{amount}." in capsys.readouterr().err
