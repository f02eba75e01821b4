"""A row becomes what is given and what is taught, as its format says."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from peftkit.data.formats import Example, examples, prompt_of
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data, Source

SOURCE = Source(path="rows.jsonl")


def examples_of(rows: list[dict[str, Any]], **fields: Any) -> list[Example]:
    data = Data.model_validate({"train": SOURCE, **fields})
    return list(examples(Dataset.from_list(rows), data, "data.train"))


def test_text_is_taught_whole() -> None:
    assert examples_of([{"text": "all of it"}]) == [Example(None, "all of it")]


def test_a_completion_has_its_prompt_before_it() -> None:
    assert examples_of([{"prompt": "q", "completion": "a"}], format="completion") == [Example("q", "a")]


def test_columns_and_template_fit_rows_of_another_shape() -> None:
    rows = [{"mr": "name[X]", "ref": "X is here.", "other": 1}]

    found = examples_of(
        rows, format="completion", columns={"prompt": "mr", "completion": "ref"}, template="Facts: {prompt}\n"
    )

    assert found == [Example("Facts: name[X]\n", "X is here.")]


def test_an_instruction_without_input_has_no_section_for_it() -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": None, "output": "Hi"},
    ]

    with_input, without = examples_of(rows, format="instruction")

    assert with_input.prompt == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    assert without.prompt == "### Instruction:\nGreet.\n\n### Response:\n"


def test_a_prompt_from_the_command_line_looks_like_one_of_training() -> None:
    data = Data(train=SOURCE, format="instruction")

    assert prompt_of("Greet.", data) == "### Instruction:\nGreet.\n\n### Response:\n"


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(
        FieldError, match=r"needs a column 'completion'; the rows have completions, prompt\. Set data\.col"
    ):
        examples_of([{"completions": "a", "prompt": "b"}], format="completion")


def test_a_template_with_an_unknown_name_is_an_error() -> None:
    with pytest.raises(FieldError, match=r"data\.template: there is no \{question\}\. Use \{prompt\}\."):
        examples_of([{"prompt": "q", "completion": "a"}], format="completion", template="{question}")


def test_a_value_that_is_no_text_is_named_by_its_row() -> None:
    with pytest.raises(DataError, match="row 2: completion is empty, not text"):
        examples_of([{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": None}], format="completion")
