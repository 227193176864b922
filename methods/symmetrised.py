"""Symmetrisation: average any network over a group, with weights that may depend on the input.

Kim, Nguyen, Suleymanzade, An, Hong (2023), "Learning Probabilistic Symmetrization for Architecture Agnostic
Equivariance", NeurIPS, arXiv 2306.02866. With weights p_g(x) that turn with the input, p_{hg}(h x) = p_g(x),

    h(x) = Σ_{g in G} p_g(x) f(g⁻¹ x)        so that h(h x) = h(x) whatever the network f is

    uniform    p_g = 1/|G|: the average over the group
    learned    p = softmax(β s), s = c(x) the scores of a small steerable network, as in `canonical`
    frame      p uniform on the elements with the best score: frame averaging (Puny et al. 2022, arXiv 2110.03336)

β → 0 of learned is uniform, β → ∞ is frame, which is `canonical` where one element is the best. G is C_N or D_N.
Deviations: the sum has all elements, theirs is a mean of samples, for which the network c gets noise; predictions are
averaged as they are, ahead of the softmax. A frame carries no gradient to its scores, which keep their first weights.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from invbench.components.symmetry import LearnedSymmetry
from invbench.core.data import Problem
from invbench.core.hooks import MappableNetwork
from invbench.core.method import Outputs, as_outputs
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting
from invbench.methods._plane_group import SteerableScores, Turns

TIE = 1e-4
"""Part of the spread of an input's scores by which one may be below the best and belong to the frame."""


@register_method("symmetrised")
class Symmetrised(MappableNetwork):
    """Average a network over turns of its input, with weights that are uniform, learned, or one for a frame."""

    display_name: ClassVar[str] = "Symmetrisation"
    requires: ClassVar[tuple[str, ...]] = ("image",)
    small: ClassVar[Mapping[str, Any]] = {"method.fields": 2}

    distribution: Literal["uniform", "learned", "frame"] = setting(
        "learned", "weights of the group's elements", search=Choice(("uniform", "learned", "frame"))
    )
    rotations: int = setting(4, "N: turns by multiples of 2π/N", ge=2, le=64)
    reflections: bool = setting(False, "whether reflections belong to the group")
    sharpness: float = setting(1.0, "β, of learned weights", gt=0)
    fields: int = setting(8, "fields of the steerable network's hidden layers", ge=1)

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return GroupAverage(self, model, problem)


class GroupAverage(LearnedSymmetry):
    """A network's mean over all copies of its input."""

    def __init__(self, method: Symmetrised, model: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.method, self.model, self.turns = method, model, Turns(problem)
        is_uniform = method.distribution == "uniform"
        shape = method.rotations, method.reflections, method.fields
        self.scores = None if is_uniform else SteerableScores(problem, *shape)
        if self.scores is not None and method.distribution == "frame":
            self.scores.requires_grad_(False)

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        end = x.new_full((1,), torch.pi * (self.method.rotations - 1) / self.method.rotations)
        return {"rotation": (-end, end)}

    def weights(self, x: Tensor) -> Tensor:
        """Compute p (N, |G|) of images (N, C, S, S)."""
        if self.scores is None:
            count = self.method.rotations * (1 + self.method.reflections)
            return x.new_full((len(x), count), 1 / count)
        scores = self.scores(x)
        if self.method.distribution == "learned":
            learned: Tensor = (self.method.sharpness * scores).softmax(1)
            return learned
        largest, spread = scores.amax(1, keepdim=True), scores.std(1, keepdim=True)
        best: Tensor = (scores >= largest - TIE * spread).to(x.dtype)
        return best / best.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Outputs:
        weights = self.weights(x)
        copies = self.turns.copies(x, self.method.rotations, self.method.reflections)
        outputs = as_outputs(self.model(copies.flatten(0, 1)))
        return outputs.map(lambda part: torch.einsum("ng,gn...->n...", weights, part.unflatten(0, copies.shape[:2])))
