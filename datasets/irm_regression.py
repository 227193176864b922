"""Heteroskedastic regression with one cause and one effect: the test bed of adaptive regularisation for IRM.

The data modules of Youbi Idrissi's `irm_public_adareg`. In an environment of standard deviation σ_e (0.1, 1.5, then 2,
10^U(-2, 1)):

    simple       x = σ_e N, y = x + σ_e N, z = y + N, target Σ_j y_j
    random       the same with y = x W_xy + σ_e N, z = y W_yz + N, W_xy = N / d_inv, W_yz = N / d_spu
    cows_camels  example2 of `linear_unit_tests`
    small_margin example3 of `linear_unit_tests`

For Φ = (a, b) on (x, z) of `simple` the risk is R_σ = (1-a-b)² σ² + (1-b)² σ² + b²: an environment alone wants
a = 1/(1+σ²), b = σ²/(1+σ²); (1, 0) is invariant, with risk σ²; pooled least squares over two environments is
(0.469, 0.531), with a risk of 2.365 once z is permuted. Unlike `linear_unit_tests`, the validation split is permuted as
the test split is: it is out of distribution, so early stopping on it is not innocent.

Deviations from the author's code:
- cows_camels permutes all spurious inputs; theirs leaves some in place unless both blocks have the same size.
- small_margin does not run there; here it does.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from invbench.core.data import Dataset, Problem
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datasets._linear import Structure
from invbench.errors import UserError


@register_dataset("irm_regression")
class IRMRegression(Dataset):
    """Two coefficients, one of them spurious; and three relatives."""

    display_name: ClassVar[str] = "IRM regression"
    provides: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression", "classification", "oracle")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"oracle": {"oracle": True}}
    backbone: ClassVar[str] = "linear"
    citation: ClassVar[str] = (
        "Youbi Idrissi, Adaptive regularization in invariant risk minimization (irm_public_adareg)"
    )
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.examples": 40,
        "dataset.validation_examples": 20,
        "dataset.test_examples": 20,
        "trainer.batch_size": None,
    }
    small_when: ClassVar[Mapping[str, Mapping[str, Any]]] = {"classification": {"dataset.problem": "small_margin"}}

    problem: Literal["simple", "random", "cows_camels", "small_margin"] = setting("simple", "which of the four")
    environments: int = setting(2, "training environments", ge=1)
    invariant_dimensions: int = setting(1, "number of causes", ge=1)
    spurious_dimensions: int = setting(1, "number of effects", ge=1)
    examples: int = setting(5000, "training examples per environment", ge=2)
    validation_examples: int = setting(1000, "validation examples per environment", ge=2)
    test_examples: int = setting(1000, "test examples per environment", ge=2)
    scramble: bool = setting(False, "rotate the inputs by a random orthogonal matrix")
    oracle: bool = setting(False, "permute the spurious inputs in training too, so that ERM is the oracle")

    def capabilities(self) -> tuple[str, ...]:
        regression = self.problem in ("simple", "random")
        oracle = ("oracle",) if self.oracle else ()
        return ("vector", "environments", "regression" if regression else "classification", *oracle)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        if self.problem == "simple" and self.invariant_dimensions != self.spurious_dimensions:
            raise UserError("dataset.problem=simple has one effect per cause; make both numbers of dimensions equal")
        structure = Structure(
            kind=self.problem if self.problem in ("cows_camels", "small_margin") else "regression",
            environments=self.environments,
            invariant=self.invariant_dimensions,
            spurious=self.spurious_dimensions,
            identity=self.problem == "simple",
            scrambled=self.scramble,
        )
        sizes = {"train": self.examples, "validation": self.validation_examples, "test": self.test_examples}
        return structure.problem(sizes, sizes if self.oracle else ("validation", "test"), seed)
