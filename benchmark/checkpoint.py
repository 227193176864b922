"""Everything a run needs to go on as if nothing had happened, in one safetensors file."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from invbench.files import replacing
from invbench.trees import Tree, flatten, unflatten

LEVEL = "/"  # parameter names have dots of their own


@dataclass(frozen=True)
class Checkpoint:
    """State at a step boundary.

    Args:
        tensors: nested by owner: model, optimizer, method, random state, running sums.
        facts: numbers and strings, such as the step and the seconds spent so far.
    """

    tensors: Tree
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write atomically: a kill leaves the previous checkpoint or this one."""
        flat = {name: value.detach().contiguous().cpu() for name, value in flatten(self.tensors, LEVEL).items()}
        with replacing(path) as temporary:
            save_file(flat, temporary, metadata={"facts": json.dumps(self.facts)})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """The checkpoint on the CPU, or None where there is none that can be read."""
        try:
            content = path.read_bytes()  # once: the next checkpoint may take the file's place at any moment
            (length,) = struct.unpack("<Q", content[:8])
            facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
            return cls(unflatten(load(content), LEVEL), facts)
        except (OSError, SafetensorError, struct.error, ValueError, KeyError):
            return None


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of the generators that hooks and dropout draw from."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators back."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def laid_out_like(fresh: Tree, loaded: Tree) -> Tree:
    """The loaded tensors in the order and memory layout of a fresh run's: a sum's last bit can depend on the latter."""
    # Files know no empty levels.
    tree: Tree = {name: {} for name, like in fresh.items() if isinstance(like, dict) and not like}
    for name in [name for name in fresh if name in loaded] + [name for name in loaded if name not in fresh]:
        like, value = fresh.get(name), loaded[name]
        if isinstance(value, dict):
            tree[name] = laid_out_like(like if isinstance(like, dict) else {}, value)
        elif isinstance(like, Tensor) and like.shape == value.shape:
            tree[name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        else:
            tree[name] = value
    return tree
