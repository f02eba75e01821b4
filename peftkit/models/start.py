"""The model that a run trains: what it will be is known from its structure, before a weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from peftkit import console
from peftkit.errors import FieldError, printable
from peftkit.models.attach import begin_rows, embedding_modules, grow_vocabulary, matches, tied_modules
from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.dtypes import hold
from peftkit.models.methods import TokenRows, method_named
from peftkit.models.quantization import load_base
from peftkit.planning.decisions import Dtype
from peftkit.recipe.hyperparameters import Base, Init
from peftkit.recipe.schema import Recipe
from peftkit.shortage import memory_for

__all__ = ["Start", "new_start", "padding_id", "positions", "pretrained_start", "with_dropout", "with_new_tokens"]

_DROPOUT = re.compile(r"(?!classifier|summary|pooler|head|seq)(\w+_)?(dropout|pdrop)(_prob|_rate)?")
"""The fields of configurations that drop numbers of a language model; heads that are not its own have others."""

_END_OF_TEXT = "<|endoftext|>"
_PADDING = "<|pad|>"
"""A token of its own: were it the end of text, only its place would distinguish padding from a real end."""


@dataclass(frozen=True)
class Start:
    """A base, checked against the recipe, and what will be trained on it."""

    tokenizer: Any
    targets: list[str]
    """Full names of the modules that get an adapter; none for method full."""

    located: LocatedBase | None
    """None for a base made from `init`."""

    config: Any
    """None for a base made from `init`, which makes its own."""

    new_rows: Sequence[int] = ()
    """Token ids, in order, of `base.add_tokens` and of any other row that the embedding gets."""

    trained_rows: TokenRows | None = None
    """Those that are trained alone; None where embedding and head are trained as a whole, or not at all."""

    @property
    def vocabulary(self) -> int:
        """The rows of the embedding that is trained with."""
        if self.config is None:
            return len(self.tokenizer)
        return max([int(self.config.get_text_config().vocab_size), *(row + 1 for row in self.new_rows[-1:])])

    def load(self, recipe: Recipe, base_dtype: Dtype, device: str) -> Any:
        """The model on its device, ready to train; the seed is set first, so a recipe always starts from the same.

        Raises:
            MemoryRunError: it does not fit into memory.
        """
        from transformers import set_seed  # its module imports PEFT, which takes seconds and evaluation can do without

        set_seed(recipe.training.seed)
        if self.located is None:
            with memory_for("the new base", where="base.init", remedy="Lower its n_layer or n_embd."):
                return _initialised(recipe.base, self.tokenizer).to(device)
        base = load_base(self.located, self.config, recipe.base_quantization, base_dtype, device)
        if self.new_rows:
            grow_vocabulary(base, self.vocabulary)
            begin_rows(base, self.new_rows)
        if recipe.trains_adapter and recipe.training.activation_checkpointing:
            base.enable_input_require_grads()  # frozen inputs would cut the graph at the first checkpoint
        method = method_named(recipe.method)
        with memory_for("the adapter", where=recipe.traits.section or "method", remedy=method.smaller):
            return method.attach(base, recipe.adapter, self.targets, self.located.folder, self.trained_rows)

    def outline(self, recipe: Recipe, base_dtype: Dtype) -> Any:
        """The model that `load` gives, without weights, on the meta device; a quantised base is whole in it."""
        with torch.device("meta"):
            if self.located is None:
                return _initialised(recipe.base, self.tokenizer)
            base = self.located.structure(self.config)
            grow_vocabulary(base, self.vocabulary)
            method, folder = method_named(recipe.method), self.located.folder
            return method.attach(hold(base, base_dtype), recipe.adapter, self.targets, folder, self.trained_rows)

    def record(self) -> dict[str, Any]:
        """What a manifest says about the base."""
        return self.located.record() if self.located else {"model": None, "revision": None, "sha256": None}


def pretrained_start(recipe: Recipe) -> Start:
    """A pretrained base, of which only the structure has been looked at.

    Raises:
        FieldError: targets that it has not, sequences longer than it can see, or tokens that are not new.
        BaseError: it cannot be opened.
    """
    outline = locate_base(recipe.base, weights=False)
    config = with_dropout(outline.config(), recipe.base.dropout)
    _check_length(recipe, positions(config))
    _check_stored(recipe, getattr(config, "quantization_config", None))
    method = method_named(recipe.method)
    structure = outline.structure(config)
    targets = method.targets(structure, recipe.adapter) if recipe.trains_adapter else []
    located = locate_base(recipe.base)
    tokenizer, rows = with_new_tokens(recipe.base, located)
    trained = _trained_rows(recipe, structure, targets, rows) if rows and recipe.trains_adapter else None
    return Start(tokenizer, targets, located, config, rows, trained)


def new_start(recipe: Recipe, init: Init, texts: Iterable[str]) -> Start:
    """A base from nothing, with its tokenizer trained on `texts` unless the recipe names one.

    Raises:
        FieldError: vocabulary or lengths do not fit.
    """
    _check_length(recipe, init.n_positions)
    if init.tokenizer is None:
        return Start(_trained_tokenizer(texts, init), [], None, None)
    located = locate_base(Base(model=init.tokenizer), weights=False, field="base.init.tokenizer")
    return Start(located.tokenizer(), [], None, None)


def with_new_tokens(base: Base, located: LocatedBase) -> tuple[Any, list[int]]:
    """A base's tokenizer with the recipe's new tokens, and the ids of the rows that are new, in order.

    Where the embedding grows, that is every row that it gets: some may be of tokens that only the tokenizer had.

    Raises:
        FieldError: the base has one of the tokens, and a row for it.
    """
    tokenizer = located.tokenizer()
    if not base.add_tokens:
        return tokenizer, []
    rows, known = located.config().get_text_config().vocab_size, tokenizer.get_vocab()
    for number, new in enumerate(base.new_tokens):
        place = known.get(new.token)
        if place is not None and place < rows:
            what = f"the base has {printable(new.token)} already, as token {place:,}, with a row of its embedding."
            remedy = "Remove it; method: full, or modules_to_save, trains the row too."
            raise FieldError(f"base.add_tokens.{number}", what, remedy=remedy)
        added = None if place is None else tokenizer.added_tokens_decoder.get(place)
        if added is None or (new.special and not added.special):
            token = AddedToken(new.token, special=new.special, normalized=False)
            tokenizer.add_tokens([token], special_tokens=new.special)
    vocabulary = tokenizer.get_vocab()
    named = {vocabulary[new.token] for new in base.new_tokens}
    return tokenizer, sorted({*named, *range(rows, max(vocabulary.values()) + 1)})


def _trained_rows(recipe: Recipe, structure: Any, targets: list[str], rows: list[int]) -> TokenRows | None:
    """By module, the rows that are trained alone: of the embedding and, if it is another matrix, of the head.

    Raises:
        FieldError: the method or PEFT cannot do that.
    """
    method, section = method_named(recipe.method), recipe.traits.section
    modules, saved = embedding_modules(structure), recipe.adapter.modules_to_save or []
    whole = [name for name in modules if any(matches(name, pattern) for pattern in saved)]
    if whole == modules:
        return None
    named = f"{section}.modules_to_save: [{', '.join(modules)}]"
    if whole:
        what = f"trains {whole[0]} as a whole, and base.add_tokens rows of the other: embedding and head need the same."
        raise FieldError(f"{section}.modules_to_save", what, remedy=f"Set {named}, or remove {whole[0]}.")
    adapted = next((name for name in modules if name in targets), None)
    reason = None
    if not method.trains_rows:
        reason = f"{method.name} cannot train single rows of {modules[0]}"
    elif adapted:
        reason = f"PEFT cannot train single rows of {adapted}, which has an adapter"
    elif getattr(structure.get_output_embeddings(), "bias", None) is not None:
        reason = f"PEFT would lose the bias of {modules[-1]} where it trains single rows"
    if reason:
        remedy = f"Train both whole with {named}, or use method: full."
        raise FieldError("base.add_tokens", f"{reason}.", remedy=remedy)
    return dict.fromkeys(modules[:1] if tied_modules(structure) else modules, rows)


def padding_id(tokenizer: Any) -> int:
    """The token to fill rows with. Labels are masked by place: a real end of text is in the loss even where it pads."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def positions(config: Any) -> int | None:
    """The tokens that a model can see at once; None where its structure has no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def with_dropout(config: PreTrainedConfig, dropout: float | None) -> PreTrainedConfig:
    """A configuration with this probability in all places where it has dropout; unchanged if it is None.

    Raises:
        FieldError: the architecture has no dropout to set.
    """
    places = list(_dropouts(config.get_text_config())) if dropout is not None else []
    if dropout is not None and not places:
        raise FieldError("base.dropout", f"{config.model_type} has no dropout to set.", remedy="Remove it.")
    for part, name in places:
        try:
            setattr(part, name, dropout)
        except StrictDataclassFieldValidationError:  # MPT's says that it is a whole number
            console.warning(f"base.dropout leaves {name} as it is, as {config.model_type} takes no share there.")
    return config


def _dropouts(config: PreTrainedConfig) -> Iterator[tuple[PreTrainedConfig, str]]:
    """The places of a configuration that have a probability of dropout, in its parts too: each a part and a name."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _dropouts(value)
        elif _DROPOUT.fullmatch(name) and (value is None or type(value) in (int, float)):
            yield config, name


def _check_length(recipe: Recipe, seen: int | None) -> None:
    if seen is not None and recipe.data.max_length > seen:
        what = f"is {recipe.data.max_length}, but the base sees at most {seen} tokens."
        raise FieldError("data.max_length", what, remedy=f"Set it to {seen} or less.")


def _check_stored(recipe: Recipe, stored: dict[str, Any] | None) -> None:
    """See that a recipe asks for nothing else of a base that is quantised on the disk, and report that it is.

    Raises:
        FieldError: its weights cannot be trained, or are quantised in another way than the recipe says.
    """
    if stored is None:
        return
    library, wanted = stored.get("quant_method"), recipe.base_quantization
    what = f"the base is quantised on the disk by {library}"
    if not recipe.trains_adapter:
        raise FieldError("base.model", f"{what}: its weights cannot be trained.", remedy="Use method: qlora.")
    if wanted and wanted.backend != library:
        raise FieldError("quantization.backend", f"is {wanted.backend}, but {what}.", remedy="Use method: lora.")
    for name, value in (wanted.model_dump(exclude={"backend"}) if wanted else {}).items():
        if stored.get(name, value) != value:
            remedy = f"Set it to {str(stored[name]).lower()}, as it is there."
            raise FieldError(f"quantization.{name}", f"would have no effect: {what}.", remedy=remedy)
    if not wanted:
        console.warning(f"{what}, and stays so: method {recipe.method} trains an adapter on the quantised weights.")


def _trained_tokenizer(texts: Iterable[str], init: Init) -> PreTrainedTokenizerFast:
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
        special_tokens=[_END_OF_TEXT, _PADDING],
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
        **dict.fromkeys(("eos_token", "bos_token", "unk_token"), _END_OF_TEXT),
        pad_token=_PADDING,
        model_max_length=init.n_positions,
        clean_up_tokenization_spaces=False,
    )


def _initialised(base: Base, tokenizer: Any) -> Any:
    """A GPT-2 (Radford et al. 2019) with random weights; the caller has set the seed.

    Raises:
        FieldError: the tokenizer knows more tokens than the model would.
    """
    from transformers import GPT2Config, GPT2LMHeadModel  # takes a second, and all but a new base does without

    init, names = base.init or Init(), ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    if len(tokenizer) > init.vocab_size:
        what = f"is {init.vocab_size}, but the tokenizer has {len(tokenizer)} tokens."
        raise FieldError("base.init.vocab_size", what, remedy=f"Set it to {len(tokenizer)} or more.")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    dropout = {} if base.dropout is None else dict.fromkeys(names, base.dropout)
    return GPT2LMHeadModel(GPT2Config(**init.model_dump(exclude={"tokenizer"}), **dropout, **special))
