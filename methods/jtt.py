"""JTT: train once, then again with several copies of what was predicted wrongly ("Just Train Twice").

Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang, Finn (2021), arXiv 2107.09044, algorithm 1. With a model f₁ that
was trained for a while by empirical risk minimisation, the error set is E = {i: f₁(x_i) ≠ y_i} over the training
examples, and a fresh model minimises

    Σ_i ℓ(f(x_i), y_i) + (λ - 1) Σ_{i ∈ E} ℓ(f(x_i), y_i)

by λ - 1 further copies of each example of E. λ = 1 is empirical risk minimisation. No attribute need be known. Defaults
are SubpopBench's: both stages equally long, and λ = 10, which is a weight of the loss there. Published runs have, for
Waterbirds, a first stage of 60 and a second of 300 epochs, and add 100 copies (λ = 101); for CelebA 1, 50 and 50.
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from invbench.components.classes import predicted_class
from invbench.core.data import Problem
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, setting
from invbench.core.stages import FirstStage, SecondStage


@register_method("jtt")
class JTT(SecondStage):
    """Train twice, the second time with more copies of what the first got wrong."""

    display_name: ClassVar[str] = "JTT"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    first_share: float = setting(
        1.0, "length of the first stage, as a multiple of this run's", gt=0, search=LogUniform(0.25, 4)
    )
    upweight: int = setting(
        10, "λ, how often an example of the error set counts", ge=1, le=1000, search=Choice((1, 2, 4, 10, 30, 100, 300))
    )

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        train = problem.splits["train"]
        wrong = predicted_class(first.outputs(train).prediction) != train.y.long()
        copies = torch.where(wrong, self.upweight, 1)
        rows = torch.arange(len(train)).repeat_interleave(copies)
        facts = {**problem.facts, "error_set": float(wrong.sum())}
        return replace(problem, examples=train.rows(rows), facts=facts)
