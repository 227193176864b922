"""Partial equivariance: every layer learns on which part of the group of turns it is a function.

Romero & Lohit (2022), "Learning Partial Equivariances from Data", NeurIPS, arXiv 2110.10211. A feature map f_l(b, x)
depends on an angle b and a position x. The kernels are continuous functions ψ_l, small networks with sines (SIREN):

    f_0(b, x) = Σ_y ψ_0(R_b⁻¹ y) f(x + y)                              b of the whole group, -π to π
    f_l(b, x) = Σ_a Σ_y ψ_l(R_b⁻¹ y, a - b) f_{l-1}(a, x + y)          b of the part θ_l · [-π, π], 0 < θ_l <= 1
    features  = max_b mean_x f_L(b, x)
    objective = risk + λ Σ_l relu(θ_{l+1} - θ_l)                       parts may only shrink from layer to layer

with batch norm and ReLU after each sum. The angles of a part are n midpoints, θ_l (2k + 1 - n) π/n. Where all θ_l are 1
the features do not change with the input's turn, to rounding for quarter turns if 4 divides n; where θ_l → 0 that layer
has n copies of one function, at angle 0, and the network tells how an image is turned. Gradients of the risk reach θ_l
through the angles in ψ_l and ψ_{l+1}. `partial: false` has all θ_l = 1, the paper's baseline. The network is invariant
only as far as each of its layers: the half-width that it reports is π times the smallest share. Shares leave 1 as far
as the labels ask for, and nothing has them shrink further: they tell that there is too much invariance, not how much
there is.

At θ = 1 only the gradient of θ sees the difference between an image and its turns, not that of ψ, and it may point
above 1. A clamped θ would then stay there for ever; here it is reflected, at 1 and at 0, so that the first step leaves
1 whatever its direction and the weights see the difference from then on.

Deviations from the authors' code:
- The number of angles is fixed, and they have no random offset: training draws nothing, and shapes do not depend on
  θ. Theirs are ceil(8 θ) angles with a common offset. Turns only, no reflections, translations or discrete groups.
- ψ gets the cosine and the sine of a - b, which have no jump at π, in the place of the angle.
- Layers follow each other; theirs are residual blocks of two, with a norm of each example's maps inside. Features are
  a mean over the map, theirs the maximum, which told fewer small digits in one short run.
- Kernels are 5x5, for the small images here; theirs are 7x7. Outside the image is black.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import field_validator
from torch import Tensor, nn

from invbench.components.images import require_square
from invbench.components.learned import LearnedScalars
from invbench.components.symmetry import EquivariantLayer, LearnedSymmetry
from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Batch, Problem
from invbench.core.method import Method, Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.errors import UserError

FREQUENCY, HIDDEN = 10.0, 32
"""ω_0 of the kernels' sines, and the width of their two hidden layers."""


@register_method("partial_steerable")
class PartialSteerable(Method):
    """A network whose layers learn to which part of all turns they are equivariant, in the place of the dataset's."""

    display_name: ClassVar[str] = "Partial equivariance"
    requires: ClassVar[tuple[str, ...]] = ("image",)
    replaces_model: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"method.channels": 2, "method.samples": 4}

    partial: bool = setting(True, "whether the shares θ are learned; without, all are 1")
    layers: int = setting(2, "group convolutions after the first convolution, each with a share", ge=1)
    channels: int = setting(10, "channels of each layer", ge=1)
    kernel: int = setting(5, "side of the kernels, odd; the authors have 7", ge=3)
    samples: int = setting(8, "n, angles of each layer; quarter turns are exact if 4 divides it", ge=2)
    first_share: float = setting(1.0, "θ of every layer at first", gt=0, le=1)
    learning_rate: float | None = setting(None, "of the shares; null takes the trainer's", gt=0)
    monotone_weight: float = setting(
        1e-3, "λ, of shares that grow from layer to layer", ge=0, search=LogUniform(1e-4, 1), fusable=True
    )

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("kernels turn about their central pixel; give an odd number")
        return kernel

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return PartialNetwork(PartialFeatures(self, problem), nn.Linear(self.channels, problem.task.outputs))

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        if not self.partial:
            return risks.new_zeros(()), state
        return self.monotone_weight * outputs.learned["share"].diff().relu().sum(), state


class PartialFeatures(LearnedSymmetry):
    """A convolution of images and group convolutions of what it makes, pooled to features (N, channels)."""

    black: Tensor
    grid: Tensor

    def __init__(self, method: PartialSteerable, problem: Problem) -> None:
        super().__init__()
        require_square(problem)
        count, size, side = method.samples, method.kernel, problem.input_shape[-1]
        if size >= 2 * side:
            raise UserError(f"method.kernel: {size} is more than the images of {side} pixels reach, {2 * side - 1}")
        first = {f"layer{number}": method.first_share for number in range(1, method.layers + 1)}
        self.layers = method.layers
        self.shares = LearnedScalars("share", first, reflected, method.learning_rate) if method.partial else None
        self.lift = TurnedConvolution(problem.input_shape[0], method.channels, size)
        self.convolutions = nn.ModuleList(
            TurnedConvolution(method.channels, method.channels, size, count) for _ in range(method.layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm3d(method.channels) for _ in range(method.layers + 1))
        self.register_buffer("grid", (2 * torch.arange(count) + 1 - count) * (math.pi / count), persistent=False)
        self.register_buffer("black", problem.pixels.black(torch.zeros(())), persistent=False)

    def share(self) -> Tensor:
        """Compute the shares θ (layers,); all are 1 where they are not learned."""
        return self.grid.new_ones(self.layers) if self.shares is None else self.shares()

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        end = math.pi * self.share().amin(0, keepdim=True)
        return {"rotation": (-end, end)}

    def forward(self, x: Tensor) -> Tensor:
        angles = [self.grid, *(share * self.grid for share in self.share())]
        x = torch.relu(self.norms[0](self.lift((x - self.black)[:, :, None], None, angles[0])))
        for number, convolution in enumerate(self.convolutions, 1):
            x = torch.relu(self.norms[number](convolution(x, angles[number - 1], angles[number])))
        return x.mean((-2, -1)).amax(2)


class PartialNetwork(FeaturesAndHead):
    """Features and head, whose outputs carry the shares."""

    features: PartialFeatures

    def forward(self, x: Tensor) -> Outputs:
        outputs = super().forward(x)
        return outputs if self.features.shares is None else outputs._replace(learned={"share": self.features.share()})


class TurnedConvolution(EquivariantLayer):
    """A convolution with the turns of one continuous kernel: maps (N, C, angles, S, S) to others.

    It turns by quarters as its inputs do where angles are of the whole group, not of a part.

    Args:
        inputs, outputs: numbers of channels.
        size: side of the kernel on the pixels; it is 0 outside the disk that fits in.
        count: number of the inputs' angles; 0 for images, which have none.
    """

    positions: Tensor
    disk: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, count: int = 0) -> None:
        super().__init__()
        self.inputs, self.outputs, self.size = inputs, outputs, size
        self.kernel_network = Sines(4 if count else 2, inputs * outputs)
        line = torch.linspace(-1, 1, size)
        up, right = torch.meshgrid(line.flip(0), line, indexing="ij")
        disk = (up.square() + right.square() <= 1 + 1e-6).float()
        terms = inputs * max(1, count) * disk.sum()
        self.register_buffer("positions", torch.stack([right, up]).flatten(1), persistent=False)
        self.register_buffer("disk", disk / terms.sqrt(), persistent=False)

    def kernel(self, before: Tensor | None, after: Tensor) -> Tensor:
        """Compute the kernel (outputs · after, inputs · before, size, size) between angles in radians."""
        right, up = self.positions
        cosine, sine = after.cos()[:, None], after.sin()[:, None]
        turned = torch.stack([cosine * right + sine * up, cosine * up - sine * right], -1)[:, None]
        if before is not None:  # (after, before, size², 4)
            angle = (before - after[:, None])[..., None, None].expand(-1, -1, turned.shape[2], -1)
            turned = torch.cat([turned.expand(-1, len(before), -1, -1), angle.cos(), angle.sin()], -1)
        values: Tensor = self.kernel_network(turned).unflatten(-1, (self.outputs, self.inputs))
        values = torch.einsum("bapoi->obiap", values).unflatten(-1, (self.size, self.size))
        return (values * self.disk).flatten(2, 3).flatten(0, 1)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            kernel = self.kernel(before, after)
        convolved = nn.functional.conv2d(x.flatten(1, 2), kernel, padding=self.size // 2)
        maps: Tensor = convolved.unflatten(1, (self.outputs, len(after)))
        return maps

    def turned_inputs(
        self, inputs: tuple[Tensor, Tensor | None, Tensor], quarters: int
    ) -> tuple[Tensor, Tensor | None, Tensor] | None:
        x, before, after = inputs
        turned = torch.rot90(x, quarters, (-2, -1)) if before is None else _turned(x, before, quarters)
        return None if turned is None else (turned, before, after)

    def turned_outputs(
        self, outputs: Tensor, quarters: int, inputs: tuple[Tensor, Tensor | None, Tensor]
    ) -> Tensor | None:
        return _turned(outputs, inputs[2], quarters)


def _turned(maps: Tensor, angles: Tensor, quarters: int) -> Tensor | None:
    """Turn maps (N, C, angles, S, S) by quarters; None where that does not lead from these angles to themselves."""
    count = len(angles)
    if count % 4 or abs(float(angles[-1] - angles[0]) - 2 * math.pi * (1 - 1 / count)) > 1e-5:
        return None
    return torch.rot90(maps, quarters, (-2, -1)).roll(quarters * count // 4, 2)


class Sines(nn.Module):
    """Network with sines, SIREN (arXiv 2006.09661): (..., inputs) -> (..., outputs), about of variance 1 at first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in ((inputs, HIDDEN), (HIDDEN, HIDDEN)))
        self.last = nn.Linear(HIDDEN, outputs)
        bounds = 1 / inputs, math.sqrt(6 / HIDDEN) / FREQUENCY, math.sqrt(6 / HIDDEN)
        for layer, bound in zip((*self.layers, self.last), bounds, strict=True):
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(FREQUENCY * layer(x))
        values: Tensor = self.last(x)
        return values


def reflected(raw: Tensor) -> Tensor:
    """Return numbers in [0, 1], which are those given or their reflections at 0 and 1; the slope is 1 or -1."""
    rest = raw.remainder(2)
    return torch.where(rest > 1, 2 - rest, rest)
