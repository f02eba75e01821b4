"""In a conversation exactly what the assistant says is taught, and the end of each of its turns."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.data.formats import chat
from peftkit.data.formats.chat import PLAIN_TEMPLATE, Chat, Message
from peftkit.data.formats.format import RowError
from peftkit.errors import FieldError

TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}{{ m['role'] + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


def encoded(tokenizer: Any, template: str, messages: list[Message] = TURNS) -> Any:
    (result,) = Chat().encode([messages], tokenizer, template)
    return result


def taught_text(tokenizer: Any, result: Any) -> str:
    ids, taught = result
    return str(tokenizer.decode([token for token, label in zip(ids, taught, strict=True) if label]))


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML, MARKED])
def test_the_assistants_turns_and_their_ends_are_taught_and_nothing_else(template: str, tokenizer: Any) -> None:
    assert taught_text(tokenizer, encoded(tokenizer, template)) == "Hello<|end|>So long<|end|>"


def test_the_plain_template_reads_like_a_dialogue(tokenizer: Any) -> None:
    ids, _ = encoded(tokenizer, PLAIN_TEMPLATE)

    assert tokenizer.decode(ids) == (
        "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\nHello<|end|>\n\n"
        "### User:\nBye\n\n### Assistant:\nSo long<|end|>"
    )


def test_a_prompt_is_how_a_conversation_begins(tokenizer: Any) -> None:
    ids, _ = encoded(tokenizer, PLAIN_TEMPLATE, TURNS[1:])

    assert tokenizer.decode(ids).startswith(Chat().prompt("Hi", PLAIN_TEMPLATE, tokenizer) + "Hello")


def test_a_first_token_is_put_where_the_template_has_none(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without = encoded(tokenizer, PLAIN_TEMPLATE)
    monkeypatch.setattr(chat, "first_tokens", lambda _: [7])
    with_first = encoded(tokenizer, PLAIN_TEMPLATE)
    monkeypatch.setattr(chat, "first_tokens", lambda _: without[0][:1])

    assert with_first == ([7, *without[0]], [False, *without[1]])
    assert encoded(tokenizer, PLAIN_TEMPLATE) == without


def test_a_template_that_rewrites_earlier_turns_makes_the_row_bad(tokenizer: Any) -> None:
    result = encoded(tokenizer, FORGETFUL)

    assert isinstance(result, RowError)
    assert "writes earlier turns anew" in str(result)


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tokenizer: Any) -> None:
    result = encoded(tokenizer, "{{ raise_exception('no system turn, please') }}")

    assert isinstance(result, RowError)
    assert "refuses it: no system turn, please" in str(result)


def test_the_recipes_template_goes_before_the_tokenizers_and_that_before_the_plain_one(tokenizer: Any) -> None:
    assert Chat().choose_template(None, tokenizer) == PLAIN_TEMPLATE
    tokenizer.chat_template = CHATML
    try:
        assert Chat().choose_template(None, tokenizer) == CHATML
        assert Chat().choose_template(MARKED, tokenizer) == MARKED
    finally:
        tokenizer.chat_template = None


def test_a_template_that_is_no_jinja_is_an_error_about_the_field(tokenizer: Any) -> None:
    with pytest.raises(FieldError, match=r"data\.template: is no Jinja template"):
        Chat().choose_template("{% for m in messages %}", tokenizer)
