"""Canonicalisation: turn every input into a standard pose, then predict with any network.

Kaba, Mondal, Zhang, Bengio, Ravanbakhsh (2023), "Equivariance with Learned Canonicalization Functions", ICML, arXiv
2211.06489; the prior loss is Mondal et al. (2023), "Equivariant Adaptation of Large Pretrained Models", NeurIPS, arXiv
2310.01647. A small network c that is steerable by G scores the elements of G, s = c(x) with s(g x)_h = s(x)_{g⁻¹h}:

    ĝ = argmax_g s_g        h(x) = f(ĝ⁻¹ x)        so that h(g x) = h(x) whatever the network f is

Gradients reach c as if ĝ⁻¹ x were Σ_g p_g g⁻¹ x with p = softmax(β s). With weight λ a prior has c leave images as they
are where they are upright in training: λ times the cross-entropy of p and the identity. Elements are the N turns, or
these and reflections. `continuous`: c finds one vector of the plane, whose angle is the turn, or two, whose order tells
a reflection (Gram-Schmidt); the prior is λ ‖ĝ - 1‖² of the matrices. Quarter turns change nothing, to rounding, where 4
divides N; other turns are sampled bilinearly, and c knows them as well as its kernels on pixels do.

Scores that are equal, such as those of an image that is its own half turn, leave the pose to rounding. Deviations: c
has no batch norm; images are not padded before they are turned, nor cropped for c; G is small, so all elements are
scored by one steerable network, not one plain network on all copies."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.symmetry import LearnedSymmetry
from invbench.core.data import Batch, Problem
from invbench.core.hooks import MappableNetwork
from invbench.core.method import Outputs, State, as_outputs
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting
from invbench.core.task import one_hot
from invbench.errors import UserError
from invbench.methods._plane_group import SteerableScores, Turns


@register_method("canonical")
class Canonical(MappableNetwork):
    """Turn images into a learned standard pose before a network sees them."""

    display_name: ClassVar[str] = "Canonicalisation"
    requires: ClassVar[tuple[str, ...]] = ("image",)
    small: ClassVar[Mapping[str, Any]] = {"method.fields": 2}

    rotations: int = setting(4, "N: turns by multiples of 2π/N; 3 at least where they are continuous", ge=2, le=64)
    reflections: bool = setting(False, "whether reflections are undone, too")
    continuous: bool = setting(False, "turn by any angle, that of a vector which a network steerable by N turns finds")
    prior_weight: float = setting(
        0.0, "λ; the authors have 100 beside pretrained networks", ge=0, search=Choice((0.0, 1.0, 100.0)), fusable=True
    )
    sharpness: float = setting(1.0, "β, of the softmax that carries gradients", gt=0)
    fields: int = setting(8, "fields of the steerable network's hidden layers", ge=1)

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        if self.continuous and self.rotations < 3:
            raise UserError("method.continuous needs method.rotations of 3 or more: C_2 turns no vector of the plane")
        kind = ContinuousPose if self.continuous else Pose
        return Canonicalised(model, kind(problem, self.rotations, self.reflections, self.fields, self.sharpness))

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.prior_weight * outputs.further["away_from_identity"].mean(), state


class Canonicalised(nn.Module):
    """A network behind a module that returns inputs in a standard pose, and how far (N,) that is from theirs."""

    def __init__(self, model: nn.Module, pose: nn.Module) -> None:
        super().__init__()
        self.model, self.pose = model, pose

    def forward(self, x: Tensor) -> Outputs:
        posed, away = self.pose(x)
        outputs = as_outputs(self.model(posed))
        return outputs._replace(further={**outputs.further, "away_from_identity": away})


class Pose(LearnedSymmetry):
    """ĝ⁻¹ x with the element of C_N or D_N that has the best score."""

    def __init__(self, problem: Problem, rotations: int, reflections: bool, fields: int, sharpness: float) -> None:
        super().__init__()
        self.scores = SteerableScores(problem, rotations, reflections, fields)
        self.turns, self.rotations, self.reflections = Turns(problem), rotations, reflections
        self.sharpness = sharpness

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        end = x.new_full((1,), torch.pi * (self.rotations - 1) / self.rotations)
        return {"rotation": (-end, end)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, C, S, S) in their pose, and the cross-entropy (N,) with the identity."""
        logits = self.sharpness * self.scores(x)
        best = one_hot(logits.argmax(1), logits.shape[1], x.dtype)
        soft = logits.softmax(1)
        weights = best + (soft - soft.detach())  # one for the best, with the gradient of the softmax
        copies = self.turns.copies(x, self.rotations, self.reflections)
        return torch.einsum("ng,gnchw->nchw", weights, copies), -logits.log_softmax(1)[:, 0]


class ContinuousPose(LearnedSymmetry):
    """ĝ⁻¹ x with the turn, and reflection, of vectors that turn with the image."""

    def __init__(self, problem: Problem, rotations: int, reflections: bool, fields: int, sharpness: float) -> None:
        super().__init__()
        self.vectors = SteerableScores(problem, rotations, reflections, fields, vectors=1 + reflections)
        self.turns = Turns(problem)

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        end = x.new_full((1,), torch.pi)
        return {"rotation": (-end, end)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, C, S, S) in their pose, and ‖ĝ - 1‖² (N,) of the matrices."""
        vectors = self.vectors(x)
        first, second = vectors[:, 0], vectors[:, -1]
        cosine = F.normalize(first, dim=1)[:, 0]
        is_reflected = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0
        posed = self.turns.back(x, torch.atan2(first[:, 1], first[:, 0]), is_reflected)
        # The second column of ĝ is (-sine, cosine), or its negative.
        away = 2 * (1 - cosine) + torch.where(is_reflected, 2 * (1 + cosine), 2 * (1 - cosine))
        return posed, away
