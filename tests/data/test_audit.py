"""The audit's figures are those that one counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.audit import Audit, audit, check
from peftkit.data.prepare import prepare
from peftkit.errors import FieldError
from peftkit.recipe.schema import Data

TRAIN = [("ask:", "yes"), ("long ask:", "no"), ("ask:", "yes")]
VALIDATION = [("ask:", "yes"), ("other:", "maybe")]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    lines = [json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def data_of(tmp_path: Path, **fields: Any) -> Data:
    return Data.model_validate(
        {
            "train": {"path": write(tmp_path / "train.jsonl", TRAIN)},
            "validation": {"path": write(tmp_path / "validation.jsonl", VALIDATION)},
            "format": "completion",
            "max_length": 32,
            **fields,
        }
    )


def audit_of(data: Data, tokenizer: Any, *, tokens: bool = False) -> Audit:
    return audit(prepare(data, tokenizer), tokenizer, 2, tokens=tokens)


def test_every_figure_is_the_one_counted_by_hand(tmp_path: Path, tokenizer: Any) -> None:
    # a token a byte: "ask:yes" and "long ask:no", each with its end, are 8, 12 and 8 tokens
    train = audit_of(data_of(tmp_path), tokenizer).train

    assert (train.counts.documents, train.duplicates) == (3, 1)
    assert train.length_quantiles == {"50%": 8, "90%": 8, "99%": 8, "longest": 12}
    assert train.counts.tokens == 28
    assert train.taught == pytest.approx((4 + 3 + 4) / 28)
    assert train.filled == pytest.approx(28 / (12 * 2 + 8))
    assert train.ends_taught == 1
    assert train.cut == 0


TURNS = [("user", "Hi"), ("assistant", "Yo"), ("user", "Bye"), ("assistant", "So long")]
FORMATS: dict[str, tuple[list[dict[str, Any]], int, int]] = {
    # rows, tokens and taught tokens of them together, a byte a token and an end token for each taught part
    "text": ([{"text": "abc"}, {"text": "de"}], 4 + 3, 3 + 2),
    "completion": ([{"input": "abc", "output": "de"}], 3 + 3, 3),
    "instruction": (
        [{"instruction": "Add.", "output": "3"}],
        len("### Instruction:\nAdd.\n\n### Response:\n") + 2,
        2,
    ),
    "chat": (
        [{"messages": [{"role": role, "content": text} for role, text in TURNS]}],
        len("### User:\nHi\n\n### Assistant:\nYo\n\n### User:\nBye\n\n### Assistant:\nSo long") + 2,
        len("Yo") + 1 + len("So long") + 1,
    ),
    "chat of ShareGPT": (
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}],
        len("### User:\nHi\n\n### Assistant:\nYo") + 1,
        3,
    ),
    "tokens": ([{"input_ids": [9, 8, 7, 0], "labels": [-100, -100, 7, 0]}], 4, 2),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_figures_of_each_format_are_those_counted_by_hand(name: str, tmp_path: Path, tokenizer: Any) -> None:
    rows, tokens, taught = FORMATS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    train = audit_of(Data.model_validate({"train": {"path": str(path)}, "max_length": 128}), tokenizer).train

    assert train.sources[0].format == name.split()[0]
    assert (train.counts.tokens, train.counts.label_tokens) == (tokens, taught)
    assert (train.counts.documents, train.ends_taught) == (len(rows), 1)


def test_what_stands_in_train_and_validation_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    leak = audit_of(data_of(tmp_path), tokenizer).leak

    # "yes" with its end is taught in both; "maybe" with its end only in validation
    assert leak.documents == 1
    assert leak.share == pytest.approx(4 / (4 + 6))


def test_the_documents_shown_are_apart_in_given_and_taught(tmp_path: Path, tokenizer: Any) -> None:
    first, second = audit_of(data_of(tmp_path), tokenizer).shown

    assert first.runs == [(False, "ask:"), (True, "yes<|end|>")]
    assert second.runs == [(False, "long ask:"), (True, "no<|end|>")]


def test_a_conversation_is_shown_turn_by_turn(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FORMATS["chat"][0][0]) + "\n", encoding="utf-8")

    (shown,) = audit_of(Data.model_validate({"train": {"path": str(path)}}), tokenizer).shown

    assert [text for taught, text in shown.runs if taught] == ["Yo<|end|>", "So long<|end|>"]


def test_a_document_is_shown_as_it_is_decoded_whole_though_its_tokens_are_bytes(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Where? 日", "completion": "本 there 🚀"}\n', encoding="utf-8")

    (shown,) = audit_of(Data.model_validate({"train": {"path": str(path)}}), tokenizer, tokens=True).shown

    assert shown.runs == [(False, "Where? 日"), (True, "本 there 🚀<|end|>")]
    assert "".join(token.text for token in shown.tokens) == "Where? 日本 there 🚀<|end|>"
    assert "".join(token.text for token in shown.tokens if token.in_loss) == "本 there 🚀<|end|>"
    assert [token.token for token in shown.tokens] == tokenizer.convert_ids_to_tokens([t.id for t in shown.tokens])


def test_what_is_shown_ends_where_training_would_cut_and_says_so(tmp_path: Path, tokenizer: Any) -> None:
    first, second = audit_of(data_of(tmp_path, max_length=10), tokenizer, tokens=True).shown

    assert (first.more, second.more) == (0, 2)
    assert [len(first.tokens), len(second.tokens)] == [8, 10]


def test_ends_that_are_cut_off_are_not_taught(tmp_path: Path, tokenizer: Any) -> None:
    train = audit_of(data_of(tmp_path, max_length=10), tokenizer).train

    assert train.ends_taught == pytest.approx(2 / 3)
    assert (train.counts.cut_documents, train.counts.cut_tokens) == (1, 2)
    assert train.cut == pytest.approx(1 / 3)


def test_documents_that_are_split_are_counted_and_lose_nothing(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "text.txt").write_text("a\n" + "b" * 20 + "\n", encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(tmp_path / "text.txt")}, "max_length": 8})

    train = audit_of(data, tokenizer).train

    assert (train.counts.split_documents, train.split) == (1, 0.5)
    assert (train.counts.cut_tokens, train.counts.tokens) == (0, 2 + 21)


def test_a_share_that_is_held_out_is_told(tmp_path: Path, tokenizer: Any) -> None:
    found = audit_of(data_of(tmp_path, validation=0.4), tokenizer)

    assert found.validation is not None
    assert (found.train.held_out, found.validation.held_out) == (None, 0.4)


def test_packed_text_fills_its_slots(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "text.txt").write_text("abc\n" * 8, encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(tmp_path / "text.txt")}, "max_length": 16})

    train = audit_of(data, tokenizer).train

    assert train.packed
    assert (train.filled, train.duplicates, train.ends_taught) == (1.0, 7, 1.0)


def test_a_leak_of_completions_is_an_error_unless_it_is_allowed(tmp_path: Path, tokenizer: Any) -> None:
    strict, loose = data_of(tmp_path), data_of(tmp_path, max_leaked=0.5)

    with pytest.raises(
        FieldError, match=r"data\.validation: 1 validation documents, 40\.0% of the tokens, are trained on"
    ):
        check(prepare(strict, tokenizer), strict)
    assert check(prepare(loose, tokenizer), loose) == [
        "1 validation documents, 40.0% of the tokens, are trained on too."
    ]


def test_a_few_lines_of_text_may_repeat_and_a_copy_may_not(tmp_path: Path, tokenizer: Any) -> None:
    for name, lines in (("train", ["KING:", "a", "b"]), ("validation", ["KING:", "c" * 80]), ("copy", ["a", "b", "c"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    few, copy = (
        Data.model_validate(
            {"train": {"path": str(tmp_path / "train.txt")}, "validation": {"path": str(tmp_path / f"{name}.txt")}}
        )
        for name in ("validation", "copy")
    )

    assert "1 validation documents, 5.9% of the tokens" in check(prepare(few, tokenizer), few)[0]
    with pytest.raises(FieldError, match="are trained on too"):
        check(prepare(copy, tokenizer), copy)


def test_a_chat_template_that_eats_the_end_token_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FORMATS["chat"][0][0]) + "\n", encoding="utf-8")
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    data = Data.model_validate({"train": {"path": str(path)}, "template": template})

    with pytest.raises(FieldError, match=r"data\.template: the chat template writes no end token"):
        check(prepare(data, tokenizer), data)


def test_documents_that_never_end_are_told(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [9, 8, 7]}\n', encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(path)}})

    assert check(prepare(data, tokenizer), data) == [
        "no training document has its end token in the loss, so the model will not learn to stop."
    ]


def test_data_that_teaches_nothing_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(FieldError, match="no token would be in the loss"):
        audit_of(data_of(tmp_path, max_length=2), tokenizer)


def test_rows_and_documents_of_each_source_are_told(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\nbad\n{"text": "b"}\n', encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(path)}, "on_bad_rows": "skip"})

    (source,) = audit_of(data, tokenizer).train.sources

    assert (source.rows, source.documents, source.format) == (3, 2, "text")
    assert source.first_bad == [f"{path}:2: is not JSON: Expecting value at column 1."]
