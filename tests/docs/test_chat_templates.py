"""In the chat templates of well-known models, what the assistant says is trained on and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.formats.format import RowError
from peftkit.data.formats.templates import ChatTemplate

pytest.importorskip("trl", reason="its templates are read from TRL, which the extra bench installs")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "chat_templates.py"
SPEC = importlib.util.spec_from_file_location("chat_templates", PAGE)
assert SPEC is not None
assert SPEC.loader is not None
made: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made)
TEMPLATES = made.templates()


@pytest.mark.parametrize("conversation", made.CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_exactly_what_the_assistant_says_is_in_the_loss_or_the_row_is_refused(template: str, conversation: str) -> None:
    source, row = TEMPLATES[template], made.CONVERSATIONS[conversation]
    tokenizer = made.tokenizer_for(source)

    found = made.encoded(source, tokenizer, row)

    said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant" and turn["content"]]
    heard = [turn["content"] for turn in row["messages"] if turn["role"] in ("user", "system")]
    if isinstance(found, RowError):
        assert "chat template" in str(found)
    else:
        learnt = tokenizer.decode([token for token, counts in zip(found.ids, found.in_loss, strict=True) if counts])
        assert all(words in learnt for words in [*said, *(["get_price"] if "tools" in row else [])])
        assert not any(words in learnt for words in heard)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_are_those_of_the_tokenizers_own_template(template: str) -> None:
    source, row = TEMPLATES[template], made.CONVERSATIONS["two turns"]
    tokenizer = made.tokenizer_for(source)
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in row["messages"]]

    found = made.encoded(source, tokenizer, row)

    wants_parts = ChatTemplate(source, tokenizer).wants_parts  # as those of models that see images
    messages = parts if wants_parts else row["messages"]
    assert found.ids == tokenizer.apply_chat_template(messages, chat_template=source, return_dict=False)


def test_the_page_says_what_becomes_of_them() -> None:
    assert (PAGE.parent / "chat-templates.md").read_text(encoding="utf-8") == made.page()
