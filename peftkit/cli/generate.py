"""`peftkit generate`: try a model."""

from __future__ import annotations

import sys

import click

from peftkit import console
from peftkit.cli import options
from peftkit.errors import InputError

__all__ = ["command"]


@click.command("generate")
@click.argument("target")
@click.option("--prompt", "prompts", multiple=True, help="What to continue. May be given again. Unset: standard input.")
@click.option("--max-new-tokens", type=options.COUNT, help="Longest answer. Unset: as the recipe says.")
@options.defaulted(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    help="0 always takes the likeliest token; higher values are more varied.",
)
@options.defaulted("--seed", type=int, default=42, help="For a temperature above 0.")
@click.option("--raw", is_flag=True, help="Do not put the prompt into the template of the target's recipe.")
@options.base
@options.as_json
def command(
    target: str,
    prompts: tuple[str, ...],
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
    raw: bool,
    base: str | None,
    quantization: str | None,
    as_json: bool,
) -> None:
    """Let TARGET write: a run, an adapter, a model or a base.

    A prompt is put into the template of the recipe that the target was made from. \\n stands for a new line.

    \b
    Example:
      peftkit generate runs/first --prompt "Once upon a time"
    """
    given = [prompt.replace("\\n", "\n") for prompt in prompts] or [sys.stdin.read()]
    if not all(prompt.strip() for prompt in given):
        raise InputError("is empty.", where="--prompt", remedy="Give some text to continue.")

    from peftkit.evaluation.generation import generate

    known = options.given_base(base, quantization)
    written = generate(
        target, given, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, raw=raw, given=known
    )
    if as_json:
        console.print_json([{"prompt": prompt, "text": text} for prompt, text in zip(given, written, strict=True)])
        return
    for text in written:
        console.print_text(text.strip("\n"))
