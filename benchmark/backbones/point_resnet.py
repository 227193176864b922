"""The residual point-cloud network of Augerino's QM9 experiment (LieConv's residual network)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.point_clouds import CHARGE_FEATURES, charge_features, points
from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import Choice, setting

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

    and the mean over the points at the end. The order of the points changes nothing. Points and pairs are rows of one
    table, without the padding, so batch norm sees only what is there; how many there are is asked of the device once a
    pass. Deviation: neighbours are never drawn at random, which the authors' limit of 100 does not do to molecules of
    at most 29 atoms either.
    """

    accepts: ClassVar[tuple[str, ...]] = ("point_cloud",)

    width: int = setting(1536, "channels k, a multiple of 4", ge=4, multiple_of=4, search=Choice((384, 1536)))
    depth: int = setting(6, "blocks", ge=1)
    group: Literal["trivial", "translation"] = setting("translation", "what the pair element leaves out")

    def build(self, problem: Problem) -> nn.Module:
        features = _Features(self.width, self.depth, self.group == "translation")
        return FeaturesAndHead(features, nn.Linear(self.width, problem.task.outputs))


@dataclass(frozen=True)
class _Layout:
    """Indices of the rows of packed tensors: points and pairs that are there, padding left out.

    Args:
        shape: clouds N and points n of the padded tensors.
        cloud, point: of each packed point (A,).
        pair_cloud, receiver, sender: of each packed pair (P,).
        counts: points of each cloud (N, 1).
    """

    shape: tuple[int, int]
    cloud: Tensor
    point: Tensor
    pair_cloud: Tensor
    receiver: Tensor
    sender: Tensor
    counts: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "_Layout":
        """Make the layout of a mask (N, n)."""
        cloud, point = mask.nonzero(as_tuple=True)
        pair_cloud, receiver, sender = (mask[:, :, None] & mask[:, None]).nonzero(as_tuple=True)
        clouds, n = mask.shape
        return cls((clouds, n), cloud, point, pair_cloud, receiver, sender, mask.sum(1, keepdim=True))

    def padded(self, rows: Tensor) -> Tensor:
        """Unpack rows (A, channels) of points to (N, n, channels), zero where there is no point."""
        padded = rows.new_zeros(*self.shape, rows.shape[1])
        padded[self.cloud, self.point] = rows
        return padded


class _Features(nn.Module):
    """Point clouds (N, n, 4) -> (N, width)."""

    def __init__(self, width: int, depth: int, translation: bool) -> None:
        super().__init__()
        self.translation = translation
        self.embedding = nn.Linear(CHARGE_FEATURES, width)
        self.blocks = nn.ModuleList(_Block(width, 3 if translation else 6) for _ in range(depth))
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        positions, charges, mask = points(x)
        layout = _Layout.of(mask)
        elements = self._elements(positions, layout)
        features = self.embedding(charge_features(charges[layout.cloud, layout.point]))
        for block in self.blocks:
            features = block(features, elements, layout)
        return layout.padded(F.silu(self.norm(features))).sum(1) / layout.counts

    def _elements(self, positions: Tensor, layout: _Layout) -> Tensor:
        """Compute the pair elements (P, 3 or 6) of positions (N, n, 3)."""
        receiver, sender = (positions[layout.pair_cloud, point] for point in (layout.receiver, layout.sender))
        return receiver - sender if self.translation else torch.cat([receiver, sender], dim=1)


class _Block(nn.Module):
    def __init__(self, width: int, pair_size: int) -> None:
        super().__init__()
        inner = width // 4
        self.reduce = nn.Sequential(nn.BatchNorm1d(width), nn.SiLU(), nn.Linear(width, inner))
        self.between = nn.Sequential(nn.BatchNorm1d(inner), nn.SiLU())
        self.convolution = _Convolution(inner, pair_size)
        self.expand = nn.Sequential(nn.BatchNorm1d(inner), nn.SiLU(), nn.Linear(inner, width))

    def forward(self, x: Tensor, elements: Tensor, layout: _Layout) -> Tensor:
        """Map features (A, width), with pair elements (P, D), to new features (A, width)."""
        inner = self.convolution(self.between(self.reduce(x)), elements, layout)
        new: Tensor = x + self.expand(inner)
        return new


class _Convolution(nn.Module):
    def __init__(self, width: int, pair_size: int) -> None:
        super().__init__()
        layers = [
            layer
            for inputs, outputs in pairwise((pair_size, HIDDEN, HIDDEN, KERNELS))
            for layer in (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.SiLU())
        ]
        self.kernel = nn.Sequential(*layers)
        self.mix = nn.Linear(width * KERNELS, width)

    def forward(self, values: Tensor, elements: Tensor, layout: _Layout) -> Tensor:
        """Convolve values (A, width), with pair elements (P, D), to (A, width)."""
        clouds, n = layout.shape
        weights = values.new_zeros(clouds, n, KERNELS, n)
        weights[layout.pair_cloud, layout.receiver, :, layout.sender] = self.kernel(elements)
        # One matrix product per cloud, (n · 16, n) by (n, width): never a tensor of pairs times channels.
        pooled = (weights.flatten(1, 2) @ layout.padded(values)).unflatten(1, (n, KERNELS)).flatten(2)
        mixed: Tensor = self.mix((pooled / layout.counts[..., None])[layout.cloud, layout.point])
        return mixed
