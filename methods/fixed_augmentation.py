"""Fixed augmentation: average over transformations chosen by hand, on the same terms as learned ones.

    h(x) = (1/J) Σ_j f(g_j x),   g_j drawn for every input and copy; J = 1 in training, more in evaluation

    affine       g = exp(Σ_k ε_k G_k), ε_k ~ U(-w_k/2, w_k/2), of which Augerino learns the widths w
    crop_flip    images padded by 4 pixels, cropped at random to their size, mirrored with probability 1/2
    rigid        molecules: a shift by 0.5 N(0, 1)³ Å, then a rotation drawn uniformly from SO(3)

These are the baselines of Augerino's experiments (arXiv 2010.11882). Their authors take inputs as they are in
evaluation, which `test_copies: 0` does; by default it averages as many copies as the learned augmentation, so that the
two differ in nothing but the distribution.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from invbench.components.affine import random_motion
from invbench.components.augmentation import AugmentationMethod, RandomAffine, known_generators
from invbench.components.images import random_crop, random_flip
from invbench.core.data import Pixels, Problem
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.errors import UserError

PADDING = 4


@register_method("fixed_augmentation")
class FixedAugmentation(AugmentationMethod):
    """Average over transformations chosen by hand."""

    display_name: ClassVar[str] = "Fixed augmentation"
    requires: ClassVar[tuple[str, ...]] = ("image or point_cloud",)
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "image": {
            "method.distribution": "affine",
            "method.widths": {"rotation": 0.0, "scale": 0.0, "translation_x": 0.0, "translation_y": 0.0},
        },
        "point_cloud": {"method.distribution": "affine", "method.widths": {"rotation_x": 0.0}},
    }

    distribution: Literal["affine", "crop_flip", "rigid"] | None = setting(
        None, "null is affine for images, rigid for point clouds"
    )
    widths: dict[str, float] = setting(
        {"rotation": 0.5, "scale": 0.2}, "affine: w by generator, in the units of each", min_length=1
    )

    def transformation(self, problem: Problem) -> nn.Module:
        chosen = self.distribution or ("affine" if problem.kind == "image" else "rigid")
        kind = {"crop_flip": "image", "rigid": "point_cloud"}.get(chosen, problem.kind)
        if kind != problem.kind:
            raise UserError(f"method.distribution: {chosen} is for {kind} inputs, these are {problem.kind}")
        if chosen == "affine":
            names = known_generators(problem, tuple(self.widths), "method.widths")
            return RandomAffine(problem, _Constant(list(self.widths.values())), names, "symmetric")
        return _CropFlip(problem.pixels) if chosen == "crop_flip" else _RigidMotion()


class _Constant(nn.Module):
    values: Tensor

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values), persistent=False)

    def forward(self) -> Tensor:
        return self.values


class _CropFlip(nn.Module):
    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return random_flip(random_crop(x, PADDING, self.pixels.black(x)))


class _RigidMotion(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return random_motion(x)
