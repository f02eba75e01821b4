"""Text that a model writes, and how often it is exactly the text that was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peftkit.models.start import padding_id

__all__ = ["exact_match", "write"]


@torch.inference_mode()
def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 32,
) -> list[str]:
    """Continue each prompt until the end token or `max_new_tokens`; greedily, or sampling at a temperature above 0.

    Prompts of one batch are padded on the left, where the attention mask and the positions leave padding out.
    """
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    padding = padding_id(tokenizer)
    written: list[str] = []
    for start in range(0, len(prompts), batch_size):
        rows = tokenizer(list(prompts[start : start + batch_size]), add_special_tokens=False)["input_ids"]
        longest = max(max(map(len, rows)), 1)
        input_ids = torch.full((len(rows), longest), padding, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            row = row or [tokenizer.eos_token_id]
            input_ids[index, longest - len(row) :] = torch.tensor(row)
            mask[index, longest - len(row) :] = 1
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=padding,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
        written += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return written


def exact_match(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], *, max_new_tokens: int) -> float:
    """Share of prompts whose greedy continuation is the wanted completion, spaces at the ends aside."""
    written = write(model, tokenizer, [prompt for prompt, _ in pairs], max_new_tokens=max_new_tokens)
    right = sum(text.strip() == wanted.strip() for text, (_, wanted) in zip(written, pairs, strict=True))
    return right / len(pairs)
