"""Augerino for colours: learn how far brightness and contrast may vary.

Benton, Finzi, Izmailov, Wilson (2020), arXiv 2010.11882, experiments on colour. Four limits l = 2 σ(ρ) - 1 in (-1, 1),
for brightness and contrast each a lower and an upper one; per input and copy, on pixels p in [0, 1]:

    b ~ U(l_1, l_2),   p <- clamp(p + b, 0, 1)
    c ~ 255 U(l_3, l_4),   f = 259 (c + 255) / (255 (259 - c)),   p <- clamp(f (255 p - 128) + 128, 0, 255) / 255
    objective = risk - λ ‖(l_2 - l_1, l_4 - l_3)‖₂

The first ρ are -2 and 2, the limits ±0.76. Pixels are standardised anew afterwards.

Deviations: the released code does not say which norm its regulariser takes here; the lengths of the two intervals are
what the widths are for affine transformations.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invbench.components.augmentation import AugmentationMethod
from invbench.components.learned import LearnedScalars
from invbench.core.data import Batch, Pixels, Problem
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting

LIMITS = ("brightness_low", "brightness_high", "contrast_low", "contrast_high")


@register_method("augerino_color")
class AugerinoColor(AugmentationMethod):
    """Average over changes of brightness and contrast whose limits are learned."""

    display_name: ClassVar[str] = "Augerino (color)"
    requires: ClassVar[tuple[str, ...]] = ("image",)
    # its gradient would be noise even without a change
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"image": {"method.train_copies": 0}}

    regularisation: float = setting(0.1, "λ", ge=0, search=LogUniform(1e-3, 1), fusable=True)
    initial_limit: float = setting(2.0, "first ρ of the upper limits, and minus that of the lower", gt=0)
    learning_rate: float | None = setting(None, "of the limits; null takes the trainer's", gt=0)

    def transformation(self, problem: Problem) -> nn.Module:
        signs = (-1, 1, -1, 1)
        raw = {name: sign * self.initial_limit for name, sign in zip(LIMITS, signs, strict=True)}
        limits = LearnedScalars("limit", raw, lambda rho: 2 * rho.sigmoid() - 1, self.learning_rate)
        return RandomColor(problem.pixels, limits)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        low, high = outputs.learned["limit"].unflatten(0, (2, 2)).unbind(1)
        return -self.regularisation * (high - low).norm(), state


class RandomColor(nn.Module):
    """Random brightness, then contrast, of standardised images (N, C, H, W)."""

    def __init__(self, pixels: Pixels, limits: nn.Module) -> None:
        super().__init__()
        self.pixels, self.limits = pixels, limits

    def forward(self, x: Tensor) -> Tensor:
        return self.transformed(x, torch.rand(len(x), 2, dtype=x.dtype, device=x.device))

    def transformed(self, x: Tensor, noise: Tensor) -> Tensor:
        """Apply to the images the changes that noise (N, 2) in [0, 1) stands for."""
        low, high = self.limits().unflatten(0, (2, 2)).unbind(1)
        brightness, contrast = (low + (high - low) * noise).T[:, :, None, None, None]
        p = (self.pixels.restored(x) + brightness).clamp(0, 1)
        c = 255 * contrast
        factor = 259 * (c + 255) / (255 * (259 - c))
        p = (factor * (255 * p - 128) + 128).clamp(0, 255) / 255
        return self.pixels.standardised(p)
