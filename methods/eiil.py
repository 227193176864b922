"""EIIL: divide the training examples into the two environments in which a finished run is least invariant.

Creager, Jacobsen, Zemel (2021), "Environment Inference for Invariant Learning", arXiv 2010.07249. For every example the
reference model f₁ has a loss, whose derivative by a factor s of the predictions is g_i = ∂ℓ(s f₁(x_i), y_i)/∂s at
s = 1, the number of IRMv1's penalty. Weights w_i ∈ (0, 1) maximise

    (((1/N) Σ_i w_i g_i)² + ((1/N) Σ_i (1 - w_i) g_i)²) / 2

by Adam on their logits, which are standard normal at first, and the environments are {i: w_i > 1/2} and its complement.
Another part then trains on these environments, as in `bench run -m irmv1 --infer-groups eiil`; alone, it minimises the
mean of their risks. Steps and step size are the authors'. No attribute need be known; environments that the training
data have are not used.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from invbench.core.data import Problem
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.core.stages import FirstStage, SecondStage, with_environments


@register_method("eiil")
class EIIL(SecondStage):
    """Infer two environments between which a finished run is least invariant."""

    display_name: ClassVar[str] = "EIIL"
    provides: ClassVar[tuple[str, ...]] = ("environments",)

    steps: int = setting(10_000, "updates of the weights", ge=1)
    learning_rate: float = setting(1e-3, "their step size", gt=0)

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        train = problem.splits["train"]
        prediction = first.outputs(train).prediction
        y = train.y.to(prediction) if train.y.is_floating_point() else train.y
        g = (problem.task.loss_gradients(prediction, y) * prediction).sum(-1)
        logits = torch.from_numpy(generator.standard_normal(len(train)))
        return with_environments(problem, (least_invariant(g, logits, self.steps, self.learning_rate) > 0).long())


def least_invariant(g: Tensor, logits: Tensor, steps: int, learning_rate: float) -> Tensor:
    """Maximise the squared sums of the slopes (N,) in both environments; return the weights' logits (N,)."""
    logits = logits.clone()
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(1, steps + 1):  # written out: torch's autograd and Adam take several times as long
        w = logits.sigmoid()
        first, second = (w * g).mean(), ((1 - w) * g).mean()
        gradient = w * (1 - w) * g * ((first - second) / len(g))
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        deviation = square.sqrt().div_(math.sqrt(1 - 0.999**step)).add_(1e-8)
        logits.addcdiv_(mean, deviation, value=learning_rate / (1 - 0.9**step))
    return logits
