"""What optimizers keep."""

from __future__ import annotations

__all__ = ["EIGHT_BIT", "optimizer_bytes"]

EIGHT_BIT = "adamw_bnb_8bit"
"""AdamW with a quarter of the state (Dettmers et al. 2022)."""

_FLOAT = 4
_STATES = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
"""Numbers that an optimizer keeps for each trained weight, by how its name begins, where these are not AdamW's two."""


def optimizer_bytes(optim: str, trainable: int, embeddings: int = 0) -> int:
    """Bytes of an optimizer's state, once it has taken a step.

    Args:
        optim: the optimizer, by Transformers' name.
        trainable: parameters that are trained; they are float32.
        embeddings: of these, those of embeddings, whose state stays float32 with 8-bit optimizers.
    """
    name = optim.removeprefix("paged_")
    states = next((count for start, count in _STATES.items() if name.startswith(start)), 2)
    eight_bit = trainable - embeddings if "8bit" in name else 0
    return states * (_FLOAT * (trainable - eight_bit) + eight_bit)
