"""AFR: train the head again on examples weighted by how unsure the first run was ("Automatic Feature Reweighting").

Qiu, Potapczynski, Izmailov, Wilson (2023), "Simple and Fast Group Robustness by Automatic Feature Reweighting", arXiv
2306.11074. With the body φ and the head W₁, b₁ of a finished run, the probability p_i that it gives to the label of
example i, and the number n_y of examples of each class, the head begins at W₁, b₁ and minimises

    Σ_i w_i ℓ_i + λ (‖W - W₁‖² + ‖b - b₁‖²),   w_i ∝ exp(-γ p_i) / n_{y_i},   Σ_i w_i = 1

over examples that the first run has not seen, the split `second_stage`, which `dataset.second_stage_share` sets aside
(the paper takes a fifth). Sums are over a step, which has all examples where `trainer.batch_size` is null, as in the
paper. No attribute need be known. Defaults are those of Waterbirds; those of CelebA are γ = 1.8, λ = 0. The
authors' second stage has neither weight decay nor momentum; here the run's settings say.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invbench.components.classes import class_probability
from invbench.core.backbone import is_of_head
from invbench.core.data import Batch, Problem
from invbench.core.groups import SECOND_STAGE
from invbench.core.hooks import ExampleCounts, LossChange, LossFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.core.stages import FirstStage, SecondStage
from invbench.errors import UserError


@register_method("afr")
class AFR(SecondStage, LossChange, ExampleCounts):
    """Train the head of a finished run on, most of all where that was unsure of the label."""

    display_name: ClassVar[str] = "AFR"
    requires: ClassVar[tuple[str, ...]] = ("classification", "second_stage")
    keeps: ClassVar[Literal["nothing", "body", "network"]] = "network"

    temperature: float = setting(
        14.0,
        "γ, how much more the examples count that the first run was unsure of",
        ge=0,
        search=LogUniform(1, 30),
        fusable=True,
    )
    distance_weight: float = setting(
        0.2,
        "λ, of the squared distance of the head from where it begins",
        ge=0,
        search=LogUniform(1e-2, 1),
        fusable=True,
    )

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        if SECOND_STAGE not in problem.splits:
            raise UserError("dataset.second_stage_share is too small to set an example aside; make it larger")
        return replace(problem, examples=problem.splits[SECOND_STAGE])

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"first": {name: value.detach().clone() for name, value in parameters.items() if is_of_head(name)}}

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        p = class_probability(first_prediction(outputs, state), batch.y)
        n = state["counts"]["groups"].sum(1).clamp(min=1)
        of_class = n.index_select(0, batch.y.long().flatten()).reshape(p.shape)
        w = torch.softmax((-self.temperature * p - of_class.log()).flatten(), 0).reshape(p.shape)
        return w.shape.numel() * w.detach() * loss(outputs.prediction, batch.y)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        now = [part for part in outputs.head or () if part is not None]
        distances = [(value - first).square().sum() for value, first in zip(now, first_head(state), strict=False)]
        return self.distance_weight * sum(distances, start=risks.new_zeros(())), state


def first_head(state: State) -> list[Tensor]:
    """Return weights (outputs, features) and, if there are any, biases (outputs,) of the first stage's head."""
    named = state["first"]
    return [value for end in ("weight", "bias") for name, value in named.items() if name.endswith(end)]


def first_prediction(outputs: Outputs, state: State) -> Tensor:
    """Compute what the first stage's head makes of the representations (E, B, features)."""
    if outputs.representation is None:
        raise TypeError("the network returns no representation")
    weight, *bias = first_head(state)
    prediction = outputs.representation.detach() @ weight.T
    return prediction + bias[0] if bias else prediction
