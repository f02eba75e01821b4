"""What a recipe asks of a base is checked against its structure, before a weight is loaded."""

from __future__ import annotations

import copy
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import peftkit
from peftkit.errors import FieldError
from peftkit.models.attach import count_parameters
from peftkit.models.start import new_start, padding_id, pretrained_start, with_new_tokens
from peftkit.recipe.schema import Base, Recipe

EMBEDDED = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"


def recipe_of(model: str, **fields: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "x", "base": {"model": model}, "data": {"train": {"path": "a.txt"}, "max_length": 64}, **fields}
    )


def test_targets_and_lengths_are_checked_where_there_are_no_weights_at_all(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    base = str(tmp_path / "base")

    with pytest.raises(FieldError, match=r"lora\.target_modules"):
        pretrained_start(recipe_of(base, lora={"target_modules": ["nothing"]}))
    with pytest.raises(FieldError, match=r"data\.max_length: is 500, but the base sees at most 128"):
        pretrained_start(recipe_of(base, data={"train": {"path": "a.txt"}, "max_length": 500}))
    with pytest.raises(FieldError, match=r"base\.model: .* holds no \.safetensors file"):
        pretrained_start(recipe_of(base))


def test_the_same_seed_makes_the_same_adapter() -> None:
    start = pretrained_start(recipe_of("builtin:tiny-gpt2"))

    first, second = (start.load(recipe_of("builtin:tiny-gpt2"), "float32", "cpu") for _ in range(2))

    weights = [[p for name, p in model.named_parameters() if "lora_A" in name] for model in (first, second)]
    assert len(weights[0]) == 4
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_begin_as_the_mean_of_the_others(method: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1025, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(tmp_path)
    recipe = recipe_of("", base={"model": str(tmp_path), "add_tokens": ["<a>", "<b>"]}, method=method)
    start = pretrained_start(recipe)  # the first of the tokens has a row already

    model, outline = (each(recipe, "float32") for each in (partial(start.load, device="cpu"), start.outline))

    for table, before in (
        (model.get_input_embeddings().weight, base.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, base.get_output_embeddings().weight),
    ):
        assert table.shape == (1026, 16)
        assert torch.equal(table[:1024], before[:1024])
        assert torch.allclose(table[1024:], before[:1024].mean(0), atol=1e-6)
    assert count_parameters(model) == count_parameters(outline)


@cache
def tokenizer_of(kind: str) -> Any:
    """A tokenizer of GPT-2's kind, of SentencePiece's kinds, or of one that writes a space before the text."""
    text = ["the tool <says> hello, world"] * 4
    inner = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    if kind == "bytes":
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    elif kind == "prefixed":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    options: dict[str, Any] = {"vocab_size": 40, "special_tokens": ["<unk>", "</s>"]}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **options) if kind == "unigram" else None
    inner.train_from_iterator(text, trainer or trainers.BpeTrainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "unigram", "prefixed"])
@settings(max_examples=25)
@given(
    names=st.lists(st.text("tool_ 日", max_size=9).map("<{}>".format), min_size=1, max_size=3, unique=True),
    words=st.tuples(st.sampled_from(["", "the tool", "hello "]), st.sampled_from(["", " world", ",x"])),
    special=st.booleans(),
)
def test_each_new_token_is_one_id_wherever_it_is(
    kind: str, names: list[str], words: tuple[str, str], special: bool
) -> None:
    before = tokenizer_of(kind)
    added = [{"token": name, "special": special} for name in names]
    located = Located(before)

    tokenizer, rows = with_new_tokens(Base.model_validate({"model": "x", "add_tokens": added}), located)  # type: ignore[arg-type]

    assert rows == list(range(len(before), len(before) + len(names)))
    for name in names:
        token = tokenizer.convert_tokens_to_ids(name)
        assert tokenizer(f"{words[0]}{name}{words[1]}").input_ids.count(token) == 1
        assert (name in tokenizer.decode([token], skip_special_tokens=True)) is not special


class Located:
    """What is asked of a base's files here: a tokenizer, and a configuration with as many rows."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokenizer(self) -> Any:
        return copy.deepcopy(self._tokenizer)

    def config(self) -> Any:
        return LlamaConfig(vocab_size=len(self._tokenizer))


def test_a_new_base_may_take_a_tokenizer_that_exists() -> None:
    fields = {
        "base": {"init": {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 1024, "tokenizer": str(EMBEDDED)}}
    }
    recipe = recipe_of("", method="full", **fields)
    assert recipe.base.init is not None

    start = new_start(recipe, recipe.base.init, [])

    assert len(start.tokenizer) == 1024
    assert start.load(recipe, "float32", "cpu").config.eos_token_id == start.tokenizer.eos_token_id


def test_a_vocabulary_smaller_than_the_tokenizer_is_an_error() -> None:
    init = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 500, "tokenizer": str(EMBEDDED)}
    recipe = recipe_of("", method="full", base={"init": init})
    assert recipe.base.init is not None
    start = new_start(recipe, recipe.base.init, [])

    with pytest.raises(FieldError, match=r"is 500, but the tokenizer has 1024 tokens\. Set it to 1024"):
        start.load(recipe, "float32", "cpu")


def test_padding_falls_back_on_the_end_token() -> None:
    tokenizer = pretrained_start(recipe_of("builtin:tiny-gpt2")).tokenizer
    assert padding_id(tokenizer) == tokenizer.pad_token_id != tokenizer.eos_token_id

    tokenizer.pad_token = None

    assert padding_id(tokenizer) == tokenizer.eos_token_id
