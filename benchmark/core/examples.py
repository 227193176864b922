"""Examples of a problem: splits of them, and the batches of steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from invbench.core.image_file import ImageFile
from invbench.seeding import children


@dataclass(frozen=True)
class Split:
    """Examples of one role, on one device.

    Args:
        x: inputs (N, ...); images of which there are too many for the memory stay in a file.
        y: targets (N,).
        env: index of the environment of each example (N,), integers from 0.
        nuisance: what the prediction should not depend on (N, ...).
        digests: sha256 of what each input was made from, as integers (N, 4); fingerprints take them for the inputs.
        weights: how often each example is drawn in training, relative to the others of its environment (N,): real
            numbers from 0. Metrics, and what is computed from the data ahead of training, count every example once.
        attribute: what goes with the label in training and need not elsewhere (N,): integers from 0. Examples of one
            label and one attribute are a group.
    """

    x: Tensor | ImageFile
    y: Tensor
    env: Tensor | None = None
    nuisance: Tensor | None = None
    digests: Tensor | None = None
    weights: Tensor | None = None
    attribute: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in self.parts().items():
            if len(value) != len(self.x):
                raise ValueError(f"split has {len(self.x)} inputs but {len(value)} values of {name}")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        environments = "" if self.env is None else f", {len(self.environment_numbers)} environments"
        return f"Split({len(self)} x {tuple(self.x.shape[1:])}{environments})"

    def parts(self) -> dict[str, Tensor | ImageFile]:
        """Return the parts that exist, by name."""
        return {"x": self.x} | self.tensors()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that exist, by name; images in a file are none."""
        names = ("x", "y", "env", "nuisance", "digests", "weights", "attribute")
        return {name: value for name in names if isinstance(value := getattr(self, name), Tensor)}

    def inputs(self) -> Tensor:
        """Return the inputs (N, ...) as a tensor; those in a file are read."""
        return self.x[:] if isinstance(self.x, ImageFile) else self.x

    @cached_property
    def environment_numbers(self) -> tuple[int, ...]:
        """Numbers of the environments that have an example here; empty where the data have none."""
        return () if self.env is None else tuple(self.env.unique().tolist())

    @cached_property
    def environment_rows(self) -> tuple[Tensor, ...]:
        """Indices of each environment's examples, in their order."""
        env = torch.empty(0) if self.env is None else self.env
        return tuple(torch.where(env == number)[0] for number in self.environment_numbers)

    def map(
        self, change: Callable[[Tensor], Tensor], of_file: Callable[[ImageFile], ImageFile] = lambda file: file
    ) -> "Split":
        """Apply `change` to every tensor of the split, and `of_file` to images in a file."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        if isinstance(self.x, ImageFile):
            changed["x"] = of_file(self.x)
        return replace(self, **changed)

    def rows(self, index: slice | Tensor) -> "Split":
        """Select the examples of an index, slice or mask."""
        return self.map(lambda t: t[index], lambda images: images.rows(index))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Split":
        """Move the split to `device`, its real-valued tensors as `dtype`; images in a file follow when selected."""
        return self.map(
            lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype),
            lambda images: images.to(device, dtype),
        )


def group_of(y: Tensor, attribute: Tensor | None, attributes: int) -> Tensor:
    """Return the group (...) of labels and attributes (...), label · attributes + attribute; the label without any."""
    return y.long() if attribute is None else y.long() * attributes + attribute


def concatenate(splits: Sequence[Split]) -> Split:
    """Append splits in memory to one; they must have the same parts."""
    return Split(**{name: torch.cat([split.tensors()[name] for split in splits]) for name in splits[0].parts()})


def drawn_splits(
    draw: Callable[[int, np.random.Generator], Split], sizes: Mapping[str, int], seed: np.random.SeedSequence
) -> dict[str, Split]:
    """Draw splits of these sizes from one law, each from a separate stream; a size of 0 makes no split."""
    streams = dict(zip(sizes, children(seed, len(sizes)), strict=True))
    return {name: draw(size, np.random.default_rng(streams[name])) for name, size in sizes.items() if size}


class PairedTargets(NamedTuple):
    """Two targets of each example: the loss of the first counts `share`, that of the second the rest; all (E, B)."""

    first: Tensor
    second: Tensor
    share: Tensor

    def rows(self, index: int | slice) -> "PairedTargets":
        """Select the targets of some environments."""
        return PairedTargets(self.first[index], self.second[index], self.share[index])


class Batch(NamedTuple):
    """One optimisation step's examples, environment-major. Without environments E = 1.

    Shapes: x (E, B, ...), y (E, B), env (E,), nuisance (E, B, ...) or None, attribute (E, B) or None.
    """

    x: Tensor
    y: Tensor
    env: Tensor
    nuisance: Tensor | None = None
    attribute: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def environments(self, index: slice) -> "Batch":
        """Select some of the environments."""
        return Batch(**{name: value[index] for name, value in self.tensors().items()})

    def environment(self, number: Tensor) -> "Batch":
        """Select the environment with this number, a tensor on the same device."""
        return self.at((self.env == number).to(torch.int64).argmax()[None])

    def at(self, positions: Tensor) -> "Batch":
        """Select the environments at these positions (E',)."""
        return Batch(**{name: value.index_select(0, positions) for name, value in self.tensors().items()})

    def mixed(self, x: Tensor, y: PairedTargets, first: Tensor) -> "Batch":
        """Replace the inputs by others with two targets each, for a method that mixes; `first` gives all else."""
        rest = {name: value[first] for name, value in self.tensors().items() if name not in ("x", "y")}
        return Batch(x=x, y=y, **rest)  # type: ignore[arg-type]
