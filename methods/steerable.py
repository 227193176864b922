"""E(2)-steerable networks: equivariant to turns and reflections by construction.

Weiler & Cesa (2019), "General E(2)-equivariant steerable CNNs", arXiv 1911.08251. Feature maps are fields over a group
G, C_N (N turns) or D_N (and reflections); every convolution satisfies k(g x) = ρ_out(g) k(x) ρ_in(g)⁻¹ for all g in G,
so features turn with the image, and a maximum over G and over the map makes an invariant. Exact for quarter turns,
approximate for others, of which the pixels know nothing.

    small   Augerino's baseline (arXiv 2010.11882): 3x3 convolutions to 8, 8, 8 and 2 fields, the second used twice,
            mean over 3x3, maximum over G, mean over the map, 2 -> 64 -> outputs
    c8      the e2cnn tutorial's: C_8, 24-48-48-96-96-64 fields, disk mask, pooling that does not alias
    c16     final rotated-MNIST model: C_16, 24-32-36-36-64-96 fields, kernels 9-7-7-7-7-5
    d16     the same with D_16, restricted to C_16 after the fifth block, 16-22-25-25-45-96 fields

Deviations from the authors' code:
- In `small` each convolution's result has its own batch norm. Theirs uses one for three, whose running statistics fit
  none of them: rotated digits that it gets 71 % right with a batch's statistics it gets 11 % right in evaluation.
- Images of a size for which some layer would prefer a side are set into a larger black square with the same centre;
  the tutorial adds a row and a column at one side, and `small` drops the last two of a 20x20 map.
- Convolutions in front of a batch norm have no bias, which it would take away.
- Black is 0 to the network, as the zeros around the image.
- c8 takes the mean over what is left of the map where the image is larger than theirs.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.method import Method
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting
from invbench.methods._steerable_convolution import (
    BlurPool,
    Exporting,
    FieldMaximum,
    FieldNorm,
    Fitted,
    SteerableConvolution,
    functions,
    group,
    image,
    without_reflections,
)


@register_method("steerable")
class Steerable(Method):
    """A network that is equivariant to turns by construction, in the place of the dataset's."""

    display_name: ClassVar[str] = "Steerable CNN"
    requires: ClassVar[tuple[str, ...]] = ("image",)
    replaces_model: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"method.width": 0.25}

    architecture: Literal["small", "c8", "c16", "d16"] = setting(
        "small", "which of the papers' networks", search=Choice(("small", "c8", "c16", "d16"))
    )
    rotations: int | None = setting(
        None, "N of small's group; null is 8. Quarter turns belong to it if 4 divides N", ge=2
    )
    reflections: bool = setting(False, "whether small's group is D_N")
    width: float = setting(1.0, "multiple of the paper's numbers of fields", gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "Steerable":
        if self.architecture != "small" and (self.rotations is not None or self.reflections):
            advice = f"{self.architecture} has its own; set rotations=null and reflections=false"
            raise ValueError(f"rotations and reflections belong to architecture small, {advice}")
        return self

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        build = {"small": self._small, "c8": self._c8, "c16": self._final, "d16": self._final}[self.architecture]
        features, width = build(problem)
        return FeaturesAndHead(features, nn.Linear(width, problem.task.outputs))

    def _small(self, problem: Problem) -> tuple[nn.Module, int]:
        space = group(self.rotations or 8, self.reflections)
        hidden, invariants = self._counts(8, 2)
        # Four 3x3 convolutions without padding take 8 pixels, and the pooling takes the rest in threes.
        side = _side(problem, lambda side: side >= 11 and (side - 8) % 3 == 0)
        body = _Small(space, problem.input_shape[0], hidden, invariants)
        head = nn.Sequential(nn.Linear(invariants, 64), nn.ELU())
        return nn.Sequential(Fitted(side, _black(problem)), Exporting(body), head), 64

    def _c8(self, problem: Problem) -> tuple[nn.Module, int]:
        space, counts = group(8, False), self._counts(24, 48, 48, 96, 96, 64)
        kinds = [image(space, problem.input_shape[0]), *(functions(space, count) for count in counts)]
        # Padding 1 of the 7x7 convolution takes 4 pixels; both poolings of stride 2 want an odd side.
        side = _side(problem, lambda side: side >= 29 and side % 4 == 1, parity=1)
        layers: list[nn.Module] = []
        shapes = ((7, 1), (5, 2), (5, 2), (5, 2), (5, 2), (5, 1))
        for number, ((inputs, outputs), (size, padding)) in enumerate(zip(pairwise(kinds), shapes, strict=True), 1):
            layers += [SteerableConvolution(inputs, outputs, size, padding), FieldNorm(outputs.count), nn.ReLU()]
            layers += [BlurPool(0.66, 2)] if number in (2, 4) else []
        layers += [BlurPool(0.66, 1, 0), FieldMaximum(counts[-1]), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        head = nn.Sequential(nn.Linear(counts[-1], 64), nn.BatchNorm1d(64), nn.ELU())
        return nn.Sequential(Fitted(side, _black(problem), disk=True), Exporting(nn.Sequential(*layers)), head), 64

    def _final(self, problem: Problem) -> tuple[nn.Module, int]:
        reflections = self.architecture == "d16"
        space, cyclic = group(16, reflections), group(16, False)
        published = [int(count / math.sqrt(2)) if reflections else count for count in (24, 32, 36, 36, 64)]
        counts = self._counts(*published, 96)
        kinds = [image(space, problem.input_shape[0]), *(functions(space, count) for count in counts[:-1])]
        last = without_reflections(kinds[-1], 16) if reflections else kinds[-1]
        transitions = [*pairwise(kinds), (last, functions(cyclic if reflections else space, counts[-1]))]
        # The 9x9 convolution takes 8 pixels, and two poolings halve what is left.
        side = _side(problem, lambda side: side >= 28 and side % 4 == 0, parity=0)
        layers: list[nn.Module] = []
        shapes = ((9, 0), (7, 3), (7, 3), (7, 3), (7, 3), (5, 0))
        for number, ((inputs, outputs), (size, padding)) in enumerate(zip(transitions, shapes, strict=True), 1):
            layers += [SteerableConvolution(inputs, outputs, size, padding), FieldNorm(outputs.count)]
            layers += [nn.MaxPool2d(2)] if number in (2, 4) else []
            layers += [FieldMaximum(counts[-1])] if number == 6 else []
            layers.append(nn.ELU())
        layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        hidden = 96
        head = [
            layer
            for inputs in (counts[-1], hidden)
            for layer in (nn.Dropout(0.3), nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ELU())
        ]
        body = Exporting(nn.Sequential(*layers))
        return nn.Sequential(Fitted(side, _black(problem)), body, *head, nn.Dropout(0.3)), hidden

    def _counts(self, *published: int) -> list[int]:
        """Return the numbers of fields, at least one each."""
        return [max(1, round(self.width * count)) for count in published]


class _Small(nn.Module):
    """The middle convolution is used twice."""

    def __init__(self, space: Any, channels: int, hidden: int, invariants: int) -> None:
        super().__init__()
        picture, inner = image(space, channels), functions(space, hidden)
        self.first = SteerableConvolution(picture, inner, 3)
        self.middle = SteerableConvolution(inner, inner, 3)
        self.last = SteerableConvolution(inner, functions(space, invariants), 3, bias=True)
        self.norms = nn.ModuleList(FieldNorm(hidden) for _ in range(3))
        self.invariant = FieldMaximum(invariants)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to invariants (N, count)."""
        for convolution, norm in zip((self.first, self.middle, self.middle), self.norms, strict=True):
            x = torch.relu(norm(convolution(x)))
        pooled = nn.functional.avg_pool2d(self.last(x), 3)
        means: Tensor = self.invariant(pooled).mean((-2, -1))
        return means


def _side(problem: Problem, fits: Callable[[int], bool], parity: int | None = None) -> int:
    """Return the smallest side that holds the image, of its parity unless the layers need another."""
    longest = max(problem.input_shape[1:])
    parity = longest % 2 if parity is None else parity
    return next(side for side in itertools.count(longest) if side % 2 == parity and fits(side))


def _black(problem: Problem) -> Tensor:
    return problem.pixels.black(torch.zeros(()))
