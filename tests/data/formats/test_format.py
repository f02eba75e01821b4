"""The columns say which format rows have, and a row of it becomes what is given and what is taught."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import peftkit
from peftkit.data.corpus import writing_of
from peftkit.data.documents import read_row
from peftkit.data.files import Row
from peftkit.data.formats import FORMATS
from peftkit.data.formats.format import Example, ExampleFormat, RowError, Writing
from peftkit.data.prepare import prepare
from peftkit.data.prompts import pairs, prompt_of
from peftkit.data.sources import recognise
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data, Source

PACKAGE = Path(peftkit.__file__).parent
SOURCE = Source(path="rows.jsonl")
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"rows.jsonl:{number}", value) for number, value in enumerate(values, start=1)]


def data_of(**fields: Any) -> Data:
    return Data.model_validate({"train": SOURCE, **fields})


def content_of(values: dict[str, Any], **fields: Any) -> Any:
    data = data_of(**fields)
    row = Row("rows.jsonl:1", values)
    return read_row(row, recognise([row], data, "data.train", "rows.jsonl")[0], writing_of(data))


@pytest.mark.parametrize(
    ("values", "format_", "reason"),
    [
        ({"text": "a", "other": 1}, "text", "its rows have text"),
        ({"prompt": "a", "completion": "b"}, "completion", "its rows have prompt and completion"),
        ({"input": "a", "output": "b"}, "completion", "its rows have input and output"),
        ({"instruction": "a", "output": "b"}, "instruction", "its rows have instruction and output"),
        ({"instruction": "a", "input": "c", "output": "b"}, "instruction", "its rows have instruction and output"),
        ({"messages": TURNS}, "chat", "its rows have messages"),
        ({"conversations": TURNS}, "chat", "its rows have conversations"),
        ({"input_ids": [1], "labels": [1]}, "tokens", "its rows have input_ids"),
        ({"Prompt": "a", "COMPLETION": "b"}, "completion", "its rows have Prompt and COMPLETION"),
        ({"question": "a", "answer": "b"}, "completion", "its rows have question and answer"),
        ({"prompt": "a", "response": "b"}, "completion", "its rows have prompt and response"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "chat", "its rows have prompt and completion"),
        (
            {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
            "instruction",
            "its rows have instruction and response",
        ),
    ],
)
def test_a_format_is_recognised_from_the_columns_with_a_reason(
    values: dict[str, Any], format_: str, reason: str
) -> None:
    layout, why = recognise(rows_of(values), data_of(), "data.train", "rows.jsonl")

    assert (layout.form.name, why) == (format_, reason)


def test_columns_that_are_renamed_are_recognised_under_their_names() -> None:
    rows = rows_of({"question": "a", "answer": "b"})
    layout, _ = recognise(
        rows, data_of(columns={"prompt": "question", "completion": "answer"}), "data.train", "rows.jsonl"
    )

    assert (layout.form.name, layout.columns) == ("completion", {"prompt": "question", "completion": "answer"})


def test_rows_of_two_formats_are_an_error_that_shows_both() -> None:
    rows = rows_of({"text": "a"}, {"prompt": "a", "completion": "b"}, {"text": "c"})

    with pytest.raises(DataError, match=r"several formats.*text in 2; completion, prompt in 1"):
        recognise(rows, data_of(), "data.train", "rows.jsonl")


def test_a_row_of_two_formats_at_once_is_an_error_too() -> None:
    with pytest.raises(DataError, match=r"several formats \(text: text and tokens: input_ids, \(labels\)"):
        recognise(rows_of({"text": "a", "input_ids": [1]}), data_of(), "data.train", "rows.jsonl")


def test_an_unknown_layout_is_an_error_that_shows_what_is_there_and_what_could_be() -> None:
    with pytest.raises(DataError) as raised:
        recognise(rows_of({"asked": "a", "reply": "b"}), data_of(), "data.train", "rows.jsonl")

    message = str(raised.value)
    assert "asked, reply in 1" in message
    assert "completion: prompt, completion" in message
    assert "chat: conversations" in message
    assert "Set format or columns" in message


def test_a_column_that_the_recipes_format_lacks_is_named_with_those_that_are_there() -> None:
    with pytest.raises(
        FieldError, match=r"needs a column 'completion'; the rows have completions, prompt\. Set data\.col"
    ):
        recognise(rows_of({"completions": "a", "prompt": "b"}), data_of(format="completion"), "data.train", "rows")


def test_text_is_taught_whole_and_empty_text_is_no_mistake() -> None:
    assert content_of({"text": "all of it"}) == Example(None, "all of it")
    assert content_of({"text": "  \n"}) is None


def test_a_completion_has_its_prompt_before_it_in_the_recipes_template() -> None:
    assert content_of({"prompt": "q", "completion": "a"}) == Example("q", "a")
    assert content_of(
        {"mr": "name[X]", "ref": "X is here."},
        columns={"prompt": "mr", "completion": "ref"},
        template="Facts: {prompt}\n",
    ) == Example("Facts: name[X]\n", "X is here.")


def test_an_instruction_without_input_has_no_section_for_it() -> None:
    with_input = content_of({"instruction": "Add.", "input": "1 2", "output": "3"})
    without = content_of({"instruction": "Greet.", "input": None, "output": "Hi"})

    assert with_input.prompt == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    assert without.prompt == "### Instruction:\nGreet.\n\n### Response:\n"


def test_what_the_system_says_and_what_was_said_before_are_part_of_the_prompt() -> None:
    history = [["Of France?", "Paris."]]

    found = content_of({"instruction": "Of Italy?", "output": "Rome.", "system": "One word.", "history": history})

    assert found.prompt == (
        "One word.\n\n### Instruction:\nOf France?\n\n### Response:\nParis.\n\n"
        "### Instruction:\nOf Italy?\n\n### Response:\n"
    )


def test_numbers_become_words_by_the_recipes_labels() -> None:
    labels = {0: "negative", 1: "positive"}

    assert content_of({"prompt": "q", "completion": 1}, labels=labels).completion == "positive"
    assert content_of({"prompt": "q", "completion": "0"}, labels=labels).completion == "negative"
    with pytest.raises(RowError, match=r"completion 2 is none of data\.labels"):
        content_of({"prompt": "q", "completion": 2}, labels=labels)


def test_both_kinds_of_conversation_mean_the_same() -> None:
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]

    assert content_of({"messages": TURNS}) == content_of({"conversations": shared})
    assert content_of({"messages": TURNS}).messages == TURNS


def test_token_ids_are_taken_as_they_are() -> None:
    assert content_of({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]})[:2] == ([5, 6, 7], [False, True, True])
    assert content_of({"input_ids": [5, 6]})[:2] == ([5, 6], [True, True])


@pytest.mark.parametrize("mask", ["completion_mask", "assistant_masks", "loss_mask"])
def test_a_mask_says_what_of_token_ids_is_in_the_loss_and_padding_is_left_out(mask: str) -> None:
    row = {"input_ids": [9, 5, 6, 7, 9], mask: [1, 0, 1, 1, 1], "attention_mask": [0, 1, 1, 1, 0]}

    assert content_of(row)[:2] == ([5, 6, 7], [False, True, True])
    assert content_of({**row, "labels": [9, 5, -100, 7, 9]})[:2] == ([5, 6, 7], [False, False, True])


USER, REPLY = TURNS
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a missing field": ({"prompt": "q", "completion": None}, "completion is missing"),
    "an empty field": ({"prompt": " ", "completion": "a"}, "prompt is empty"),
    "a number for text": ({"prompt": "q", "completion": 7}, "completion is a number, not text; give its words in data"),
    "half a character": ({"prompt": "q", "completion": "\ud83d"}, "completion holds what is no UTF-8"),
    "a text that is none": ({"text": ["a"]}, "text is a list, not text"),
    "an input of another kind": ({"instruction": "a", "input": 3, "output": "b"}, "input is a number, not text"),
    "no turns": ({"messages": []}, "missing, empty, or no list"),
    "a turn without a role": ({"messages": [{"content": "Hi"}, REPLY]}, "turn 1 has no role"),
    "a turn without content": ({"messages": [USER, {"role": "assistant"}]}, "turn 2 has no content"),
    "an empty turn": ({"messages": [USER, {"role": "assistant", "content": ""}]}, "turn 2 is empty"),
    "a strange role": ({"messages": [{"role": "boss", "content": "Hi"}, REPLY]}, "turn 1 has the unknown role boss"),
    "no answer": ({"messages": [USER, USER]}, "has no turn of the assistant"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, REPLY]}, "of the type image_url"),
    "half a weight": ({"messages": [USER, {**REPLY, "weight": 0.5}]}, "weight 0.5; only 0 and 1"),
    "two systems": ({"messages": [{"role": "system", "content": "a"}, *TURNS], "system": "b"}, "another system turn"),
    "tools that are none": ({"messages": TURNS, "tools": "hammer"}, "tools is no list"),
    "a call that is none": ({"messages": [USER, {"from": "function_call", "value": "f(x)"}]}, "no JSON of a name"),
    "half a history": ({"instruction": "a", "history": [["b"]], "output": "c"}, "pair 1 of its history"),
    "a mask of halves": ({"input_ids": [1, 2], "loss_mask": [0, 2]}, "loss_mask has 2, which is neither 0 nor 1"),
    "ids that are none": ({"input_ids": [1, "2"]}, "input_ids is no list of whole numbers"),
    "no ids": ({"input_ids": []}, "input_ids is empty"),
    "too few labels": ({"input_ids": [1, 2], "labels": [1]}, "has 2 input_ids and 1 labels"),
    "a label of another token": ({"input_ids": [1, 2], "labels": [1, 3]}, "label 3 at 1 is neither -100 nor the token"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_says_why(case: str) -> None:
    values, reason = BAD[case]
    formats = {"messages": "chat", "input_ids": "tokens", "instruction": "instruction", "text": "text"}
    format_ = next((formats[name] for name in values if name in formats), "completion")
    data = data_of(format=format_)
    usable: dict[str, dict[str, Any]] = {"chat": {"messages": TURNS}, "completion": {"prompt": "q", "completion": "a"}}
    layout, _ = recognise(rows_of(usable.get(format_, values)), data, "data.train", "rows.jsonl")

    with pytest.raises(RowError) as raised:
        read_row(Row("rows.jsonl:1", values), layout, Writing())

    assert reason in str(raised.value)


def test_a_prompt_from_the_command_line_looks_like_one_of_training(tokenizer: Any) -> None:
    assert prompt_of("Greet.", data_of(format="instruction"), tokenizer) == (
        "### Instruction:\nGreet.\n\n### Response:\n"
    )
    assert prompt_of("Greet.", data_of(format="chat"), tokenizer) == "### User:\nGreet.\n\n### Assistant:\n"
    assert prompt_of("Greet.", data_of(format="text"), tokenizer) == "Greet."


def test_a_template_with_an_unknown_name_or_a_stray_brace_is_an_error() -> None:
    with pytest.raises(FieldError, match=r"data\.template: there is no \{question\}\. Use \{prompt\}\."):
        FORMATS["completion"].check_template("{question}")
    with pytest.raises(FieldError, match=r"data\.template: .* Write \{\{ and \}\}"):
        FORMATS["completion"].check_template("{prompt")


class Saying(ExampleFormat):
    """A format of a test, which nothing but the list of formats knows."""

    name = "saying"
    summary = "columns `author` and `saying`; only the saying is in the loss"
    columns = ("author", "saying")
    layouts = ({"author": "author", "saying": "saying"},)

    def default_template(self, texts: Mapping[str, str]) -> str:  # noqa: ARG002
        """Who said it."""
        return "{author} said: "


def test_a_format_needs_nothing_but_its_own_file_and_a_line_in_the_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Any
) -> None:
    monkeypatch.setitem(FORMATS, "saying", Saying())
    (tmp_path / "rows.jsonl").write_text('{"author": "Ada", "saying": "Hello."}\n', encoding="utf-8")

    prepared = prepare(Data(train=Source(path=str(tmp_path / "rows.jsonl"))), tokenizer).train

    assert prepared.formats == ["saying"]
    assert [asked[1:] for asked in pairs(prepared, tokenizer)] == [("Ada said:", " Hello.")]


def test_no_other_file_asks_which_format_it_is() -> None:
    asking = set()
    for path in PACKAGE.rglob("*.py"):
        compared = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Compare)]
        literals = {leaf.value for node in compared for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
        asking |= {path.parent.name for name in FORMATS if name in literals}

    assert asking <= {"formats"}
