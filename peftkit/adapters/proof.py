"""Whether two models compute the same on a sample: here, and in a process without helpers.

Run as `python -m peftkit.adapters.proof FOLDER WORK`: opens the model in FOLDER with Transformers alone, compares its
logits with the expected ones in the folder WORK, and prints what it found as JSON.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from peftkit.errors import MemoryRunError, RunError, TargetError
from peftkit.models.dtypes import computing
from peftkit.shortage import figures, says_out_of_memory
from peftkit.storage import read_json

__all__ = ["SAMPLE_NAME", "Agreement", "Sample", "check_effect", "compare", "compare_in_fresh_process", "logits_of"]

SAMPLE_NAME = "sample.json"
"""A few of the run's own held-out sequences, kept with what it made to compare logits on."""

_RANDOM = "random tokens"
_RANDOM_ROWS, _RANDOM_TOKENS = 4, 32
_MULTIPLIER, _INCREMENT, _MODULUS = 1664525, 1013904223, 2**32
_LOGITS_NAME = "logits.safetensors"
_NO_LABEL = -100


@dataclass(frozen=True)
class Sample:
    """Token ids to run two models on."""

    source: str
    """What they are: `validation data`, `training data` or `random tokens`."""

    input_ids: list[list[int]]
    """Rows of their own lengths, each one document from its beginning."""

    labels: list[list[int]]
    """The same rows, with -100 where a token is not in the loss: what a perplexity is measured on."""

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(len(row) for row in self.input_ids)

    @classmethod
    def random(cls, vocabulary: int) -> Sample:
        """Token ids spread over a vocabulary, the same on every machine, for an adapter that brings no sample.

        They come from the generator of Press et al. (Numerical Recipes, section 7.1), which needs no library.
        """
        state, ids = 1, []
        for _ in range(_RANDOM_ROWS * _RANDOM_TOKENS):
            state = (_MULTIPLIER * state + _INCREMENT) % _MODULUS
            ids.append(state * vocabulary // _MODULUS)
        rows = [ids[start : start + _RANDOM_TOKENS] for start in range(0, len(ids), _RANDOM_TOKENS)]
        return cls(_RANDOM, rows, rows)

    @classmethod
    def read(cls, folder: Path, vocabulary: int) -> Sample:
        """The sample in a folder; random tokens where there is none.

        Raises:
            TargetError: it is damaged, or has tokens that the vocabulary has not.
        """
        place = folder / SAMPLE_NAME
        if not place.exists():
            return cls.random(vocabulary)
        try:
            values: dict[str, Any] = read_json(place)
            sample = cls(values["source"], values["input_ids"], values["labels"])
            shapes_agree = [len(row) for row in sample.input_ids] == [len(row) for row in sample.labels]
            known = all(0 <= token < vocabulary for row in sample.input_ids for token in row)
            if not (sample.input_ids and all(sample.input_ids) and shapes_agree and known):
                raise ValueError("its rows are not token ids with labels")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError("is damaged.", where=str(place), remedy="Copy it again, or remove it.") from error
        return sample

    @classmethod
    def of(cls, source: str, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sample:
        """A sample of rows of token ids with their labels."""
        ids, labels = ([[int(token) for token in row[side]] for row in rows] for side in (0, 1))
        return cls(source, ids, labels)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """How nearly a model computes what another one does, over the tokens of a sample."""

    sample: str
    """What the sample is."""

    tokens: int
    largest_difference: float
    """Of two logits."""

    relative_error: float
    """The same over the largest expected logit, by its size."""

    kl_divergence: float
    """Of the expected next-token distributions from the found ones: mean nats a token."""

    same_next_token: float
    """Share of the tokens after which both find the same one likeliest."""

    expected_perplexity: float | None
    """On the labelled tokens of the sample; None where these are random."""

    found_perplexity: float | None

    def summary(self) -> str:
        """One line for a person."""
        line = f"on {self.tokens:,} tokens of {self.sample}: logits {self.relative_error:.1e} off"
        line += f", KL divergence {self.kl_divergence:.1e} nats a token, same next token {self.same_next_token:.2%}"
        if self.expected_perplexity is None:
            return line
        return f"{line}, perplexity {self.expected_perplexity:.5g} → {self.found_perplexity:.5g}"


@torch.inference_mode()
def logits_of(model: Any, sample: Sample, *, exact: bool = False) -> list[torch.Tensor]:
    """A model's logits in evaluation mode by sdpa: for each row of the sample, float32 [tokens, vocabulary].

    They are computed as training computes or, where `exact`, in float32 whatever the weights are held in.
    """
    from peftkit.models.attention import plain_attention  # here: the fresh process does without them
    from peftkit.models.dtypes import exact_float32

    model.eval()
    with exact_float32(model) if exact else computing(model), plain_attention(model):
        return [_row_logits(model, row) for row in sample.input_ids]


def compare(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], sample: Sample) -> Agreement:
    """Compare the logits of two models, row by row.

    Raises:
        RunError: one of them is not finite.
    """
    return _checked(_agreement(found, expected, sample))


def check_effect(model: Any, expected: list[torch.Tensor], sample: Sample, strength: str) -> None:
    """See that the adapter changes what the base says; `strength` is the recipe field that makes it stronger.

    Raises:
        RunError: it does not change one logit of the sample.
    """
    with model.disable_adapter():
        base = logits_of(model, sample, exact=True)
    if all(torch.equal(ours, bases) for ours, bases in zip(expected, base, strict=True)):
        what = "the adapter has no effect: with it and without it, the model computes the same."
        remedy = f"Check training.learning_rate, {strength} and the number of steps."
        raise RunError(what, where="training", remedy=remedy)


def compare_in_fresh_process(folder: Path, expected: Iterable[torch.Tensor], sample: Sample) -> Agreement:
    """Compare what the model in `folder` says, when a process without PEFT and bitsandbytes opens it.

    Raises:
        RunError: the process could not open the model, or its logits are not finite.
        MemoryRunError: there is not enough memory for it.
    """
    with tempfile.TemporaryDirectory() as work:
        Path(work, SAMPLE_NAME).write_text(json.dumps(sample.to_json()), encoding="utf-8")
        save_file({str(number): row.contiguous() for number, row in enumerate(expected)}, Path(work, _LOGITS_NAME))
        command = [sys.executable, "-m", "peftkit.adapters.proof", str(folder), work]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise _not_opened(folder, process)
        return _checked(Agreement(**json.loads(process.stdout.splitlines()[-1])))


def _not_opened(folder: Path, process: subprocess.CompletedProcess[str]) -> RunError:
    """Why a process could not open a model: it says so, or the system has killed it, which it does to free memory."""
    line = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if process.returncode != -signal.SIGKILL and not says_out_of_memory(line):
        return RunError(f"a fresh process cannot open the model: {line}", where=str(folder))
    what = f"the model, which a fresh process opens in float32, does not fit into memory{figures(line)}."
    return MemoryRunError(what, where=str(folder), remedy="Free memory of the machine that others use.")


def _agreement(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], sample: Sample) -> Agreement:
    rows = [_row_figures(one, other, labels) for one, other, labels in zip(found, expected, sample.labels, strict=True)]
    total = torch.tensor(rows, dtype=torch.float64)
    difference, largest = total[:, :2].amax(dim=0).tolist()
    divergence, same, labelled, expected_loss, found_loss = total[:, 2:].sum(dim=0).tolist()
    measured = sample.source != _RANDOM and labelled > 0  # of random tokens a perplexity means nothing
    return Agreement(
        sample=sample.source,
        tokens=sample.tokens,
        largest_difference=difference,
        relative_error=difference / largest if largest else math.nan,
        kl_divergence=divergence / sample.tokens,
        same_next_token=same / sample.tokens,
        expected_perplexity=_exponential(expected_loss / labelled) if measured else None,
        found_perplexity=_exponential(found_loss / labelled) if measured else None,
    )


def _checked(agreement: Agreement) -> Agreement:
    if not (math.isfinite(agreement.relative_error) and math.isfinite(agreement.kl_divergence)):
        raise RunError("logits that are not finite were computed.", remedy="The weights are damaged, or overflow.")
    return agreement


def _exponential(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # beyond, a float has no room


def _row_logits(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().cpu()


def _row_figures(found: torch.Tensor, expected: torch.Tensor, labels: list[int]) -> tuple[float, ...]:
    """Largest difference and logit, and sums: of divergence, equal next tokens, labelled tokens, and both losses."""
    one, other = found.double().log_softmax(dim=-1), expected.double().log_softmax(dim=-1)
    divergence = torch.nn.functional.kl_div(one, other, reduction="sum", log_target=True)
    wanted = [(place, label) for place, (_, label) in enumerate(pairwise(labels)) if label != _NO_LABEL]
    losses = [-sum(float(table[place, label]) for place, label in wanted) for table in (other, one)]
    return (
        float((found - expected).abs().max()),
        float(expected.abs().max()),
        float(divergence),
        float((found.argmax(dim=-1) == expected.argmax(dim=-1)).sum()),
        float(len(wanted)),
        *losses,
    )


def _main(folder: str, work: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    sample = Sample(**read_json(Path(work, SAMPLE_NAME)))
    with torch.inference_mode(), safe_open(Path(work, _LOGITS_NAME), framework="pt") as file:
        found = (_row_logits(model, row) for row in sample.input_ids)  # one row in memory at a time
        agreement = _agreement(found, (file.get_tensor(str(row)) for row in range(len(sample.labels))), sample)
    helpers = {"peft", "bitsandbytes"} & set(sys.modules)
    if helpers:
        raise SystemExit(f"{' and '.join(sorted(helpers))} was loaded; the proof needs a process without it")
    print(json.dumps(asdict(agreement)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
