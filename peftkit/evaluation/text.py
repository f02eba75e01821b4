"""How near written completions come to those that were wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

__all__ = ["TextScores", "score_texts"]


@dataclass(frozen=True)
class TextScores:
    """Scores of all completions together. Spaces at their ends, and at those of the references, are left aside."""

    prompts: int
    """Different ones, each with one completion."""

    references: int
    exact_match: float
    """Share of completions that are one of their references."""

    bleu: float
    """0 to 100 (Papineni et al. 2002), of the corpus, by sacrebleu (Post 2018)."""

    chrf: float
    """chrF2, 0 to 100 (Popović 2015), by sacrebleu."""

    ter: float
    """Edits for each 100 words of the references (Snover et al. 2006), by sacrebleu; lower is better."""

    rouge_l: float
    """ROUGE-L's F1, 0 to 100 (Lin 2004): of each completion against its nearest reference, and their mean."""

    signatures: dict[str, str]
    """How sacrebleu computed each, to be told with the figure."""


def score_texts(written: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Compare each completion with its references, of which there may be different numbers."""
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
