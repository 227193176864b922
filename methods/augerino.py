"""Augerino: learn the distribution of augmentations with the weights ("Learning Invariances in Neural Networks").

Benton, Finzi, Izmailov, Wilson (2020), arXiv 2010.11882. With generators G_k of affine transformations, free
parameters ρ_k and uniform noise u_k ~ U(0, 1) for every input and copy j:

    w = softplus(ρ)                                        widths, learned with the network's weights
    ε_k = w_k (u_k - 1/2)    or, one-sided, w_k u_k        so that ε_k ~ U(-w_k/2, w_k/2), or U(0, w_k)
    g_j = exp(Σ_k ε_k G_k)
    h(x) = (1/J) Σ_j f(g_j x)                              J = 1 in training, more in evaluation
    objective = risk - λ ‖w‖₂ 1[max_k w_k < c]             `norm`, the authors' rule for images
    objective = risk - λ Σ_k w_k² 1[w_k < c]               `squares`, theirs for molecules

so that, away from the cut-off c, ∂(objective - risk)/∂ρ_k = -λ (w_k/‖w‖) σ(ρ_k). Gradients of the risk reach ρ through
ε, the exponential and the sampling of the image. Images: translation_x, translation_y (a unit is a twentieth of the
side), rotation (radians), scale, stretch, shear. Point clouds: three rotations, shears, stretches or scale, and
translations (a unit is half an Å); positions p become p M[:3, :3] + M[:3, 3], as in the authors' code.

Deviations from the authors' code:
- The exponential is exact and on the device; theirs is an adaptive ODE solution on the CPU for images and one step of
  a fourth-order solver for molecules, 2.5 % off at their first widths.
- Outside the image is black. Theirs is 0 after standardisation: grey, where the background is not 0.
- A regression averages outputs; theirs took the logarithm of a softmax of one output, which is 0.
- Their log-probabilities are averaged and then used as such; here the average is normalised again, as a logit is.
- The regulariser has its cut-off by default for images as well, and all copies are one batch.

On a GPU the gradient of the sampling adds in no fixed order, so runs there are not repeatable bit for bit.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.affine import generators
from invbench.components.augmentation import AugmentationMethod, Interval, RandomAffine, known_generators
from invbench.components.learned import LearnedScalars
from invbench.core.data import Batch, Problem
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("augerino")
class Augerino(AugmentationMethod):
    """Average over affine transformations whose widths are learned."""

    display_name: ClassVar[str] = "Augerino"
    requires: ClassVar[tuple[str, ...]] = ("image or point_cloud",)
    small: ClassVar[Mapping[str, Any]] = {"method.test_copies": 2}
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "image": {"method.initial_width": -40.0, "method.initial_widths": {"rotation": -40.0}},
        "point_cloud": {"method.initial_width": -40.0},
    }

    regularisation: float = setting(
        0.01, "λ; the authors' low, middle and high are 0.01, 0.05, 0.1", ge=0, search=LogUniform(1e-3, 1), fusable=True
    )
    regulariser: Literal["norm", "squares"] = setting("norm", "-λ‖w‖, or -λ Σ w²")
    cutoff: float | None = setting(
        10.0, "width c from which on the regulariser is off: norm for all, squares for that width; null for never", gt=0
    )
    generators: tuple[str, ...] | None = setting(None, "names of the generators; null takes all", min_length=1)
    initial_width: float = setting(0.0, "first ρ of every generator; -5 is a width of 0.007, 0 of 0.69, 1 of 1.31")
    initial_widths: dict[str, float] = setting({}, "first ρ of single generators by name, such as {rotation: -1}")
    interval: Interval = setting("symmetric", "of ε: around 0, or one_sided from 0 as the authors have for molecules")
    learning_rate: float | None = setting(None, "of the widths; null takes the trainer's", gt=0)

    def transformation(self, problem: Problem) -> nn.Module:
        names = known_generators(problem, self.generators or tuple(generators(problem)), "method.generators")
        known_generators(problem, tuple(self.initial_widths), "method.initial_widths")
        raw = {name: self.initial_widths.get(name, self.initial_width) for name in names}
        widths = LearnedScalars("width", raw, F.softplus, self.learning_rate)
        return RandomAffine(problem, widths, names, self.interval)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        width = outputs.learned["width"]
        small = width < (self.cutoff or math.inf)
        if self.regulariser == "squares":
            return -self.regularisation * (small * width.square()).sum(), state
        return -self.regularisation * small.all() * width.norm(), state
