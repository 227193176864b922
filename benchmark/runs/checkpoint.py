"""Checkpoints: everything that a run needs to resume, in one safetensors file."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from invbench.errors import Unusable
from invbench.pytree import Tree, flatten, unflatten

SEPARATOR = "/"  # parameter names have dots of their own


@dataclass(frozen=True)
class Checkpoint:
    """State at a step boundary.

    Args:
        tensors: nested by owner: model, optimizer, method, random state, running sums.
        facts: numbers and strings, such as the step and the seconds spent so far.
    """

    tensors: Tree
    facts: dict[str, Any]

    def save(self, replacing: AbstractContextManager[Path]) -> None:
        """Write the checkpoint atomically, with a checksum: a kill leaves the previous file or this one.

        Args:
            replacing: gives the name to write to; see `invbench.runs.folder.RunFolder.replacing`.
        """
        flat = {name: value.detach().contiguous().cpu() for name, value in flatten(self.tensors, SEPARATOR).items()}
        header = {"facts": json.dumps(self.facts), "sha256": checksum(flat, self.facts)}
        with replacing as temporary:
            temporary.write_bytes(save(flat, metadata=header))  # save_file would make a temporary file of its own

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """Load a checkpoint to the CPU; None where there is no file.

        A file without a checksum, which older versions wrote, is accepted.

        Raises:
            Unusable: it is damaged.
        """
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise Unusable("the checkpoint is no file")
            content = path.read_bytes()  # once: the next checkpoint may take the file's place at any moment
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"the checkpoint cannot be read ({error.strerror})") from None
        except MemoryError:
            raise Unusable("the checkpoint does not fit into memory") from None
        try:
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])["__metadata__"]
            facts, expected = json.loads(header["facts"]), header.get("sha256")
            flat = load(content)
            whole = isinstance(facts, dict) and expected in (None, checksum(flat, facts))
            tensors = unflatten(flat, SEPARATOR)
        except (SafetensorError, struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise Unusable("the checkpoint is damaged")
        return cls(tensors, facts)


class Position(BaseModel):
    """Position of a run at a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    run_id: str
    origin: str
    """Hash of code and data."""
    step: int = Field(ge=0)
    """Number of finished steps."""
    objective_steps: int = Field(ge=0)
    """Number of steps since the last evaluation."""
    curves: str
    """Hash of the rows of the curves until then; see `invbench.runs.curves.digest`."""
    seconds: dict[str, Annotated[float, Field(ge=0)]]
    """Seconds spent on each part; see `invbench.training.loop.PARTS`."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Position":
        """Read the position from a checkpoint. Raises Unusable where its facts are not those of a run."""
        try:
            return cls.model_validate(checkpoint.facts)
        except ValidationError:
            raise Unusable("the checkpoint was made by another version, or is none of a run") from None


def check_fit(fresh: Tree, loaded: Tree, growing: Sequence[str] = ()) -> None:
    """Check that loaded tensors can replace those of a fresh run.

    Args:
        growing: names at the first level below which tensors may have other shapes, and more may be there.

    Raises:
        Unusable: names, types or shapes differ.
    """
    for part in fresh:
        ours, theirs = (flatten({part: tree.get(part, {})}, SEPARATOR) for tree in (fresh, loaded))
        lacking = ours.keys() - theirs.keys()
        unknown = theirs.keys() - ours.keys() if part not in growing else set()
        unlike = {name for name in ours.keys() & theirs.keys() if not _alike(ours[name], theirs[name], part in growing)}
        for what, names in (("lacks", lacking), ("has no use for", unknown), ("has another form of", unlike)):
            if names:
                raise Unusable(f"the checkpoint does not fit this run: it {what} {min(names)}")


def _alike(fresh: Tensor, loaded: Tensor, any_shape: bool) -> bool:
    return fresh.dtype == loaded.dtype and (any_shape or fresh.shape == loaded.shape)


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Return the sha256, as hexadecimal digits, of names, types, shapes and bytes of CPU tensors, and of the facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that hooks and dropout draw from."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to a saved state. Raises Unusable where that is no state of theirs."""
    try:
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (RuntimeError, TypeError, KeyError):
        raise Unusable("the checkpoint's random state cannot be restored") from None


def match_layout(fresh: Tree, loaded: Tree) -> Tree:
    """Copy loaded tensors into the order and memory layout of a fresh run's: a sum's last bit can depend on that."""
    # Files know no empty levels.
    tree: Tree = {name: {} for name, like in fresh.items() if isinstance(like, dict) and not like}
    for name in [name for name in fresh if name in loaded] + [name for name in loaded if name not in fresh]:
        like, value = fresh.get(name), loaded[name]
        if isinstance(value, dict):
            tree[name] = match_layout(like if isinstance(like, dict) else {}, value)
        elif isinstance(like, Tensor) and like.shape == value.shape:
            tree[name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        else:
            tree[name] = value
    return tree
