"""InstaAug: ranges of augmentation that depend on the input, from a small network.

Miao, Mathieu, Teh et al. (2022), "Learning Instance-Specific Augmentations by Capturing Local Invariances", ICML 2023,
arXiv 2206.00051. For input x a network r gives the lower and upper end of each generator's range:

    (a_k, b_k) = c_k (-σ(r_k⁻(x)), σ(r_k⁺(x)))        c_k the largest: π for rotations, half an image, else 1
    ε_k ~ U(a_k, b_k),  g_j = exp(Σ_k ε_k G_k)
    h(x) = (1/J) Σ_j f(g_j x)
    objective = risk - Σ_k w_k mean_x (b_k - a_k)

Gradients of the risk reach r through ε. After each step the controller moves the weights: w_k times 1.2 where the mean
width is below its lower threshold, divided by 1.2 where it is above the upper one, by at most fifty steps either way.
Images and their affine generators only. Deviations: r has three strided convolutions and begins with narrow ranges,
without a warm-up in which f learns alone; widths, not their logarithms, for all generators; crops and colours are not
among them.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invbench.components.affine import action, basis, exponential
from invbench.components.augmentation import AugmentationMethod, Averaged, known_generators
from invbench.components.symmetry import LearnedSymmetry
from invbench.core.backbone import FeaturesOnly
from invbench.core.data import Batch, Problem
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.errors import UserError

FACTOR, MOST = 1.2, 50
"""By which a weight of the controller changes, and how often in one direction."""
REACH = {"rotation": math.pi, "translation_x": 10.0, "translation_y": 10.0}
"""Largest magnitude of a generator, a translation's is half of the image; others have 1."""


@register_method("insta_aug")
class InstaAug(AugmentationMethod):
    """Average over affine transformations whose ranges a network reads off the input."""

    display_name: ClassVar[str] = "InstaAug"
    requires: ClassVar[tuple[str, ...]] = ("image",)
    small: ClassVar[Mapping[str, Any]] = {"method.test_copies": 2, "method.channels": 2}
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"image": {"method.train_copies": 0}}

    generators: tuple[str, ...] = setting(("rotation",), "names of the generators", min_length=1)
    weight: float = setting(0.1, "first w of every generator", ge=0, search=LogUniform(1e-3, 1))
    thresholds: tuple[float, float] = setting(
        (0.0, math.pi), "mean widths of a range below and above which the controller changes w"
    )
    first_range: float = setting(-3.0, "first value of r for all inputs; -3 is a twentieth of the reach, either way")
    channels: int = setting(16, "of the first convolution of the network of ranges", ge=1)
    rate: float = setting(1.0, "multiple of the learning rate for that network", gt=0)

    def transformation(self, problem: Problem) -> nn.Module:
        names = known_generators(problem, self.generators, "method.generators")
        if self.thresholds[0] > self.thresholds[1]:
            raise UserError("method.thresholds: the first must not be above the second")
        ranges = RangeNetwork(problem.input_shape[0], self.channels, len(names), self.first_range)
        return RandomRange(problem, names, FeaturesOnly(ranges, self.rate))

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return AveragedByInput(self, self.transformation(problem), model, problem.task)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        like = next(iter(parameters.values()))
        return {"factors": like.new_ones(len(self.generators))}

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        low, high = outputs.further["ranges"].unbind(-1)
        widths = (high - low).flatten(0, -2).mean(0)  # (K,)
        least, most = self.thresholds
        change = torch.where(widths < least, FACTOR, torch.where(widths > most, 1 / FACTOR, 1.0))
        factors = (state["factors"] * change.detach()).clamp(FACTOR**-MOST, FACTOR**MOST)
        return -self.weight * (state["factors"] * widths).sum(), state | {"factors": factors}


class AveragedByInput(Averaged):
    """Model averaged over copies of its input; its outputs carry the ranges of each input."""

    @property
    def random_range(self) -> "RandomRange":
        """The transformation, which draws from each input's own ranges."""
        part = self.transformation
        if not isinstance(part, RandomRange):
            raise TypeError("no ranges")
        return part

    def forward(self, x: Tensor) -> Outputs:
        outputs = super().forward(x)
        ranges = self.random_range.ranges(x)
        return outputs._replace(further={**outputs.further, "ranges": ranges})


class RangeNetwork(nn.Module):
    """Three strided convolutions, a mean over the image, and two numbers for each generator: (N, 2K)."""

    def __init__(self, channels: int, width: int, generators: int, first: float) -> None:
        super().__init__()
        sizes = [channels, width, 2 * width, 2 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        self.body, self.last = nn.Sequential(*layers), nn.Linear(sizes[-1], 2 * generators)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, first)

    def forward(self, x: Tensor) -> Tensor:
        numbers: Tensor = self.last(self.body(x).mean((-2, -1)))
        return numbers


class RandomRange(LearnedSymmetry):
    """x -> exp(Σ_k ε_k G_k) x with ε_k uniform on a range that a network reads off x."""

    basis: Tensor
    reach: Tensor

    def __init__(self, problem: Problem, names: tuple[str, ...], network: nn.Module) -> None:
        super().__init__()
        self.network, self.names, self.act = network, names, action(problem)
        self.register_buffer("basis", basis(problem, names), persistent=False)
        reach = [REACH.get(name, 1.0) for name in names]
        self.register_buffer("reach", torch.tensor(reach)[:, None] * torch.tensor([-1.0, 1.0]), persistent=False)

    def ranges(self, x: Tensor) -> Tensor:
        """Compute the ends (N, K, 2) of the ranges of inputs (N, C, H, W)."""
        shares: Tensor = self.network(x).sigmoid()
        ends: Tensor = shares.unflatten(1, (len(self.names), 2)) * self.reach
        return ends

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        low, high = self.ranges(x).unbind(-1)
        return dict(zip(self.names, zip(low.T, high.T, strict=True), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.ranges(x).unbind(-1)
        noise = torch.rand(low.shape, dtype=x.dtype, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            return self.act(x, exponential(low + noise * (high - low), self.basis))
