"""A document has the ids of its whole text, and a token is in the loss if it holds anything that is learnt."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peftkit.data.formats.spans import ENDED, OPENED, STRADDLED, encode_spans, prompt_ids

TEXT = [
    "the negative answer is here\n\nand the positive one: 12 (x) there",
    "where are we? 日本 🚀 here and there " * 9,
]
SPECIAL = ["<s>", "</s>", "<unk>"]


@functools.cache
def made(kind: str) -> Any:
    """A tokenizer in the manner of GPT-2, Llama 3, Llama 2 or T5, with a token that takes the spaces behind it."""
    unigram = kind == "unigram"
    inner = Tokenizer(models.Unigram() if unigram else models.BPE(byte_fallback=kind == "metaspace", unk_token="<unk>"))
    alphabet: list[str] = []
    if kind.startswith("byte"):
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Metaspace()
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256) if kind == "metaspace")]
    if unigram:
        inner.train_from_iterator(
            TEXT, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
        )
    else:
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
        inner.train_from_iterator(TEXT, trainer)
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    trim = processors.ByteLevel(trim_offsets=True)
    inner.post_processor = processors.Sequence([trim, first]) if kind == "bytes, trimmed" else first
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("<turn>", rstrip=True, special=True)], special_tokens=True)
    return tokenizer


KINDS = ("bytes", "bytes, trimmed", "metaspace", "unigram")
WORDS = ["the", " ", "\n", "negative", "12", "日", "🚀", "<turn>", "(", "x", "\u00e9"]
PIECES = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=PIECES, completion=PIECES)
def test_the_ids_are_those_of_the_whole_text(kind: str, prompt: str, completion: str) -> None:
    tokenizer = made(kind)
    text = prompt + completion

    (found,) = encode_spans([(text, [(len(prompt), len(text))])], tokenizer, end=False)

    assert found.ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("kind", ["bytes", "bytes, trimmed"])
@given(*[PIECES.filter(lambda text: "<turn>" not in text)] * 2)  # decoding loses the spaces behind that
def test_what_is_in_the_loss_holds_all_of_the_completion_and_no_token_of_the_prompt_alone(
    kind: str, prompt: str, completion: str
) -> None:
    tokenizer = made(kind)
    text = prompt + completion

    (found,) = encode_spans([(text, [(len(prompt), len(text))])], tokenizer, end=False)

    given_ids = [token for token, counts in zip(found.ids, found.in_loss, strict=True) if not counts]
    learnt_ids = [token for token, counts in zip(found.ids, found.in_loss, strict=True) if counts]
    before, after = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (given_ids, learnt_ids))
    assert ("<s>" + prompt).startswith(before.rstrip("\ufffd"))
    assert after.endswith(completion) or "\ufffd" in after


@pytest.mark.parametrize("kind", ["bytes", "bytes, trimmed", "metaspace"])  # a unigram model weighs the word itself
@given(prompt=PIECES.filter(lambda text: not text.endswith(("the", "x", "12", "negative", "<turn>"))))
def test_a_prompt_has_the_ids_that_it_has_before_a_word(kind: str, prompt: str) -> None:
    tokenizer = made(kind)

    (found,) = encode_spans([(f"{prompt}we", [(len(prompt), len(prompt) + 2)])], tokenizer, end=False)

    assert found.ids[: found.in_loss.index(True)] == prompt_ids(prompt, tokenizer)


@pytest.mark.parametrize("word", ["negative", "zebra", "12", "日"])  # the first alone is one token with the space
def test_a_space_at_the_end_of_a_prompt_is_in_the_loss_with_what_follows_and_noted(word: str) -> None:
    tokenizer = made("bytes")

    (found,) = encode_spans([(f"the answer: {word}", [(12, 12 + len(word))])], tokenizer, end=True)

    learnt = [token for token, counts in zip(found.ids, found.in_loss, strict=True) if counts]
    assert tokenizer.decode(learnt) == f" {word}</s>"
    assert found.notes == (STRADDLED,)
    assert prompt_ids("the answer: ", tokenizer) == found.ids[: -len(learnt)]


@pytest.mark.parametrize(
    ("text", "ids", "notes"),
    [("x", "<s>x</s>", ()), ("<s>x", "<s>x</s>", (OPENED,)), ("<s>x</s>", "<s>x</s>", (OPENED, ENDED))],
)
def test_a_text_that_has_its_special_tokens_gets_no_others(text: str, ids: str, notes: tuple[str, ...]) -> None:
    tokenizer = made("bytes")

    (found,) = encode_spans([(text, [(0, len(text))])], tokenizer, end=True)

    assert (tokenizer.decode(found.ids), found.notes) == (ids, notes)


class InPython:
    """A tokenizer without offsets: a token for each word."""

    is_fast, eos_token_id, bos_token_id = False, 0, None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens=False)}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        assert not add_special_tokens
        return [len(word) for word in text.split()]


def test_a_tokenizer_without_offsets_tokenises_each_span_by_itself() -> None:
    (found,) = encode_spans([("how are you? fine", [(12, 17)])], InPython(), end=True)

    assert found[:2] == ([3, 3, 4, 4, 0], [False, False, False, True, True])
