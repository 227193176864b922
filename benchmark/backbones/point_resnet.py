"""The residual point-cloud network of Augerino's QM9 experiment (LieConv's residual network)."""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from invbench.backbone import Backbone, FeaturesAndHead
from invbench.point_clouds import CHARGE_FEATURES, charge_features, pairs, points
from invbench.problem import Problem
from invbench.registry import register_backbone
from invbench.settings import Choice, setting

HIDDEN, KERNELS = 32, 16


@register_backbone("point_resnet")
class PointResNet(Backbone):
    """Residual blocks around a convolution over all pairs of points, batch norm over the points that are there.

    Finzi et al. (2020), arXiv 2002.12880, with the settings of arXiv 2010.11882: k = 1536 channels, 6 blocks, every
    point is everybody's neighbour. With the pair element a_ij of points p_i, p_j

        group trivial:      a_ij = (p_i, p_j)          no symmetry
        group translation:  a_ij = p_i - p_j           shifts change nothing
        convolution:        y_i = W (1/n) Σ_j v_j ⊗ φ(a_ij) + b,      φ: 32, 32, 16 units
        block:              x + linear(convolution(linear(x))), k -> k/4 -> k/4 -> k, norm and swish before each

    and the mean over the points at the end. The order of the points changes nothing. Deviation: neighbours are never
    drawn at random, which for molecules of at most 29 atoms the authors' limit of 100 amounts to.
    """

    accepts: ClassVar[tuple[str, ...]] = ("point_cloud",)

    width: int = setting(1536, "channels k, a multiple of 4", ge=4, multiple_of=4, search=Choice((384, 1536)))
    depth: int = setting(6, "blocks", ge=1)
    group: Literal["trivial", "translation"] = setting("translation", "what the pair element leaves out")

    def build(self, problem: Problem) -> nn.Module:
        features = _Features(self.width, self.depth, self.group == "translation")
        return FeaturesAndHead(features, nn.Linear(self.width, problem.task.outputs))


class _Features(nn.Module):
    """Point clouds (N, n, 4) -> (N, width)."""

    def __init__(self, width: int, depth: int, translation: bool) -> None:
        super().__init__()
        self.translation = translation
        self.embedding = nn.Linear(CHARGE_FEATURES, width)
        self.blocks = nn.ModuleList(_Block(width, 3 if translation else 6) for _ in range(depth))
        self.norm = MaskedNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        positions, charges, mask = points(x)
        there = mask.to(x.dtype)
        both = pairs(there)
        elements = self._elements(positions)
        features = self.embedding(charge_features(charges))
        for block in self.blocks:
            features = block(features, elements, there, both)
        features = nn.functional.silu(self.norm(features, there)) * there[..., None]
        return features.sum(-2) / there.sum(-1, keepdim=True)

    def _elements(self, positions: Tensor) -> Tensor:
        """Pair elements (N, n, n, 3 or 6) of positions (N, n, 3)."""
        receiver, sender = positions[:, :, None], positions[:, None]
        if self.translation:
            return receiver - sender
        return torch.cat(torch.broadcast_tensors(receiver, sender), dim=-1)


class _Block(nn.Module):
    def __init__(self, width: int, pair_size: int) -> None:
        super().__init__()
        inner = width // 4
        self.norms = nn.ModuleList(MaskedNorm(size) for size in (width, inner, inner))
        self.reduce, self.expand = nn.Linear(width, inner), nn.Linear(inner, width)
        self.convolution = _Convolution(inner, pair_size)

    def forward(self, x: Tensor, elements: Tensor, there: Tensor, both: Tensor) -> Tensor:
        """Features (N, n, width), elements (N, n, n, D), masks of points (N, n) and of pairs (N, n, n)."""
        first, second, third = self.norms
        inner = self.reduce(nn.functional.silu(first(x, there)))
        inner = self.convolution(nn.functional.silu(second(inner, there)), elements, there, both)
        new: Tensor = x + self.expand(nn.functional.silu(third(inner, there)))
        return new


class _Convolution(nn.Module):
    def __init__(self, width: int, pair_size: int) -> None:
        super().__init__()
        sizes = (pair_size, HIDDEN, HIDDEN, KERNELS)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(MaskedNorm(size) for size in sizes[1:])
        self.mix = nn.Linear(width * KERNELS, width)

    def forward(self, values: Tensor, elements: Tensor, there: Tensor, both: Tensor) -> Tensor:
        kernel = elements
        for layer, norm in zip(self.layers, self.norms, strict=True):
            kernel = nn.functional.silu(norm(layer(kernel), both))
        # One matrix product per cloud, (n · 16, n) by (n, width): never a tensor of pairs times channels.
        weights = (kernel * both[..., None]).movedim(-1, 2).flatten(1, 2)
        summed = (weights @ values).unflatten(1, (-1, KERNELS)).flatten(2)
        mixed: Tensor = self.mix(summed / there.sum(-1)[:, None, None])
        return mixed


class MaskedNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the entries that are there."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Features (..., channels), mask (...) of ones and zeros."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            weights, rows = mask.flatten(), x.flatten(0, -2)
            count = weights.sum()
            mean = weights @ rows / count
            variance = weights @ (rows - mean).square() / count
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
        assert mean is not None and variance is not None  # noqa: S101  -- they are tracked
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias - scale * mean, x, scale)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: S101
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.1)
            self.running_var.lerp_(variance, self.momentum or 0.1)
