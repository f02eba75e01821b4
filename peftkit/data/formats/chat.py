"""Conversations of several turns, of which the assistant's are in the loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from peftkit.data.formats.format import DataFormat, RowError, Tokenised, first_tokens, text_of
from peftkit.errors import FieldError, printable

__all__ = ["PLAIN_TEMPLATE", "Chat", "Message"]

Message: TypeAlias = dict[str, str]

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


class Chat(DataFormat[list[Message]]):
    """OpenAI's `messages` or ShareGPT's `conversations`, written by a Jinja template of the whole conversation."""

    name = "chat"
    summary = (
        "column `messages` (with role and content) or `conversations` (with from and value); only the assistant's "
        "turns are in the loss"
    )
    columns = ("messages",)
    other_layouts = ({"messages": "conversations"},)
    has_chat_template = True

    def read(self, values: Mapping[str, Any], template: str | None) -> list[Message]:  # noqa: ARG002
        """The turns as role and content, in an order that can be learnt from."""
        turns = values["messages"]
        if not isinstance(turns, list) or not turns:
            raise RowError("its conversation is missing, empty, or no list")
        messages = [_message(turn, number) for number, turn in enumerate(turns, start=1)]
        _check_order([message["role"] for message in messages])
        for message in messages:
            text_of("content", message["content"])
        return messages

    def texts(self, content: list[Message]) -> Sequence[str]:
        """What each turn says."""
        return [message["content"] for message in content]

    def encode(
        self, contents: Sequence[list[Message]], tokenizer: Any, template: str | None
    ) -> list[Tokenised | RowError]:
        """The tokens of each conversation, of which the assistant's turns and their ends are in the loss.

        The tokenizer's first token is added where the template does not write it.
        """
        template = template or PLAIN_TEMPLATE
        encode = _encode_marked if _MARKS.search(template) else _encode_spans
        first = first_tokens(tokenizer)
        results: list[Tokenised | RowError] = []
        for messages in contents:
            try:
                ids, in_loss = encode(messages, tokenizer, template)
            except RowError as bad:
                results.append(bad)
                continue
            if not ids:
                results.append(RowError("the chat template writes nothing"))
                continue
            missing = first if ids[: len(first)] != first else []
            results.append(([*missing, *ids], [*(False for _ in missing), *in_loss]))
        return results

    def choose_template(self, template: str | None, tokenizer: Any) -> str:
        """The recipe's template, or the tokenizer's, or a plain one."""
        from jinja2 import TemplateSyntaxError

        chosen: str = template or tokenizer.chat_template or PLAIN_TEMPLATE
        try:
            _rendered([{"role": "user", "content": "?"}], tokenizer, chosen)
        except RowError as refused:
            error = refused.__cause__
            if isinstance(error, TemplateSyntaxError):  # any other: it wants another conversation than this one
                what = f"is no Jinja template: {printable(str(error.message))} in line {error.lineno}."
                raise FieldError("data.template", what, remedy="Fix it.") from error
        return chosen

    def prompt(self, prompt: str, template: str | None, tokenizer: Any) -> str:
        """A conversation of one turn, up to where the model is to answer."""
        turns = [{"role": "user", "content": prompt}]
        return _rendered(turns, tokenizer, self.choose_template(template, tokenizer), add_generation_prompt=True)


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


def _check_order(roles: Sequence[str]) -> None:
    """Users, tools and the assistant take turns, after a system turn if there is one, and the assistant has the last.

    Raises:
        RowError: otherwise.
    """
    expected = {"user"}
    for number, role in enumerate(roles, start=1):
        if role == "system" and number == 1:
            continue
        if role not in expected:
            wanted = " or ".join(sorted(expected))
            raise RowError(f"roles are out of order: turn {number} is {role}, but must be {wanted}")
        expected = {"assistant"} if role != "assistant" else {"user", "tool"}
    if roles[-1] != "assistant":
        raise RowError(f"ends in a turn of {roles[-1]} that nothing answers")


def _applied(messages: Sequence[Message], tokenizer: Any, template: str, **options: Any) -> Any:
    """What the template makes of a conversation.

    Raises:
        RowError: it refuses the conversation, or fails; the cause is Jinja's own error.
    """
    from jinja2 import TemplateError  # only conversations need it

    try:
        return tokenizer.apply_chat_template(list(messages), chat_template=template, **options)
    except TemplateError as error:
        raise RowError(f"the chat template refuses it: {printable(str(error).rstrip('.'))}") from error
    except Exception as error:  # a template is a program, and fails in every way
        told = printable(f"{type(error).__name__}: {error}".rstrip("."))
        raise RowError(f"the chat template refuses it: {told}") from error


def _rendered(messages: Sequence[Message], tokenizer: Any, template: str, **options: Any) -> str:
    text: str = _applied(messages, tokenizer, template, tokenize=False, **options)
    return text


def _encode_marked(messages: Sequence[Message], tokenizer: Any, template: str) -> Tokenised:
    encoding = _applied(
        messages, tokenizer, template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoding["input_ids"]), [bool(inside) for inside in encoding["assistant_masks"]]


def _encode_spans(messages: Sequence[Message], tokenizer: Any, template: str) -> Tokenised:
    """What the assistant says is found by rendering the conversation up to each of its turns, and through it."""
    whole = _rendered(messages, tokenizer, template)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(messages[:index], tokenizer, template, add_generation_prompt=True)
        through = _rendered(messages[: index + 1], tokenizer, template)
        if not whole.startswith(before) or not whole.startswith(through):
            raise RowError(
                "the chat template writes earlier turns anew, so what the assistant says cannot be found in it"
            )
        spans.append((len(before), len(through.rstrip())))
    encoding = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    in_loss = [any(a <= begin and end <= b for a, b in spans) for begin, end in encoding["offset_mapping"]]
    return list(encoding["input_ids"]), in_loss
