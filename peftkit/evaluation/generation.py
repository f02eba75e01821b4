"""Text that a model generates: from prompts, the samples of a run before and after training, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import fmean
from typing import Any

import torch

from peftkit.adapters.files import AS_RECORDED, GivenBase
from peftkit.adapters.target import find_target, open_target
from peftkit.data.formats.spans import prompt_ids
from peftkit.data.prepare import Prepared
from peftkit.data.prompts import end_tokens_of, openings, prompt_of
from peftkit.models.attention import plain_attention
from peftkit.models.device import detect_hardware
from peftkit.models.dtypes import computing
from peftkit.models.start import padding_id, positions
from peftkit.recipe.schema import Generation
from peftkit.shortage import memory_for

__all__ = ["Sample", "TextScores", "begin_samples", "complete_samples", "ending", "generate", "score_texts", "write"]


@torch.inference_mode()
def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    end_tokens: Sequence[int],
    *,
    temperature: float = 0.0,
) -> list[str]:
    """Continue each prompt's tokens until an end token or `max_new_tokens`, sampling at a temperature above 0.

    The model's own end tokens, as its generation configuration has them, end a text too.

    Prompts of one length are continued together. Where these differ, they are padded on the left, where the attention
    mask and the positions leave padding out. Of a prompt that leaves no room for the answer in the model's positions,
    the end is taken. The model is in evaluation mode meanwhile, and attends by sdpa.

    Raises:
        MemoryRunError: so many at a time do not fit into memory.
    """
    rows = _rows(model, tokenizer, prompts, generation)
    ends = ending(model, end_tokens)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    written = [""] * len(rows)
    was_training = model.training
    model.eval()
    what = f"generating {generation.batch_size} completions at a time"
    try:
        short = memory_for(what, where="generation", remedy="Lower its batch_size or max_new_tokens.")
        with short, computing(model), plain_attention(model):
            for start in range(0, len(order), generation.batch_size):
                chosen = order[start : start + generation.batch_size]
                texts = _continued(model, tokenizer, [rows[index] for index in chosen], generation, ends, temperature)
                for index, text in zip(chosen, texts, strict=True):
                    written[index] = text
    finally:
        model.train(was_training)
    return written


def ending(model: Any, end_tokens: Sequence[int]) -> list[int]:
    """These end tokens, and those that the model's generation configuration has."""
    own = model.generation_config.eos_token_id
    both = [*end_tokens, *(own if isinstance(own, list) else [] if own is None else [own])]
    return list(dict.fromkeys(both))


def _rows(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], generation: Generation) -> list[list[int]]:
    seen = positions(model.config)
    room = max(1, seen - generation.max_new_tokens) if seen else None
    return [(list(row) or [tokenizer.eos_token_id])[-room if room else None :] for row in prompts]


def _continued(
    model: Any, tokenizer: Any, rows: list[list[int]], generation: Generation, ends: list[int], temperature: float
) -> list[str]:
    padding = padding_id(tokenizer)
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    seen = positions(model.config)
    room = seen - longest if seen else generation.max_new_tokens
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    if generation.num_beams > 1:
        sampling["length_penalty"] = generation.length_penalty
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max(1, min(generation.max_new_tokens, room)),
        num_beams=generation.num_beams,
        no_repeat_ngram_size=generation.no_repeat_ngram_size,
        pad_token_id=padding,
        eos_token_id=ends,
        use_cache=True,
        **sampling,
    )
    texts: list[str] = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return texts


@dataclass(frozen=True)
class Sample:
    """One prompt with its continuations."""

    prompt: str
    wanted: str
    before: str
    after: str | None = None  # None until training has ended

    ids: Sequence[int] = ()
    """The tokens of the prompt; runs of older versions have not kept them."""


def begin_samples(model: Any, tokenizer: Any, prepared: Prepared, generation: Generation) -> list[Sample]:
    """Choose prompts, and let the untrained model continue them."""
    chosen = openings(prepared, tokenizer, generation.samples)
    written = write(model, tokenizer, [asked.ids for asked in chosen], generation, prepared.end_tokens)
    return [
        Sample(asked.prompt, asked.completion, before=text, ids=asked.ids)
        for asked, text in zip(chosen, written, strict=True)
    ]


def complete_samples(
    model: Any, tokenizer: Any, begun: list[Sample], generation: Generation, end_tokens: Sequence[int]
) -> list[Sample]:
    """Let the trained model continue the same prompts."""
    rows = [sample.ids or prompt_ids(sample.prompt, tokenizer) for sample in begun]
    written = write(model, tokenizer, rows, generation, end_tokens)
    return [replace(sample, after=text) for sample, text in zip(begun, written, strict=True)]


def generate(
    name: str,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 42,
    raw: bool = False,
    given: GivenBase = AS_RECORDED,
) -> list[str]:
    """Continue each prompt as the target's recipe says, or sample at a temperature above 0.

    Where the target's recipe is recorded, a prompt is put into that recipe's template, unless it is `raw`.

    Raises:
        TargetError: the target cannot be opened.
    """
    target = find_target(name)
    opened = open_target(target, detect_hardware().device, given)
    tokenizer = opened.tokenizer
    ends = [tokenizer.eos_token_id]
    if target.recipe is not None:
        ends = end_tokens_of(target.recipe.data, tokenizer)
        prompts = prompts if raw else [prompt_of(prompt, target.recipe.data, tokenizer) for prompt in prompts]
    rows = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    generation = target.recipe.generation if target.recipe else Generation()
    if max_new_tokens is not None:
        generation = generation.model_copy(update={"max_new_tokens": max_new_tokens})
    torch.manual_seed(seed)
    return write(opened.model, tokenizer, rows, generation, ends, temperature=temperature)


@dataclass(frozen=True)
class TextScores:
    """Scores of all completions together. Spaces at their ends, and at those of the references, are left aside."""

    prompts: int  # different ones, each with one completion
    references: int
    exact_match: float  # share of completions that are one of their references
    bleu: float  # 0 to 100 (Papineni et al. 2002), of the corpus, by sacrebleu (Post 2018).
    chrf: float  # chrF2, 0 to 100 (Popović 2015), by sacrebleu.
    ter: float  # edits for each 100 words of the references (Snover et al. 2006), by sacrebleu; lower is better.
    rouge_l: float
    """ROUGE-L's F1, 0 to 100 (Lin 2004): of each completion against its nearest reference, and their mean."""

    signatures: dict[str, str]  # how sacrebleu computed each, to be reported with the figure


def score_texts(written: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Compare each completion with its references, of which there may be different numbers."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    written = [text.strip() for text in written]
    groups = [[text.strip() for text in group] for group in references]
    streams = [list(stream) for stream in zip_longest(*groups)]  # None where a completion has fewer
    metrics: dict[str, BLEU | CHRF | TER] = {"bleu": BLEU(), "chrf": CHRF(), "ter": TER()}
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    nearest = [rouge.score_multi(group, text)["rougeL"].fmeasure for text, group in zip(written, groups, strict=True)]
    scores = {name: metric.corpus_score(written, streams).score for name, metric in metrics.items()}
    return TextScores(
        prompts=len(written),
        references=sum(map(len, groups)),
        exact_match=fmean(text in group for text, group in zip(written, groups, strict=True)),
        **scores,
        rouge_l=100 * fmean(nearest),
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
    )
