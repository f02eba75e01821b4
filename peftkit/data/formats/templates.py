"""A chat template and its tokenizer: what it writes of a conversation, and where in that the assistant speaks.

A template is a program, and many rewrite earlier turns when later ones come (the thoughts of all but the last answer
go). So an answer is looked for in the one text that is trained on. What begins an answer and what ends it is read from
a conversation made up for that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from os.path import commonprefix
from types import SimpleNamespace
from typing import Any, NamedTuple

from peftkit.data.formats.format import RowError
from peftkit.data.formats.markers import Message, places_of, with_markers
from peftkit.data.formats.spans import Span
from peftkit.errors import printable

__all__ = ["PLAIN_TEMPLATE", "ChatTemplate", "Written"]

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{{ '' if loop.last and message['role'] == 'assistant' else '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For a tokenizer without its own, as GPT-2's: a heading for each turn, and an end of text after each answer."""

_MARKS = re.compile(r"{%-?\s*generation\s*-?%}")  # how a template itself says what the assistant writes


class Written(NamedTuple):
    """A conversation as a template writes it."""

    text: str
    answers: dict[int, Span]
    """By the number of each turn of the assistant: from after what begins it to after its end token."""

    left_out: list[int]
    """The turns that the template does not write."""


class _Frame(NamedTuple):
    """What a template writes around an answer."""

    user_end: str
    openings: tuple[str, ...]
    """Between what a user says and an answer: the last, and one before further turns."""

    ends: tuple[str, ...]
    """What ends an answer: before a further turn, and at the end."""

    call_end: str | None
    """What ends a turn that calls a tool, where that is another."""


class ChatTemplate:
    """A template, as one tokenizer writes it."""

    def __init__(self, source: str, tokenizer: Any, time: datetime | None = None) -> None:
        """The template of a text, which is given the time where it reads the clock."""
        self.source = source
        self._tokenizer = tokenizer
        self._time = time

    def mentions(self, name: str) -> bool:
        """Whether the template uses a key of a turn, or an argument."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, prompt: bool = False) -> str:
        """The text of a conversation; as a `prompt`, with what begins an answer.

        Raises:
            RowError: the template refuses the conversation, or fails; the cause is its own error.
        """
        return self._applied(self._given(messages), tools, prompt=prompt)

    def _given(self, messages: Sequence[Message]) -> list[Message]:
        return [_in_parts(message) for message in messages] if self.wants_parts else list(messages)

    @cached_property
    def wants_parts(self) -> bool:
        """Whether a template, of a model that sees images too, reads lists of parts alone."""
        message = {"role": "user", "content": _MADE_UP[0]}

        def writes(message: Message) -> bool:
            try:
                return _MADE_UP[0] in self._applied([message], None, prompt=False)
            except RowError:
                return False

        return not writes(message) and writes(_in_parts(message))

    def _applied(self, messages: list[Message], tools: Sequence[Any] | None, *, prompt: bool) -> str:
        from jinja2 import TemplateError  # only conversations need it

        options = {"chat_template": self.source, "tools": tools, "tokenize": False, "add_generation_prompt": prompt}
        try:
            with _clock_at(self._time):
                text: str = self._tokenizer.apply_chat_template(messages, **options)
        except TemplateError as error:
            raise RowError(f"the chat template refuses it: {printable(str(error).rstrip('.'))}") from error
        except Exception as error:  # a template is a program, and fails in every way
            told = printable(f"{type(error).__name__}: {error}".rstrip("."))
            raise RowError(f"the chat template refuses it: {told}") from error
        return text

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """A conversation up to where the answer begins, as it does in training.

        Some templates write more in a prompt than in a conversation, as the beginning of a thought.
        """
        text = self.render(messages, tools, prompt=True)
        return text.removesuffix(self._prompt_surplus)

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end an answer, or a call of a tool."""
        frame = self._frame
        return (*frame.ends, frame.call_end) if frame.call_end else frame.ends

    def write(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Written:
        """Write a conversation, and find the assistant's turns in it.

        Raises:
            RowError: the template refuses it, or they cannot be found.
        """
        text = self.render(messages, tools)
        marked, markers = with_markers(messages, text)
        skeleton = self.render(marked, tools)
        left_out = [turn for turn, marker in markers.items() if marker not in skeleton]
        written = [(turn, marker) for turn, marker in markers.items() if marker in skeleton]
        places = places_of(text, skeleton, written, messages)
        if places is None:
            raise RowError("what each turn says cannot be found in what the chat template writes of it")
        answers = {}
        for turn, message in enumerate(messages):
            if message["role"] == "assistant" and turn not in left_out:
                answers[turn] = self._answer(text, turn, message, places)
        return Written(text, answers, left_out)

    def marks(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[Span] | None:
        """What the template's own `{% generation %}` blocks mark; None where it has none."""
        if not _MARKS.search(self.source):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        with _clock_at(self._time):
            _, marks = render_jinja_template(
                [self._given(messages)],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        return [(begin, stop) for begin, stop in marks[0]]

    def _answer(self, text: str, turn: int, message: Message, places: Mapping[int, Span]) -> Span:
        frame = self._frame
        before = max((place[1] for other, place in places.items() if other < turn), default=0)
        after = min((place[0] for other, place in places.items() if other > turn), default=len(text))
        content = places.get(turn)
        ahead = text[before : content[0] if content else after]
        opening = next((each for each in frame.openings if turn and ahead.startswith(each)), None)
        headers = [each.removeprefix(frame.user_end) for each in frame.openings]
        header = next((each for each in headers if each and each in ahead), None)
        if opening is not None:
            begin = before + len(opening)
        elif header is not None:
            begin = before + (ahead.rfind(header) if content else ahead.find(header)) + len(header)
        else:
            behind_special = (ahead.rfind(token) + len(token) for token in self._special if token in ahead)
            begin = before + max(behind_special, default=len(ahead))
        stop = content[1] if content else begin
        calls = bool(message.get("tool_calls"))
        ends = self.ends if calls else frame.ends
        behind = text[stop:after]
        found = [(behind.rfind(end) if calls else behind.find(end), end) for end in ends if end in behind]
        if found:
            place, end = (max if calls else min)(found, key=lambda each: (each[0], len(each[1])))
            return begin, stop + place + len(end)
        return begin, stop

    @cached_property
    def _special(self) -> list[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special]

    @cached_property
    def _frame(self) -> _Frame:
        """Read from conversations of words that no template has."""
        user, answer, again = _MADE_UP
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        try:
            asked, prompt = (_after(self.render(turns[:1], prompt=given), user) for given in (False, True))
            full = _after(self.render(turns), user)
        except RowError:
            return _Frame("", (), (), None)
        opening = _common(prompt, full.partition(answer)[0])
        last = full.partition(answer)[2]
        try:
            further = self.render([*turns, {"role": "user", "content": again}, {**turns[1], "content": again[::-1]}])
            between = _after(further, answer).partition(again)[0]
            earlier = _common(prompt, _after(further, user).partition(answer)[0])
        except RowError:
            between, earlier = last, opening
        ends = self._ends(last, between)
        openings = tuple(dict.fromkeys([opening, earlier]))
        return _Frame(
            _common(asked, opening),
            openings,
            tuple(dict.fromkeys(end for end in ends if end)),
            self._call_end(turns, ends),
        )

    @cached_property
    def _prompt_surplus(self) -> str:
        user = _MADE_UP[0]
        prompt = _after(self.render([{"role": "user", "content": user}], prompt=True), user)
        return prompt.removeprefix(self._frame.openings[0]) if self._frame.openings else ""

    def _call_end(self, turns: Sequence[Message], ends: Sequence[str]) -> str | None:
        """What ends a turn that calls a tool, where it is none of the usual ends."""
        value, result = _MADE_UP[1:]
        call = {"id": "callid001", "type": "function", "function": {"name": "lookup", "arguments": {"key": value}}}
        calling = [turns[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
        answered = {"role": "tool", "content": result, "tool_call_id": "callid001", "name": "lookup"}
        try:
            further = _after(self.render([*calling, answered, turns[1]]), value).partition(result)[0]
            last = _after(self.render(calling), value)
        except RowError:
            return None
        if any(end and end in further for end in ends):
            return None
        closing = _common(further, last).rstrip()
        special = [token for token in self._special if token in closing]
        if special:
            return max(special, key=closing.rfind)
        leading = self._leading_special(further.removeprefix(closing))
        return "".join(leading[:1]) or closing.rpartition("\n")[2] or None

    def _ends(self, last: str, between: str) -> list[str]:
        """What follows an answer at the end and before a further turn: what is common to both, or of each the first."""
        one, other = self._leading_special(last), self._leading_special(between)
        common = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
        if common:
            return ["".join(common)]
        if one or other:
            return ["".join(one[:1]), "".join(other[:1])]
        return [_common(last, between).rstrip() or last.rstrip()]

    def _leading_special(self, text: str) -> list[str]:
        """The special tokens that a text begins with, after spaces."""
        found = []
        rest = text.lstrip()
        while token := max((token for token in self._special if rest.startswith(token)), key=len, default=""):
            found.append(token)
            rest = rest[len(token) :]
        return found


_MADE_UP = ("Qzuwq", "Qzvwq", "Qzxwq")
"""Words of a user, of the assistant, and of the user again."""


@contextlib.contextmanager
def _clock_at(time: datetime | None) -> Iterator[None]:
    """Give templates a time as now: Transformers' `strftime_now` asks its module's `datetime` for it."""
    from transformers.utils import chat_template_utils

    kept = chat_template_utils.datetime
    chat_template_utils.datetime = kept if time is None else SimpleNamespace(now=lambda: time)
    try:
        yield
    finally:
        chat_template_utils.datetime = kept


def _in_parts(message: Message) -> Message:
    said = message.get("content")
    return {**message, "content": [{"type": "text", "text": said}] if said else []}


def _after(text: str, word: str) -> str:
    return text.partition(word)[2]


def _common(one: str, other: str) -> str:
    """What two texts begin with alike."""
    return commonprefix([one, other])  # noqa: RUF071  # of texts, not of paths
