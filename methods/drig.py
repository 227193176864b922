"""DRIG: least squares that holds under interventions γ times as strong as those of the training environments.

Shen, Bühlmann, Taeb (2023), "Causality-oriented robustness: exploiting general additive interventions", arXiv
2307.10299, equation 8. With G_e the mean of x xᵀ and Z_e that of x y in environment e, 0 the environment without
interventions, and w_e the share of the examples,

    b = [(1 - γ) G_0 + γ Σ_e w_e G_e]⁻¹ [(1 - γ) Z_0 + γ Σ_e w_e Z_e]

γ = 0 is least squares in environment 0, γ = 1 pooled least squares. The paper's data have mean zero in environment 0;
here its means are taken from all data. A matrix that is not positive definite, as it can be for γ > 1 where environment
0 varies more than others, has no minimum: an error says so.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.errors import RunFailed, UserError
from invbench.methods._linear_estimator import (
    ROUNDING,
    Examples,
    Linear,
    LinearEstimator,
    Origin,
    least_squares,
)


@register_method("drig")
class DRIG(LinearEstimator):
    """Least squares whose gradients are alike in all environments, to a degree γ."""

    display_name: ClassVar[str] = "DRIG"
    requires: ClassVar[tuple[str, ...]] = ("vector", "environments")
    replaces_model: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"method.gamma": 1.0}  # which has a minimum on any data

    gamma: float = setting(2.0, "γ: how much stronger future interventions may be", ge=0, search=LogUniform(1, 100))
    reference: int = setting(0, "number of the environment without interventions", ge=0)
    ridge: float = setting(0.0, "λ of λ |b|², with the mean of the squares", ge=0)

    def fit(self, examples: Examples) -> Linear:
        known = np.unique(examples.env)
        if self.reference not in known:
            raise UserError(f"method.reference={self.reference}: no such training environment; there are {len(known)}")
        origin = Origin.of(examples, examples.env == self.reference)
        shares, within, between = origin.seen_from(examples).moments()
        shares = self.gamma * shares
        shares[known == self.reference] += 1 - self.gamma
        g = np.tensordot(shares, within, 1) + self.ridge * np.diag(1 / origin.units**2)
        eigenvalues = np.linalg.eigvalsh(g)
        if eigenvalues[0] < -ROUNDING * eigenvalues[-1]:
            raise RunFailed(
                "diverged",
                f"the loss has no minimum: other environments vary less than environment {self.reference} in some "
                "direction; lower method.gamma, add method.ridge, or set method.reference",
            )
        return origin.predictor(least_squares(g, np.tensordot(shares, between, 1)))
