"""MLDG: a step for some environments should help the others, too ("Learning to Generalize").

Li, Yang, Song, Hospedales (2018), "Learning to Generalize: Meta-Learning for Domain Generalization", arXiv 1710.03463,
in DomainBed's first-order form. In each step the environments are put into a random order; the last `meta_test` are
for testing, each of the others, i, is paired with one of them, j, in turn:

    θ_i = θ - η g_i / (|g_i| + ε),  g_i = ∇R_i(θ)        the first step of Adam with the learning rate η
    g = (1/E) Σ_pairs [g_i + β ∇R_j(θ_i)]                 no second derivatives

E counts all environments, not pairs. Defaults and search ranges are DomainBed's; with two environments one is for
testing. Deviations: DomainBed's inner step has the weight decay in it.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.draws import uniform
from invbench.core.data import Batch
from invbench.core.hooks import InnerStep, InnerSteps, RandomDraws, StepFn
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, setting

EPSILON = 1e-8
"""Constant in the denominator of Adam."""


@register_method("mldg")
class MLDG(RandomDraws, InnerSteps):
    """Follow gradients after which those of other environments help as well."""

    display_name: ClassVar[str] = "MLDG"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    one_environment_at_a_time: ClassVar[bool] = True

    weight: float = setting(1.0, "β, of the environments for testing", ge=0, search=LogUniform(1e-1, 10), fusable=True)
    meta_test: int = setting(2, "environments for testing in each step", ge=1, search=Choice((1, 2)))

    def outer_step(
        self, step: StepFn, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: Tensor
    ) -> tuple[InnerStep, State]:
        environments = len(batch.env)
        order = uniform(state, 0, batch.env, like=batch.x).argsort()
        tested = min(self.meta_test, environments - 1)
        trained = environments - tested
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        risks, objective = torch.zeros_like(batch.x[:, 0].flatten(1)[:, 0]), batch.x.new_zeros(())
        for position in range(trained):
            i, j = order[position : position + 1], order[trained + position % tested :][:1]
            here = step(parameters, batch.at(i))
            moved = {
                name: value - (rate * here.gradients[name] / (here.gradients[name].abs() + EPSILON)).to(value.dtype)
                for name, value in parameters.items()
            }
            there = step(moved, batch.at(j))
            total = {
                name: g + (here.gradients[name] + self.weight * there.gradients[name]) / environments
                for name, g in total.items()
            }
            objective = objective + (here.objective + self.weight * there.objective) / environments
            risks = risks.index_copy(0, torch.cat([i, j]), torch.cat([here.risks, there.risks]))
        return InnerStep(total, objective, risks), state
