"""Groups of turns and reflections of square images: their copies of an image, and networks that tell the element.

Elements of C_N are turns by 2π k/N, counter-clockwise as the image is seen; D_N has, behind these, for each k the
reflection left to right followed by that turn. Quarter turns are exact on the pixels; what is left of another turn is
sampled bilinearly, after the quarter turns, so that an image and its quarter turns have the same copies bit for bit.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from invbench.components.affine import Action, action, basis, exponential
from invbench.components.images import require_square
from invbench.core.data import Problem
from invbench.methods._steerable_convolution import Exporting, Fields, SteerableConvolution, functions, group, image

QUARTER = math.pi / 2
KERNEL, LAYERS = 5, 3


class Turns(nn.Module):
    """Images turned back by angles, and reflected back.

    Args:
        problem: tells how images are standardised.
    """

    generator: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.act: Action = action(problem)
        self.register_buffer("generator", basis(problem, ["rotation"]), persistent=False)

    def back(self, x: Tensor, angle: Tensor, is_reflected: Tensor) -> Tensor:
        """Turn images (N, C, S, S) back by angles (N,) in radians, then reflect those where `is_reflected` (N,)."""
        quarters = (angle.detach() / QUARTER).round()
        turned = torch.stack([torch.rot90(x, -k, (-2, -1)) for k in range(4)], 1)
        kind = quarters.remainder(4).long()[:, None] == torch.arange(4, device=x.device)
        chosen = torch.where(kind[..., None, None, None], turned, 0).sum(1)
        rest = self._by_rest(chosen, angle - quarters * QUARTER)
        return torch.where(is_reflected[:, None, None, None], rest.flip(-1), rest)

    def copies(self, x: Tensor, rotations: int, reflections: bool) -> Tensor:
        """Turn images (N, C, S, S) back by every element of C_N or D_N: (|G|, N, C, S, S)."""
        copies = []
        for k in range(rotations):
            quarters = round(4 * k / rotations)
            rest = 2 * math.pi * k / rotations - quarters * QUARTER
            turned = torch.rot90(x, -quarters, (-2, -1))
            copies.append(turned if abs(rest) < 1e-9 else self._by_rest(turned, x.new_full((len(x),), rest)))
        return torch.stack([*copies, *([copy.flip(-1) for copy in copies] if reflections else [])])

    def _by_rest(self, x: Tensor, angle: Tensor) -> Tensor:
        return self.act(x, exponential(-angle[:, None], self.generator.to(x.dtype)))


class SteerableScores(nn.Module):
    """A small steerable network with one number, or one vector, for each element: it turns with the image.

    Three 5x5 convolutions with ReLU between them, and a mean over the image and over fields.

    Args:
        problem: tells the image's channels and its black.
        fields: of the hidden layers.
        vectors: number of vectors of the plane that it returns; 0 for a number for each group element.
    """

    black: Tensor

    def __init__(self, problem: Problem, rotations: int, reflections: bool, fields: int, vectors: int = 0) -> None:
        super().__init__()
        require_square(problem)
        space = group(rotations, reflections)
        hidden, last = functions(space, fields), _vectors(space, reflections, vectors) or functions(space, fields)
        kinds = [image(space, problem.input_shape[0]), *[hidden] * (LAYERS - 1), last]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(kinds):
            layers += [SteerableConvolution(inputs, outputs, KERNEL, KERNEL // 2), nn.ReLU()]
        self.network, self.count, self.vectors = Exporting(nn.Sequential(*layers[:-1])), last.count, vectors
        self.register_buffer("black", problem.pixels.black(torch.zeros(())), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute scores (N, |G|), or vectors (N, vectors, 2), of images (N, C, S, S)."""
        means: Tensor = self.network(x - self.black).mean((-2, -1)).unflatten(1, (self.count, -1))
        return means if self.vectors else means.mean(1)


def _vectors(space: Any, reflections: bool, count: int) -> Fields | None:
    if not count:
        return None
    return Fields(count, space, space.irrep(1, 1) if reflections else space.irrep(1))
