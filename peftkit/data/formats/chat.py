"""Conversations of several turns, of which the assistant's are in the loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from peftkit.data.formats.conversations import SYSTEM_ROLES, THOUGHTS, Conversation, read_conversation, without_system
from peftkit.data.formats.format import SILENT, DataFormat, RowError, Writing
from peftkit.data.formats.markers import THOUGHTS_END, Message
from peftkit.data.formats.spans import Span, Tokenised, encode_spans
from peftkit.data.formats.templates import PLAIN_TEMPLATE, ChatTemplate, Written
from peftkit.errors import FieldError, InputError, printable

__all__ = ["Chat"]

TRAILING: Final = "with turns after the last answer, which are left out"
UNTRAINED: Final = "with an answer of weight 0, which is not in the loss"
THOUGHTLESS: Final = "with thoughts that the chat template leaves out"
UNMARKED: Final = "whose generation marks in the chat template do not hold the answers, and are not used"


class Chat(DataFormat[Conversation]):
    """Conversations, written by a Jinja template of the whole."""

    name = "chat"
    summary = (
        "column `messages` (with role and content) or `conversations` (with from and value), or `prompt` and "
        "`completion` of messages, perhaps with `tools` and `system`; only the assistant's turns are in the loss"
    )
    columns = ("messages", "prompt", "completion", "tools", "system")
    optional = ("tools", "system")
    layouts = (
        {"messages": "messages"},
        {"messages": "conversations"},
        {"messages": "conversation"},
        {"prompt": "prompt", "completion": "completion"},
    )
    has_chat_template = True

    def takes(self, values: Mapping[str, Any]) -> bool:
        """Whether values are turns, or JSON of turns, rather than texts."""
        found = [value for name, value in values.items() if name in ("messages", "prompt", "completion")]
        return not any(isinstance(value, str) and value.lstrip()[:1] != "[" for value in found)

    def read(self, values: Mapping[str, Any], writing: Writing) -> Conversation:  # noqa: ARG002
        """The turns, the tools and what is not to be trained on."""
        return read_conversation(values)

    def texts(self, content: Conversation) -> Sequence[str]:
        """What each turn says."""
        return [message["content"] for message in content.messages if message["content"]]

    def encode(self, contents: Sequence[Conversation], tokenizer: Any, writing: Writing) -> list[Tokenised | RowError]:
        """The tokens of each conversation, of which the assistant's turns and their ends are in the loss.

        The tokenizer's first token is added where the template does not write it.
        """
        template = _template(tokenizer, writing)
        results: list[list[str] | RowError] = []
        texts: list[tuple[str, Sequence[Span]]] = []
        for conversation in contents:
            try:
                text, spans, notes = _spoken(conversation, template, writing)
                texts.append((text, spans))
                results.append(notes)
            except RowError as bad:
                results.append(bad)
        encoded = iter(encode_spans(texts, tokenizer, end=False))
        return [result if isinstance(result, RowError) else next(encoded).noting(result) for result in results]

    def choose_template(self, template: str | None, tokenizer: Any) -> str:
        """The recipe's template, or the tokenizer's, or a plain one."""
        from jinja2 import TemplateSyntaxError

        chosen: str = template or tokenizer.chat_template or PLAIN_TEMPLATE
        try:
            ChatTemplate(chosen, tokenizer).render([{"role": "user", "content": "?"}])
        except RowError as refused:
            error = refused.__cause__
            if isinstance(error, TemplateSyntaxError):  # any other: it wants another conversation than this one
                what = f"is no Jinja template: {printable(str(error.message))} in line {error.lineno}."
                raise FieldError("data.template", what, remedy="Fix it.") from error
        return chosen

    def prompt(self, prompt: str, tokenizer: Any, writing: Writing) -> str:
        """A conversation of one turn, up to where the model is to answer.

        Raises:
            InputError: the template refuses such a conversation.
        """
        try:
            return _template(tokenizer, writing).prompt([{"role": "user", "content": prompt}])
        except RowError as error:
            what = f"cannot be written as a conversation of one turn: {error}."
            raise InputError(what, where="the prompt", remedy="Write the conversation yourself, with --raw.") from error

    def end_tokens(self, tokenizer: Any, writing: Writing) -> list[int]:
        """The tokens that end a turn of the assistant, and the end of text."""
        ends = _template(tokenizer, writing).ends
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        last = [tokenizer(end, add_special_tokens=False)["input_ids"][-1] for end in ends]
        return list(dict.fromkeys([*(token for token in last if token in special), tokenizer.eos_token_id]))

    def reads_clock(self, tokenizer: Any, writing: Writing) -> bool:
        """Whether the template writes another text at another time."""
        times = (datetime(2001, 2, 3, 4, 5, 6), datetime(2017, 8, 19, 20, 21, 22))  # as templates take them
        templates = [_template(tokenizer, replace(writing, time=time)) for time in times]
        try:
            return len({template.render([{"role": "user", "content": "?"}]) for template in templates}) > 1
        except RowError:  # it wants another conversation than this one
            return templates[0].mentions("strftime_now")


def _template(tokenizer: Any, writing: Writing) -> ChatTemplate:
    return ChatTemplate(writing.template or tokenizer.chat_template or PLAIN_TEMPLATE, tokenizer, writing.time)


def _spoken(conversation: Conversation, template: ChatTemplate, writing: Writing) -> tuple[str, list[Span], list[str]]:
    """A conversation's text, what of it is in the loss, and what an audit counts."""
    messages, written = _written(conversation, template, writing)
    notes = [TRAILING] if conversation.trailing else []
    if conversation.untrained:
        notes.append(UNTRAINED)
    if any(thought not in written.text for thought in _thoughts(messages)):
        notes.append(THOUGHTLESS)
    moved = len(messages) - len(conversation.messages)
    untrained = {turn + moved for turn in conversation.untrained}
    answers = {turn: span for turn, span in written.answers.items() if turn not in untrained}
    if writing.train_on == "last":
        answers = {turn: span for turn, span in answers.items() if turn == len(messages) - 1}
    if writing.train_on == "all":
        return written.text, _between([written.answers[turn] for turn in sorted(untrained)], len(written.text)), notes
    spans = [answers[turn] for turn in sorted(answers)]
    marks = template.marks(messages, conversation.tools)
    if marks is None:
        return written.text, spans, notes
    marked = [[(max(a, begin), min(b, stop)) for a, b in marks if a < stop and b > begin] for begin, stop in spans]
    if all(any(written.text[a:b].strip() for a, b in parts) for parts in marked):
        return written.text, [part for parts in marked for part in parts], notes
    return written.text, spans, [*notes, UNMARKED]


def _written(conversation: Conversation, template: ChatTemplate, writing: Writing) -> tuple[list[Message], Written]:
    """The turns in the first of the forms that the template takes, and what it writes of them.

    Raises:
        RowError: it takes none, or leaves out what would be learnt.
    """
    messages = without_system(conversation.messages) if writing.system == "merge" else conversation.messages
    _check_keys(messages, conversation.tools, template)
    refused: RowError | None = None
    for form in (messages, _plainer(messages)):
        try:
            written = template.write(form, conversation.tools)
        except RowError as error:
            refused = refused or error
            continue
        _check_whole(form, conversation.tools, written)
        return list(form), written
    assert refused is not None
    if messages[0]["role"] in SYSTEM_ROLES:
        raise RowError(f"{refused} (data.system: merge puts the system turn into the user's first)") from refused
    raise refused


def _plainer(messages: Sequence[Message]) -> list[Message]:
    """The turns for templates that want text in each and the arguments of a call as a mapping."""
    found = []
    for message in messages:
        message = {**message, "content": message["content"] or ""}
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_parsed(call) for call in calls]
        found.append(message)
    return found


def _parsed(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call


def _check_keys(messages: Sequence[Message], tools: Sequence[Any] | None, template: ChatTemplate) -> None:
    """See that each key of a turn is used by the template, or says nothing.

    Raises:
        RowError: one is not; names it.
    """
    for turn, message in enumerate(messages, start=1):
        for name in message:
            used = [name, *(THOUGHTS if name in THOUGHTS else ())]
            if name in ("role", "content", "tool_call_id") or name in SILENT or any(map(template.mentions, used)):
                continue
            raise RowError(f"turn {turn} has {printable(name)}, which the chat template does not write")
    if tools and not template.mentions("tools"):
        raise RowError("has tools, which the chat template does not write")


def _check_whole(messages: Sequence[Message], tools: Sequence[Any] | None, written: Written) -> None:
    """See that the template has written every turn, call and tool.

    Raises:
        RowError: it leaves one out; names it.
    """
    if written.left_out:
        turn = written.left_out[0]
        raise RowError(f"turn {turn + 1} is {messages[turn]['role']}, which the chat template leaves out")
    for turn, message in enumerate(messages):
        begin, stop = written.answers.get(turn, (0, 0))
        for call in message.get("tool_calls") or []:
            name = (call.get("function") or call).get("name")
            if not isinstance(name, str) or name not in written.text[begin:stop]:
                raise RowError(f"turn {turn + 1} has tool_calls, which the chat template does not write")
    for tool in tools or []:
        name = (tool.get("function") or tool).get("name")
        if isinstance(name, str) and name not in written.text:
            raise RowError("has tools, which the chat template does not write")


def _thoughts(messages: Sequence[Message]) -> list[str]:
    found = [message[name] for message in messages for name in THOUGHTS if isinstance(message.get(name), str)]
    for message in messages:
        thought, end, _ = (message["content"] or "").rpartition(THOUGHTS_END)
        if message["role"] == "assistant" and end:
            found.append(thought.rpartition("<think>")[2])
    return [thought.strip() for thought in found if thought.strip()]


def _between(left_out: Sequence[Span], length: int) -> list[Span]:
    """All of a text but some parts of it."""
    edges = [0, *(edge for span in left_out for edge in span), length]
    return [(begin, stop) for begin, stop in zip(edges[::2], edges[1::2], strict=True) if begin < stop]
