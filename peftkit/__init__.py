"""Fine-tune language models from one strict recipe: full, LoRA, or LoRA on a quantised base."""

__version__ = "0.1.0"
