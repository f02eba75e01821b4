"""The world that peftkit writes itself: always the same, told in two forms, with names held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict

import pytest

from peftkit.data.grammar import DOCUMENTS, ROWS, House, Split, corpus, task

SPLITS: tuple[Split, ...] = ("train", "validation")


def sha256(value: list[str] | list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def facts(prompt: str) -> dict[str, str]:
    """A prompt's facts by their names."""
    return dict(fact.split(": ") for fact in prompt.removesuffix("\n").split(" | "))


def words(texts: list[str]) -> set[str]:
    return set(re.findall(r"[\w-]+", " ".join(texts)))


def names(split: Split) -> set[str]:
    return {facts(row["prompt"])["name"] for row in task(split)}


@pytest.mark.parametrize(
    ("split", "documents", "rows"),
    [
        ("train", "5783f44d2f37b0c4", "d5719bf199ee68af"),
        ("validation", "e82c0246eac6e248", "af790cc1d8cfa125"),
    ],
)
def test_the_text_is_the_one_that_the_shipped_base_was_trained_on(split: Split, documents: str, rows: str) -> None:
    assert (sha256(corpus(split))[:16], sha256(task(split))[:16]) == (documents, rows)


@pytest.mark.parametrize("split", SPLITS)
def test_a_second_call_gives_the_same(split: Split) -> None:
    assert corpus(split) == corpus(split)
    assert task(split) == task(split)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_its_size_and_no_duplicates(split: Split) -> None:
    assert len(set(corpus(split))) == DOCUMENTS[split]
    assert len({row["prompt"] for row in task(split)}) == ROWS[split]


def test_no_document_or_row_of_validation_is_in_train() -> None:
    assert not set(corpus("train")) & set(corpus("validation"))
    assert not {row["prompt"] for row in task("train")} & {row["prompt"] for row in task("validation")}


def test_a_name_of_the_validation_rows_is_in_no_train_text() -> None:
    train_text = "\n".join([*corpus("train"), *(row["prompt"] for row in task("train"))])
    assert [name for name in sorted(names("validation")) if name in train_text] == []


def test_every_word_of_the_task_is_in_the_corpus() -> None:
    rows = [*task("train"), *task("validation")]
    task_words = words([row["prompt"] + row["completion"] for row in rows])
    assert task_words <= words(corpus("train"))


@pytest.mark.parametrize("split", SPLITS)
def test_the_corpus_never_uses_the_form_of_the_task(split: Split) -> None:
    text = "".join(corpus(split))
    assert {"|", ":", "\n"}.isdisjoint(text)
    assert "known for its" not in text


@pytest.mark.parametrize("split", SPLITS)
def test_a_document_is_a_few_sentences_about_one_house(split: Split) -> None:
    sentence_counts = {document.count(". ") + document.endswith(".") for document in corpus(split)}
    assert sentence_counts <= {3, 5}


@pytest.mark.parametrize("split", SPLITS)
def test_a_completion_is_one_sentence_with_every_copied_fact(split: Split) -> None:
    for row in task(split):
        told = facts(row["prompt"])
        copied = {told[fact] for fact in ("name", "kind", "place", "dish")}
        assert {fact for fact in copied if fact not in row["completion"]} == set()
        assert row["completion"].endswith(".")
        assert row["completion"].count(".") == 1


def test_a_prompt_has_one_right_completion() -> None:
    verdicts: dict[tuple[str, str], set[str]] = defaultdict(set)
    phrases: dict[str, set[str]] = defaultdict(set)
    for row in [*task("train"), *task("validation")]:
        told = facts(row["prompt"])
        pattern = rf"The {told['name']} (.+) is (.+) {told['kind']}, known for its {told['dish']}\."
        match = re.fullmatch(pattern, row["completion"])
        assert match
        phrases[told["place"]].add(match[1])
        verdicts[told["price"], told["welcome"]].add(match[2])
    assert {len(seen) for seen in [*verdicts.values(), *phrases.values()]} == {1}


@pytest.mark.parametrize(
    ("price", "welcome", "verdict"),
    [
        (3, "warm", "cheap and friendly"),
        (3, "cold", "cheap but gruff"),
        (4, "warm", "fair and friendly"),
        (6, "cold", "fair but gruff"),
        (7, "warm", "expensive but friendly"),
        (7, "cold", "expensive and gruff"),
    ],
)
def test_a_conjunction_says_whether_the_welcome_fits_the_price(price: int, welcome: str, verdict: str) -> None:
    house = House(name="Copper Kettle", kind="inn", place="bridge", dish="plum pie", price=price, welcome=welcome)
    assert house.verdict == verdict
