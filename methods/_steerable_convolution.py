"""Convolutions that are equivariant to a group of rotations and reflections: e2cnn's kernels, plain tensors.

A feature map of f fields over a group of |G| elements is a tensor (N, f · |G|, H, W), the group elements of one field
side by side (Weiler & Cesa 2019, arXiv 1911.08251). e2cnn supplies the basis of all kernels that map fields to fields;
everything else acts on each channel alike and is torch's own, so a network becomes plain convolutions by expanding
its kernels once.

e2cnn 0.2.3 is its last release. It is imported here only, with what newer numpy asks of it.
"""

import copy
import math
import types
import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.symmetry import EquivariantLayer


@cache
def e2cnn() -> Any:
    """Return the package's modules `gspaces`, `nn` and `nn.init`, as attributes.

    From numpy 2 on `np.array(x, copy=False)` refuses to copy; e2cnn means `np.asarray`, and gets it. From 2.3 on arrays
    have no `tostring`, which some of its kernels' hashes call. Sums over three factors at once take e2cnn 15 s for
    D_16; in an order of numpy's choice a fifth of it. Python warns of its docstrings when it compiles them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from e2cnn import gspaces
        from e2cnn import nn as layers
        from e2cnn.kernels import irreps_basis, steerable_basis, utils
        from e2cnn.nn import init

    for name in ("Flips", "ContinuousRotations", "FlipsDiscreteRotations", "FlipsContinuousRotations"):
        getattr(irreps_basis, f"R2{name}Solution").__hash__ = _kernels_hash
    numpy = types.SimpleNamespace(**vars(np))
    numpy.array = lambda x, copy=True, **options: np.array(x, **options) if copy else np.asarray(x, **options)
    numpy.einsum = partial(np.einsum, optimize=True)
    utils.np = steerable_basis.np = numpy
    return types.SimpleNamespace(gspaces=gspaces, nn=layers, init=init)


def _kernels_hash(kernels: Any) -> int:
    """Hash two representations, frequencies and phases, by which e2cnn caches kernels."""
    return hash((kernels.in_irrep, kernels.out_irrep, kernels.mu.tobytes(), np.asarray(kernels.gamma).tobytes()))


@dataclass(frozen=True)
class Fields:
    """So many fields of one type: functions on a group, or channels that do not change with it.

    Args:
        count: number of fields.
        space: e2cnn's group with its action on the plane.
        representation: e2cnn's, how one field changes with the group.
    """

    count: int
    space: Any
    representation: Any

    @property
    def channels(self) -> int:
        """Number of channels of a tensor that holds the fields."""
        return self.count * int(self.representation.size)


def group(rotations: int, reflections: bool) -> Any:
    """Return the plane with C_N, or D_N with reflections, acting on it."""
    spaces = e2cnn().gspaces
    return spaces.FlipRot2dOnR2(rotations) if reflections else spaces.Rot2dOnR2(rotations)


def image(space: Any, channels: int) -> Fields:
    """Return the type of an image, whose channels do not change with the group."""
    return Fields(channels, space, space.trivial_repr)


def functions(space: Any, count: int) -> Fields:
    """Return the type of so many functions on the group."""
    return Fields(count, space, space.regular_repr)


def without_reflections(given: Fields, rotations: int) -> Fields:
    """Restrict the type of the same channels to the rotations of D_N."""
    kind = e2cnn().nn.FieldType(given.space, [given.representation]).restrict((None, rotations))
    return Fields(given.count, kind.gspace, kind.representations[0])


class SteerableConvolution(EquivariantLayer):
    """A convolution whose kernel is a learned combination of the equivariant ones.

    Every pair of an input and an output field has the same basis of kernels, which is therefore made once for one pair;
    the first weights follow He's rule on the basis. Both are e2cnn's to rounding, and a hundred times faster to make.

    Args:
        inputs, outputs: the fields.
        size: side of the kernel.
        padding: zeros at the border.
        bias: one number for each output field; leave it to a batch norm that follows.
    """

    basis: Tensor
    quarter_turn_in: Tensor | None
    quarter_turn_out: Tensor | None

    def __init__(self, inputs: Fields, outputs: Fields, size: int, padding: int = 0, bias: bool = False) -> None:
        super().__init__()
        self.shape, self.padding = (outputs.channels, inputs.channels, size, size), padding
        self.elements = int(outputs.representation.size)
        basis, deviations = _pair_basis(inputs, outputs, size)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("quarter_turn_in", _quarter_turn(inputs), persistent=False)
        self.register_buffer("quarter_turn_out", _quarter_turn(outputs), persistent=False)
        noise = torch.randn(outputs.count, inputs.count, len(basis))
        self.weights = nn.Parameter(noise * deviations / math.sqrt(inputs.count))
        self.bias = nn.Parameter(torch.zeros(outputs.count)) if bias else None

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        """Return the kernel (outputs, inputs, size, size) and the bias (outputs,)."""
        bias = None if self.bias is None else self.bias.repeat_interleave(self.elements)
        return torch.einsum("oid,dabyx->oaibyx", self.weights, self.basis).reshape(self.shape), bias

    def forward(self, x: Tensor) -> Tensor:
        kernel, bias = self.kernel()
        return F.conv2d(x, kernel, bias, padding=self.padding)

    def turned_inputs(self, inputs: tuple[Tensor], quarters: int) -> tuple[Tensor] | None:
        return None if self.quarter_turn_in is None else (_turned(inputs[0], quarters, self.quarter_turn_in),)

    def turned_outputs(self, outputs: Tensor, quarters: int, inputs: tuple[Tensor]) -> Tensor | None:
        return None if self.quarter_turn_out is None else _turned(outputs, quarters, self.quarter_turn_out)

    def export(self) -> nn.Conv2d:
        """The same map as a plain convolution with the present weights."""
        outputs, inputs, size, _ = self.shape
        plain = nn.Conv2d(inputs, outputs, size, padding=self.padding, bias=self.bias is not None)
        with torch.no_grad():
            kernel, bias = self.kernel()
            plain.weight = nn.Parameter(kernel, requires_grad=False)
            plain.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return plain.train(self.training)


def _turned(maps: Tensor, quarters: int, quarter: Tensor) -> Tensor:
    """Turn fields (N, C, H, W) by quarters: their places, and each of them by a matrix (size of a field, same)."""
    fields = torch.rot90(maps, quarters, (-2, -1)).unflatten(1, (-1, len(quarter)))
    matrix = torch.linalg.matrix_power(quarter, quarters).to(maps.dtype)
    return torch.einsum("ab,nfbhw->nfahw", matrix, fields).flatten(1, 2)


def _quarter_turn(fields: Fields) -> Tensor | None:
    """Return the matrix by which a field changes when the plane turns by a quarter; None where that is no element."""
    elements = fields.space.fibergroup
    reflections = isinstance(elements.elements[0], tuple)
    rotations = elements.rotation_order if reflections else elements.order()
    if rotations % 4:
        return None
    quarter = rotations // 4
    return torch.tensor(fields.representation((0, quarter) if reflections else quarter), dtype=torch.float32)


@cache
def _pair_basis(inputs: Fields, outputs: Fields, size: int) -> tuple[Tensor, Tensor]:
    """Return equivariant kernels from one field to one field, and the deviations of their first weights.

    Returns:
        (dimension, |out|, |in|, size, size) and (dimension,).
    """
    field_type = e2cnn().nn.FieldType
    with warnings.catch_warnings():  # of idioms that are old, not of results that are wrong
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "indexing with dtype torch.uint8", UserWarning)
        kinds = [field_type(side.space, [side.representation]) for side in (inputs, outputs)]
        expansion = e2cnn().nn.R2Conv(*kinds, size, bias=False, initialize=False).basisexpansion
        deviations: Tensor = e2cnn().init._generalized_he_init_variances(expansion)
    kernels = torch.stack([expansion(weights) for weights in torch.eye(len(deviations))])
    return kernels.unflatten(-1, (size, size)).contiguous(), deviations


class FieldNorm(nn.BatchNorm3d):
    """Batch norm with one mean and deviation for each field, whatever the group element."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(1, (self.num_features, -1))).flatten(1, 2)


class FieldMaximum(nn.Module):
    """The largest value over the group: fields (N, f · |G|, H, W) to invariants (N, f, H, W)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        largest: Tensor = x.unflatten(1, (self.count, -1)).amax(2)
        return largest


class BlurPool(nn.Module):
    """Strided average with Gaussian weights, σ in pixels: pooling that does not alias (arXiv 1904.11486)."""

    weights: Tensor

    def __init__(self, sigma: float, stride: int, padding: int | None = None) -> None:
        super().__init__()
        reach = round(3 * sigma)
        self.stride, self.padding = stride, reach if padding is None else padding
        line = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
        square = line[:, None] * line
        self.register_buffer("weights", square / square.sum(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights.expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, weights, stride=self.stride, padding=self.padding, groups=x.shape[1])


class Fitted(nn.Module):
    """An image on a larger square with the same centre, black outside, so that no later layer prefers a side.

    Where the parity of the sides differs, the image is sampled halfway between its pixels first, by the mean of each
    2x2 block: shifting it by half a pixel instead would turn it about another centre.

    Args:
        side: of the square.
        black: what a black pixel is in the image (C or 1, 1, 1); it becomes 0, as the zeros around.
        disk: fade out what a turn about the centre would move across the border.
    """

    mask: Tensor
    black: Tensor

    def __init__(self, side: int, black: Tensor, disk: bool = False) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("black", black, persistent=False)
        self.register_buffer("mask", _disk(side) if disk else torch.ones(1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.black
        odd = [(self.side - length) % 2 for length in x.shape[-2:]]
        if any(odd):
            x = F.avg_pool2d(F.pad(x, [odd[1]] * 2 + [odd[0]] * 2), [1 + odd[0], 1 + odd[1]], stride=1)
        vertical, horizontal = ((self.side - length) // 2 for length in x.shape[-2:])
        return F.pad(x, [horizontal] * 2 + [vertical] * 2) * self.mask


class Exporting(nn.Module):
    """A network that evaluates through plain convolutions, made again only when its weights have changed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._plain: list[nn.Module] = []  # in a list, so that it is no part of the state
        self._made_of: list[tuple[Tensor, int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            features: Tensor = self.network(x)
            return features
        plain: Tensor = self.export()(x)
        return plain

    def export(self) -> nn.Module:
        """The network with plain convolutions in the place of steerable ones; all else is shared with it."""
        now: list[tuple[Tensor, int, int]] = [(p, p._version, p.data_ptr()) for p in self.parameters()]
        same = len(now) == len(self._made_of) and all(
            p is q and rest == others for (p, *rest), (q, *others) in zip(now, self._made_of, strict=True)
        )
        if not same:
            self._plain, self._made_of = [_exported(self.network, {})], now
        return self._plain[0].train(self.training)


def _exported(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copy the module; parts that are used twice stay one."""
    if module not in done:
        if isinstance(module, SteerableConvolution):
            done[module] = module.export()
        else:
            done[module] = copy.copy(module)
            done[module]._modules = {
                name: _exported(part, done) for name, part in module._modules.items() if part is not None
            }
    return done[module]


def _disk(side: int) -> Tensor:
    """Return a mask: 1 up to 99 % of the largest radius, falling off within a few pixels beyond."""
    centre = (side - 1) / 2
    squared = (torch.arange(side) - centre).square()
    beyond = squared[:, None] + squared - (0.99 * centre) ** 2
    return torch.exp(-beyond.clamp(min=0) / 4)
