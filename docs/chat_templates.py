"""Writes `chat-templates.md`: what becomes of conversations in the chat templates that TRL ships.

They are those of well-known models. TRL, which the extra `bench` installs, has to be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftkit.api import base_folder
from peftkit.data.formats.chat import Chat
from peftkit.data.formats.format import RowError, Writing
from peftkit.data.formats.spans import Tokenised

FOLDER = Path(__file__).resolve().parent
_SPECIAL = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|<(?:start|end)_of_\w+>|\[/?[A-Z_]+\]|<[be]os>"
)

_CALL = {"id": "call00001", "type": "function", "function": {"name": "get_price", "arguments": {"item": "pie"}}}
_TOOL = {"name": "get_price", "description": "Price", "parameters": {"type": "object", "properties": {}}}
_ONE = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine thanks."}]
_TWO = [*_ONE, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Still fine."}]
_TOOLS = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "4", "tool_call_id": "call00001", "name": "get_price"},
    {"role": "assistant", "content": "Four coins."},
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": _ONE},
    "two turns": {"messages": _TWO},
    "with system": {"messages": [{"role": "system", "content": "Be brief."}, *_ONE]},
    "with tools": {"messages": _TOOLS, "tools": [{"type": "function", "function": _TOOL}]},
}

_PAGE = """\
# Chat templates

Made by `python docs/chat_templates.py` from the chat templates of TRL {version}, which are those of well-known models,
with a tokenizer that has their special tokens. `yes`: the assistant's words and the end of each of its turns are in the
loss, and nothing else. `no end`: the template writes nothing after the last answer, so that only answers before other
turns teach the model to stop. Otherwise the row is refused, for the reason that stands there.

Earlier turns may be written in another way than the last one, as without their thoughts: what is trained on is found in
the one text of the whole conversation, and `peftkit data` shows it.

| template | {heading} |
|---|{rules}|
{rows}
"""


def templates() -> dict[str, str]:
    """The source of each of TRL's templates, without those that TRL has changed for training, by its name."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    paths = sorted(Path(spec.origin).parent.glob("chat_templates/*.jinja"))
    return {path.stem: path.read_text("utf-8") for path in paths if not path.stem.endswith("_training")}


def tokenizer_for(source: str) -> Any:
    """The embedded base's tokenizer with the special tokens that a template names."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder("builtin:tiny-gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(_SPECIAL.findall(source)))})
    return tokenizer


def encoded(source: str, tokenizer: Any, row: dict[str, Any]) -> Tokenised | RowError:
    """A conversation as it would be trained on, or why it is refused."""
    chat, writing = Chat(), Writing(source)
    values = {"tools": None, "system": None, **row}
    return chat.encode([chat.read(values, writing)], tokenizer, writing)[0]


def page() -> str:
    """The page."""
    rows = [f"| `{name}` | {' | '.join(_outcomes(source))} |" for name, source in templates().items()]
    heading, rules = " | ".join(CONVERSATIONS), "|".join("---" for _ in CONVERSATIONS)
    return _PAGE.format(version=version("trl"), heading=heading, rules=rules, rows="\n".join(rows))


def _outcomes(source: str) -> Iterator[str]:
    tokenizer = tokenizer_for(source)
    ends = Chat().end_tokens(tokenizer, Writing(source))
    for row in CONVERSATIONS.values():
        found = encoded(source, tokenizer, row)
        if isinstance(found, RowError):
            yield str(found).replace("|", "\\|")
        else:
            last = max(place for place, counts in enumerate(found.in_loss) if counts)
            yield "yes" if found.ids[last] in ends else "no end"


if __name__ == "__main__":
    (FOLDER / "chat-templates.md").write_text(page(), encoding="utf-8")
