"""The state of an optimizer that a run resumes with, in pages again where it was.

bitsandbytes' paged optimizers keep the state of large weights in CUDA's unified memory, which moves to the host when
the GPU is short of memory (Dettmers et al. 2023, section 3). Their `load_state_dict` puts all of it on the GPU, as
tensors that stay there.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["load_optimizer_state"]


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Let an optimizer, or what Accelerate has wrapped around it, take a state, its paged buffers in pages."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if not getattr(inner, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    inner.load_state_dict(state, move_to_device=False)  # all of it together may be more than the GPU has room for
    for group_number, group in enumerate(inner.param_groups):
        for number, parameter in enumerate(group["params"]):
            if parameter in inner.state:
                _place(inner, group, parameter, (group_number, number))


@torch.no_grad()
def _place(optimizer: Any, group: dict[str, Any], parameter: Any, place: tuple[int, int]) -> None:
    """Put what was saved of a parameter where the optimizer puts it when it begins: into pages, or on the device."""
    saved = optimizer.state.pop(parameter)
    optimizer.init_state(group, parameter, *place)
    buffers = optimizer.state[parameter]
    for name, value in saved.items():
        if getattr(buffers.get(name), "is_paged", False):
            buffers[name].copy_(value)
        else:
            buffers[name] = value.to(parameter.device) if isinstance(value, torch.Tensor) else value
