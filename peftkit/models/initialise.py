"""A new base from nothing: a GPT-2 of a given shape with random weights, and a tokenizer trained for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peftkit.errors import FieldError
from peftkit.recipe.schema import Init

__all__ = ["END_OF_TEXT", "PADDING", "initialise_model", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
"""A token of its own: were it the end of text, padding would be told from a real end by nothing but its place."""


def train_tokenizer(texts: Iterable[str], init: Init) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) of exactly `init.vocab_size` tokens.

    Raises:
        FieldError: the texts have too few different parts for so many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=init.vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != init.vocab_size:
        what = f"the training text gives {tokenizer.get_vocab_size()} tokens, not {init.vocab_size}."
        remedy = f"Set it to {tokenizer.get_vocab_size()}, or train on more text."
        raise FieldError("base.init.vocab_size", what, remedy=remedy)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=init.n_positions,
        clean_up_tokenization_spaces=False,
    )


def initialise_model(init: Init, tokenizer: Any, dropout: float | None) -> Any:
    """Make a GPT-2 (Radford et al. 2019) with random weights; the caller has set the seed.

    Raises:
        FieldError: the tokenizer knows more tokens than the model would.
    """
    from transformers import GPT2Config, GPT2LMHeadModel  # takes a second, and all but a new base does without

    if len(tokenizer) > init.vocab_size:
        what = f"is {init.vocab_size}, but the tokenizer has {len(tokenizer)} tokens."
        raise FieldError("base.init.vocab_size", what, remedy=f"Set it to {len(tokenizer)} or more.")
    probabilities = {} if dropout is None else dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = GPT2Config(
        **init.model_dump(exclude={"tokenizer"}),
        **probabilities,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)
