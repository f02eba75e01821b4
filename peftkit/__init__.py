"""Fine-tune language models from one strict recipe: full, LoRA, or LoRA on a quantised base.

    import peftkit

    recipe = peftkit.load_recipe("quickstart", method="lora", output="runs/first")
    folder, manifest = peftkit.train(recipe, on_message=print)

The functions are those of `peftkit.api`, which is imported when the first of them is asked for: torch takes seconds.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than that of this package
if TYPE_CHECKING:
    from peftkit.api import audit, base_folder, compare, evaluate, generate, load_recipe, merge, plan, train

__all__ = ["audit", "base_folder", "compare", "evaluate", "generate", "load_recipe", "merge", "plan", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("peftkit.recipe.quantizers").quiet_loggers()  # before the libraries are imported, which say much
    return getattr(import_module("peftkit.api"), name)
