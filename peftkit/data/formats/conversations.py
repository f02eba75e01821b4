"""Conversations as people have them, read into the messages that a chat template knows.

OpenAI's `messages` (parts of a content, calls of tools, weights), ShareGPT's `conversations` (`from` and `value`,
function calls as JSON), and TRL's prompt and completion of messages become the same: turns with `role`, `content` and
whatever else a turn says, the tools, and which turns are not to be trained on. Each key of a turn is used here, left to
the template, or known to say nothing that a model could learn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from peftkit.data.formats.format import RowError, text_of
from peftkit.data.formats.markers import Message
from peftkit.errors import printable

__all__ = ["SYSTEM_ROLES", "THOUGHTS", "Conversation", "read_conversation", "without_system"]

_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""ShareGPT's and other names of the roles, by OpenAI's."""

SYSTEM_ROLES: Final = ("system", "developer")
_KNOWN_ROLES: Final = (*SYSTEM_ROLES, "user", "assistant", "tool")
_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value")
_WEIGHTS: Final = ("weight", "train", "training", "loss_weight", "loss")
THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Conversation:
    """The turns up to the last answer."""

    messages: list[Message]
    tools: list[Any] | None
    untrained: frozenset[int]
    """The turns of the assistant that have the weight 0."""

    trailing: int
    """Turns after the last answer, which are left out."""


def read_conversation(values: Mapping[str, Any]) -> Conversation:
    """A row's conversation, given under the format's own names.

    Raises:
        RowError: it cannot be used.
    """
    turns = _turns(values)
    messages: list[Message] = []
    untrained: set[int] = set()
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number} is no mapping")
        message = _message(turn, number)
        if not _weighs(turn, number):
            untrained.add(len(messages))
        messages.append(message)
    if system := _system(values):
        messages = _with_system(messages, system)
        untrained = {turn + len(messages) - len(turns) for turn in untrained}
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise RowError("has no turn of the assistant")
    kept = answers[-1] + 1
    said = frozenset(turn for turn in untrained if messages[turn]["role"] == "assistant")
    return Conversation(messages[:kept], _tools(values.get("tools")), said, len(messages) - kept)


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The turns with what the system says put before what the user says first."""
    if not messages or messages[0]["role"] not in SYSTEM_ROLES:
        return list(messages)
    system, rest = messages[0], list(messages[1:])
    for place, message in enumerate(rest):
        if message["role"] == "user":
            said = [text for text in (system["content"], message["content"]) if text]
            rest[place] = {**message, "content": "\n\n".join(said)}
            return rest
    return [{"role": "user", "content": system["content"]}, *rest]


def _turns(values: Mapping[str, Any]) -> list[Any]:
    whole = _from_json(values.get("messages"))
    if whole is None:
        parts = [_from_json(values.get(name)) for name in ("prompt", "completion")]
        whole = [turn for part in parts for turn in part] if all(isinstance(part, list) for part in parts) else None
    if not isinstance(whole, list) or not whole:
        raise RowError("its conversation is missing, empty, or no list")
    return whole


def _message(turn: dict[str, Any], number: int) -> Message:
    said = _first(turn, _ROLE_KEYS)
    if said is None:
        raise RowError(f"turn {number} has no role")
    if not isinstance(said, str):
        raise RowError(f"turn {number} has a role that is not text")
    role = _ROLES.get(said.lower(), said.lower())
    if role not in _KNOWN_ROLES:
        raise RowError(f"turn {number} has the unknown role {printable(said)}")
    known = {*_ROLE_KEYS, *_CONTENT_KEYS, *_WEIGHTS}
    message = {"role": role, "content": None, **{name: value for name, value in turn.items() if name not in known}}
    message = {name: value for name, value in message.items() if name == "content" or value not in (None, [], {}, "")}
    content = _content(_first(turn, _CONTENT_KEYS), number)
    if said == "function_call":
        message["tool_calls"], content = [_call(content, number)], ""
    elif legacy := message.pop("function_call", None):
        message["tool_calls"] = [{"type": "function", "function": legacy}]
    if content is None and not message.get("tool_calls"):
        raise RowError(f"turn {number} has no content")
    if not (content or "").strip() and role != "system" and not message.get("tool_calls"):
        raise RowError(f"turn {number} is empty")
    return {**message, "content": content if content is None else text_of("content", content, may_be_empty=True)}


def _first(turn: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _content(value: Any, number: int) -> str | None:
    """What a turn says; of OpenAI's parts, the text."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"turn {number} is not text")
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise RowError(f"turn {number} has a part of the type {printable(str(kind))}, which is not text")
        texts.append(text)
    return "".join(texts)


def _call(content: str | None, number: int) -> dict[str, Any]:
    call = _from_json(content)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RowError(f"turn {number} is a function call that is no JSON of a name and arguments")
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}


def _weighs(turn: Mapping[str, Any], number: int) -> bool:
    """Whether a turn may be trained on: its weight is not 0.

    Raises:
        RowError: the weight is another than 0 and 1; the loss has no weights of tokens.
    """
    for name in _WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(f"turn {number} has the {name} {printable(str(value))}; only 0 and 1 can be used")
        if not value:
            return False
    return True


def _system(values: Mapping[str, Any]) -> str:
    system = values.get("system")
    return text_of("system", system, may_be_empty=True) if system else ""


def _with_system(messages: list[Message], system: str) -> list[Message]:
    if messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise RowError("has a column system and another system turn")
        return messages
    return [{"role": "system", "content": system}, *messages]


def _tools(value: Any) -> list[Any] | None:
    tools = _from_json(value)
    if not tools:
        return None
    if not isinstance(tools, list):
        raise RowError("tools is no list")
    read = [_from_json(tool) for tool in tools]
    if not all(isinstance(tool, dict) for tool in read):
        raise RowError("tools has what is no mapping")
    return read


def _from_json(value: Any) -> Any:
    """What a text of JSON holds; anything else as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
