"""DFR: train the head again on validation data in which all groups are equally common ("Deep Feature Reweighting").

Kirichenko, Izmailov, Wilson (2023), "Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations",
arXiv 2204.02937. With the body φ of a finished run, which stays as it is, and min_g n_g examples of each group of
held-out data, a fresh head with weights W minimises

    mean ℓ(h(φ(x)), y) + λ ‖W‖₁

The held-out data are the share `share` of the validation split at random; the rest stays for the choice of settings, as
the authors do. Default and search range of λ are SubpopBench's. Deviations, as there: the head is trained by the run's
optimiser, with its weight decay (none there: `trainer.weight_decay=0`), on one balanced set, where the authors solve a
logistic regression on each of ten or twenty and take the mean; they do so on all of the validation split once λ is
chosen; features are not standardised.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invbench.components.group_weights import subsampled
from invbench.core.data import Batch, Problem, group_of
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.core.stages import FirstStage, SecondStage
from invbench.errors import UserError


@register_method("dfr")
class DFR(SecondStage):
    """Train a fresh head on a balanced part of the validation split."""

    display_name: ClassVar[str] = "DFR"
    requires: ClassVar[tuple[str, ...]] = ("classification",)
    keeps: ClassVar[Literal["nothing", "body", "network"]] = "body"
    has_environments: ClassVar[bool] = False

    weight: float = setting(
        0.1, "λ, of the sum of the head's absolute weights", ge=0, search=LogUniform(1e-2, 10**0.5), fusable=True
    )
    share: float = setting(0.5, "of the validation split that trains the head", gt=0, lt=1)

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        if "validation" not in problem.splits:
            raise UserError("dfr trains on validation data, and there are none; set dataset.validation_share=0.2")
        whole = problem.splits["validation"]
        size = round(self.share * len(whole))
        if not 0 < size < len(whole):
            raise UserError(f"method.share={self.share} of {len(whole)} validation examples leaves none for one side")
        order = torch.from_numpy(generator.permutation(len(whole)))
        held_out, rest = whole.rows(order[:size].sort().values), whole.rows(order[size:].sort().values)
        groups = group_of(held_out.y, held_out.attribute, problem.attributes)
        rows = subsampled(groups, torch.bincount(groups), generator)
        splits = {**problem.splits, "validation": rest}
        return replace(problem, splits=splits, examples=replace(held_out.rows(rows), env=None))

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        if outputs.head is None:  # the network has one, or the body would not be kept
            raise TypeError("the network has no linear head")
        return self.weight * outputs.head[0].abs().sum(), state
