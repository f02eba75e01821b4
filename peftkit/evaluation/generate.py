"""Text from a target, prompted the way it was trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from peftkit.adapters.base import AS_RECORDED, GivenBase
from peftkit.adapters.opened import open_target
from peftkit.adapters.target import find_target
from peftkit.data.formats import prompt_of
from peftkit.evaluation.generation import write
from peftkit.models.device import detect_hardware
from peftkit.recipe.evidence import Generation

__all__ = ["generate"]


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
    if target.recipe is not None and not raw:
        prompts = [prompt_of(prompt, target.recipe.data, opened.tokenizer) for prompt in prompts]
    generation = target.recipe.generation if target.recipe else Generation()
    if max_new_tokens is not None:
        generation = generation.model_copy(update={"max_new_tokens": max_new_tokens})
    torch.manual_seed(seed)
    return write(opened.model, opened.tokenizer, prompts, generation, temperature=temperature)
