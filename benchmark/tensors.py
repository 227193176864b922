"""Numbers on their way between host and device, of which a step must not wait for one."""

from collections.abc import Mapping

import torch
from torch import Tensor


def scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a 0-dimensional tensor in the type and on the device of `like`: the device fills it, nothing is copied."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def copy_from_host(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, which goes on with its work meanwhile."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def to_host(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return 0-dimensional tensors as numbers, with one transfer for those of each type; numbers stay as they are."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    for dtype in {value.dtype for value in tensors.values()}:
        names = [name for name, value in tensors.items() if value.dtype == dtype]
        numbers |= zip(names, torch.stack([tensors[name] for name in names]).tolist(), strict=True)
    return {name: numbers[name] for name in values}
