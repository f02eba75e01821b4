"""Conversations of several turns, of which those of the assistant are taught."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError, TemplateSyntaxError

from peftkit.data.files import RowError
from peftkit.errors import FieldError
from peftkit.recipe.names import printable
from peftkit.recipe.schema import Data

__all__ = ["PLAIN_TEMPLATE", "Message", "chat_template", "conversation", "encode_conversations", "prompt_of_chat"]

Message: TypeAlias = dict[str, str]
Encoded: TypeAlias = tuple[list[int], list[bool]]

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{{ '' if loop.last and message['role'] == 'assistant' else '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For a tokenizer without its own, as GPT-2's: a heading for each turn, and an end of text after each answer."""

_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names for them
_MARKS = re.compile(r"{%-?\s*generation\s*-?%}")  # how a template itself says what the assistant writes


def conversation(value: Any) -> list[Message]:
    """The turns of OpenAI's `messages` or ShareGPT's `conversations`, as role and content.

    Raises:
        RowError: a turn lacks something, or the roles are not in an order that can be learnt from.
    """
    if not isinstance(value, list) or not value:
        raise RowError("its conversation is missing, empty, or no list")
    messages = [_message(turn, number) for number, turn in enumerate(value, start=1)]
    expected = {"user"}
    roles = [message["role"] for message in messages]
    for number, role in enumerate(roles, start=1):
        if role == "system" and number == 1:
            continue
        if role not in expected:
            raise RowError(
                f"roles are out of order: turn {number} is {role}, but must be {' or '.join(sorted(expected))}"
            )
        expected = {"assistant"} if role != "assistant" else {"user", "tool"}
    if roles[-1] != "assistant":
        raise RowError(f"ends in a turn of {roles[-1]} that nothing answers")
    return messages


def chat_template(data: Data, tokenizer: Any) -> str:
    """The template of conversations: the recipe's, or the tokenizer's, or a plain one.

    Raises:
        FieldError: it is no Jinja template.
    """
    template: str = data.template or tokenizer.chat_template or PLAIN_TEMPLATE
    try:
        _rendered([{"role": "user", "content": "?"}], tokenizer, template)
    except TemplateSyntaxError as error:
        what = f"is no Jinja template: {printable(str(error.message))} in line {error.lineno}."
        raise FieldError("data.template", what, remedy="Mend it.") from error
    except TemplateError:
        pass  # it wants another conversation than this one
    return template


def prompt_of_chat(messages: Sequence[Message], tokenizer: Any, template: str) -> str:
    """The text after which the model is to answer."""
    return _rendered(messages, tokenizer, template, add_generation_prompt=True)


def encode_conversations(
    conversations: Sequence[Sequence[Message]], tokenizer: Any, template: str, first: Sequence[int]
) -> list[Encoded | RowError]:
    """The token ids of each conversation and whether each is taught, or why it cannot be told.

    `first` is what the tokenizer puts before a text; it is added where the template does not write it.
    """
    encode = _encode_marked if _MARKS.search(template) else _encode_spans
    results: list[Encoded | RowError] = []
    for messages in conversations:
        try:
            ids, taught = encode(messages, tokenizer, template)
        except RowError as bad:
            results.append(bad)
            continue
        except TemplateError as error:
            results.append(RowError(f"the chat template refuses it: {printable(str(error).rstrip('.'))}"))
            continue
        if not ids:
            results.append(RowError("the chat template writes nothing"))
            continue
        missing = list(first) if ids[: len(first)] != list(first) else []
        results.append(([*missing, *ids], [*(False for _ in missing), *taught]))
    return results


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"turn {number} is no mapping")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role is None or content is None:
        raise RowError(f"turn {number} has no {'role' if role is None else 'content'}")
    if not isinstance(content, str) or not content.strip():
        raise RowError(f"turn {number} is {'empty' if isinstance(content, str) else 'not text'}")
    if not isinstance(role, str):
        raise RowError(f"turn {number} has a role that is not text")
    role = _ROLES.get(role, role)
    if role not in ("system", "user", "assistant", "tool"):
        raise RowError(f"turn {number} has the unknown role {printable(role)}")
    return {"role": role, "content": content}


def _applied(messages: Sequence[Message], tokenizer: Any, template: str, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), chat_template=template, **options)
    except TemplateError:
        raise
    except Exception as error:  # a template is a program, and fails in every way
        raise TemplateError(f"{type(error).__name__}: {error}") from error


def _rendered(messages: Sequence[Message], tokenizer: Any, template: str, **options: Any) -> str:
    text: str = _applied(messages, tokenizer, template, tokenize=False, **options)
    return text


def _encode_marked(messages: Sequence[Message], tokenizer: Any, template: str) -> Encoded:
    encoding = _applied(
        messages, tokenizer, template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoding["input_ids"]), [bool(taught) for taught in encoding["assistant_masks"]]


def _encode_spans(messages: Sequence[Message], tokenizer: Any, template: str) -> Encoded:
    """What the assistant says is found by rendering the conversation up to each of its turns, and through it."""
    whole = _rendered(messages, tokenizer, template)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(messages[:index], tokenizer, template, add_generation_prompt=True)
        through = _rendered(messages[: index + 1], tokenizer, template)
        if not whole.startswith(before) or not whole.startswith(through):
            raise RowError("the chat template writes earlier turns anew, so it cannot be told what is taught")
        spans.append((len(before), len(through.rstrip())))
    encoding = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    taught = [any(a <= begin and end <= b for a, b in spans) for begin, end in encoding["offset_mapping"]]
    return list(encoding["input_ids"]), taught
