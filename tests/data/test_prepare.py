"""A source becomes sequences, and every token of it is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peftkit.data.corpus import Corpus, Part, Reading
from peftkit.data.documents import Documents
from peftkit.data.formats.format import NO_LABEL
from peftkit.data.prepare import Prepared, hold_out, mix, prepare, prepare_validation, texts
from peftkit.data.prompts import pairs
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def data_of(path: Path, **fields: Any) -> Data:
    return Data.model_validate({"train": {"path": str(path)}, **fields})


def prepared(path: Path, tokenizer: Any, **fields: Any) -> Prepared:
    return prepare(data_of(path, **fields), tokenizer).train


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("alpha\n\nbeta gamma\n   \ndelta\n", encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "ask:", "completion": "yes"}\n{"prompt": "long ask:", "completion": "no"}\n')
    return path


def test_packed_documents_restart_their_positions_and_their_first_token_is_not_taught(
    lines: Path, tokenizer: Any
) -> None:
    result = prepared(lines, tokenizer, max_length=32)

    assert result.packed
    assert len(result.sequences) == 1
    row = result.sequences[0]
    starts = [index for index, position in enumerate(row["position_ids"]) if position == 0]
    assert starts == [0, 6, 17]
    assert [index for index, label in enumerate(row["labels"]) if label == NO_LABEL] == starts
    assert tokenizer.decode(row["input_ids"]) == "alpha<|end|>beta gamma<|end|>delta<|end|>"


def test_every_document_and_token_is_counted(lines: Path, tokenizer: Any) -> None:
    counts = prepared(lines, tokenizer, max_length=32).counts

    assert (counts.documents, counts.empty_rows, counts.tokens, counts.label_tokens) == (3, 2, 23, 20)


def test_only_the_completion_and_its_end_are_taught(rows: Path, tokenizer: Any) -> None:
    result = prepared(rows, tokenizer, max_length=32)

    taught = [
        [int(label) for label in row["labels"] if label != NO_LABEL]
        for row in map(result.sequences.__getitem__, (0, 1))
    ]
    assert [tokenizer.decode(labels) for labels in taught] == ["yes<|end|>", "no<|end|>"]
    assert not result.packed


def test_text_longer_than_a_sequence_goes_on_in_the_next(lines: Path, tokenizer: Any) -> None:
    result = prepared(lines, tokenizer, max_length=4, packing=False)

    assert result.counts.tokens == 23
    assert result.counts.cut_tokens == 0


def test_cut_documents_and_lost_tokens_are_counted_and_told(rows: Path, tokenizer: Any) -> None:
    result = prepared(rows, tokenizer, max_length=10)

    assert (result.counts.cut_documents, result.counts.cut_tokens) == (1, 2)
    assert "1 documents cut (2 tokens lost)" in result.summary()


def test_a_prompt_that_fills_the_sequence_is_left_out_and_told(rows: Path, tokenizer: Any) -> None:
    result = prepared(rows, tokenizer, max_length=8)

    assert result.counts.untaught_documents == 1
    assert "1 left out" in result.summary()


def test_data_that_teaches_nothing_is_an_error(rows: Path, tokenizer: Any) -> None:
    with pytest.raises(
        FieldError, match=r"no token would be in the loss: .* 0 have no label, and 2 have none within max_length 3"
    ):
        prepared(rows, tokenizer, max_length=3)


def test_text_of_nothing_but_empty_lines_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n\n \n", encoding="utf-8")

    with pytest.raises(FieldError, match="no token would be in the loss: of 3 rows, 3 are empty"):
        prepared(path, tokenizer)


def test_rows_whose_labels_are_all_masked_are_an_error(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}\n' * 3, encoding="utf-8")

    with pytest.raises(FieldError, match=r"data\.train: no token would be in the loss: of 3 rows, .* 3 have no label"):
        prepared(path, tokenizer)


def test_truncation_error_names_the_document(rows: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the longest, document 2, has 12 tokens"):
        prepared(rows, tokenizer, max_length=10, truncation="error")


def test_validation_may_be_missing(lines: Path, tokenizer: Any) -> None:
    result = prepare(data_of(lines), tokenizer)

    assert result.train.counts.documents == 3
    assert result.validation is None


def test_a_share_is_held_out_the_same_way_each_time(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"line {number}\n" for number in range(100)), encoding="utf-8")
    data = data_of(path, validation=0.1)

    result, alone = prepare(data, tokenizer), prepare_validation(data, tokenizer)

    assert result.validation is not None
    assert alone is not None
    assert (result.train.counts.documents, result.validation.counts.documents) == (90, 10)
    assert alone.record() == result.validation.record()
    assert alone.record()["held_out"] == 0.1


def test_sources_of_several_formats_make_one_data_set(lines: Path, rows: Path, tokenizer: Any) -> None:
    data = Data.model_validate({"train": [{"path": str(lines)}, {"path": str(rows)}], "max_length": 32})

    result = prepare(data, tokenizer).train

    assert result.formats == ["text", "completion"]
    assert not result.packed
    assert result.counts.documents == 5
    assert len(result.record()["sources"]) == 2


def test_texts_for_a_tokenizer_hold_prompt_and_completion(rows: Path) -> None:
    assert list(texts(data_of(rows))) == ["ask:yes", "long ask:no"]


def test_what_a_model_writes_is_compared_with_the_completion(rows: Path, tokenizer: Any) -> None:
    result = prepared(rows, tokenizer)

    found = pairs(result, tokenizer)

    assert [asked[1:] for asked in found] == [("ask:", "yes"), ("long ask:", "no")]
    assert [asked.ids for asked in found] == [tuple(tokenizer(text)["input_ids"]) for text in ("ask:", "long ask:")]
    assert pairs(result, tokenizer, 1) == found[:1]


def test_of_a_conversation_the_last_answer_is_compared(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant") * 2]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")

    ((_, prompt, completion),) = pairs(prepared(path, tokenizer), tokenizer)

    assert prompt.count("### Assistant:\n") == 2
    assert prompt.endswith("### Assistant:\n")
    assert completion == "a"


def test_plain_text_has_no_completions_to_compare_with(lines: Path, tokenizer: Any) -> None:
    with pytest.raises(FieldError, match="text has no completions"):
        pairs(prepared(lines, tokenizer), tokenizer)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real texts are not on this machine")
def test_real_text_is_packed_without_losing_a_token() -> None:
    from transformers import AutoTokenizer

    gpt2 = AutoTokenizer.from_pretrained(SHARED / "models" / "gpt2-tokenizer")
    path = SHARED / "data" / "wikitext2-part.txt"
    result = prepared(path, gpt2, max_length=128)

    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    expected = sum(len(ids) + 1 for ids in gpt2(lines, verbose=False)["input_ids"])
    assert result.counts.tokens == pytest.approx(expected, rel=1e-3)
    assert result.counts.tokens / (result.counts.sequences * 128) > 0.98
    assert json.dumps(result.record())


def part_of(digests: list[int]) -> Part:
    count = len(digests)
    documents = Documents(
        input_ids=np.arange(2 * count, dtype=np.int32),
        taught=np.tile(np.array([False, True]), count),
        lengths=np.full(count, 2, np.int32),
        label_tokens=np.ones(count, np.int32),
        ends=np.ones(count, np.bool_),
        digests=np.array(digests, np.uint64),
    )
    return Part.whole(Corpus("rows", {}, Reading("text", "of a test"), documents, [0], None, str))


def digests_of(parts: list[Part]) -> list[int]:
    return [int(digest) for part in parts for digest in part.corpus.documents.digests[part.chosen]]


@given(digests=st.lists(st.integers(0, 30), min_size=4, max_size=60), share=st.floats(0.1, 0.9), seed=st.integers(0, 9))
def test_every_document_is_on_one_side_and_equal_ones_on_the_same(digests: list[int], share: float, seed: int) -> None:
    half = len(digests) // 2
    try:
        train, held_out = hold_out([part_of(digests[:half]), part_of(digests[half:])], share, seed)
    except FieldError:
        assume(False)

    assert sorted(digests_of(train) + digests_of(held_out)) == sorted(digests)
    assert not set(digests_of(train)) & set(digests_of(held_out))
    assert len(digests_of(held_out)) <= max(1, round(share * len(digests)))


def test_a_share_of_different_documents_is_exact_and_drawn_by_the_seed() -> None:
    parts = [part_of(list(range(1000)))]
    first, again, other = (digests_of(hold_out(parts, 0.05, seed)[1]) for seed in (1, 1, 2))

    assert len(first) == 50
    assert first == again != other


def test_a_share_that_holds_nothing_out_is_an_error() -> None:
    with pytest.raises(FieldError, match=r"data\.validation: 0\.5 of 4 documents, 1 of them different, cannot be held"):
        hold_out([part_of([7, 7, 7, 7])], 0.5, 42)


def test_without_weights_every_document_comes_once() -> None:
    assert digests_of(mix([part_of([1, 2]), part_of([3])], [None, None], 42)) == [1, 2, 3]


def test_weights_give_shares_of_all_documents_whatever_the_sizes_of_the_sources() -> None:
    small, large = part_of(list(range(10))), part_of(list(range(100, 190)))

    mixed = mix([small, large], [1, 1], 42)

    assert [len(part.chosen) for part in mixed] == [50, 50]
    assert sorted(digests_of(mixed[:1])) == sorted(list(range(10)) * 5)
    assert len(set(digests_of(mixed[1:]))) == 50


def test_what_is_drawn_for_a_share_is_drawn_by_the_seed() -> None:
    parts = [part_of(list(range(50))), part_of(list(range(100, 150)))]
    first, again, other = (digests_of(mix(parts, [3, 1], seed)) for seed in (1, 1, 2))

    assert first == again != other
