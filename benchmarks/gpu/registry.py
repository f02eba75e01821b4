"""All parts, the most important first."""

from __future__ import annotations

from typing import Final

from benchmarks.gpu import checks, memory, speed
from benchmarks.gpu.harness import Part

__all__ = ["PARTS"]

PARTS: Final = (
    Part("loss", "Loss and gradients against fp64", checks.loss, 90),
    Part("quickstart", "The quickstart's three methods, and a merge", checks.quickstart, 120),
    Part("isolation", "Packed documents, forward and backward", checks.isolation, 120),
    Part("nf4", "NF4 codes on GPU and CPU", checks.nf4, 30),
    Part("resume", "Killed and resumed", checks.resume, 120),
    Part("shortages", "Out of memory", memory.shortages, 90),
    Part("auto-batch", "A batch that fits", memory.auto_batch, 90),
    Part("end", "Memory at the end of a run", memory.end_of_run, 90),
    Part("llama-lora", "Llama-3.1-8B, LoRA r 16, 4,096 tokens packed", speed.llama_lora, 120, alone=True),
    Part("full-rows", "Llama-3.1-8B, LoRA r 16, 2 rows of 4,096 tokens", speed.full_rows, 40, alone=True),
    Part("estimates", "Planned and measured memory", speed.estimates, 100, alone=True),
    Part("profile", "Ten steps of peftkit, profiled", speed.profile, 40, alone=True),
    Part("llama-qlora", "Llama-3.1-8B, QLoRA r 16, 4,096 tokens packed", speed.llama_qlora, 120, alone=True),
    Part("gpt2", "GPT-2 124M", speed.gpt2, 120, alone=True),
    Part("variants", "Variants of peftkit on Llama-3.1-8B, LoRA", speed.variants, 240, alone=True),
    Part("gpt2-medium", "GPT-2 355M", speed.gpt2_medium, 120, alone=True),
)
