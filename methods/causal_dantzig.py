"""Causal Dantzig: coefficients with which inputs and residuals have the same inner products in all environments.

Rothenhäusler, Bühlmann, Meinshausen (2019), "Causal Dantzig: fast inference in linear structural equation models with
hidden variables under additive interventions", arXiv 1706.06159. With G_e the mean of x xᵀ and Z_e that of x y in
environment e, an additive intervention on the inputs leaves E_e[x (y - x b)] as it is where b are the causal
coefficients, so for two environments (equation 5, without regularisation)

    b = (G_1 - G_2)⁻¹ (Z_1 - Z_2)

and for more the b with the least Σ_e w_e |(Z_e - Z̄) - (G_e - Ḡ) b|², w_e being the share of the examples and the means
those with w, for inputs in units of their standard deviations. Hidden confounders of inputs and target are allowed. All
data are centred at their common mean, so that an intercept, which the paper does not have, changes nothing.
"""

from typing import ClassVar

import numpy as np

from invbench.core.registry import register_method
from invbench.methods._linear_estimator import (
    Examples,
    Linear,
    LinearEstimator,
    Origin,
    least_squares,
)


@register_method("causal_dantzig")
class CausalDantzig(LinearEstimator):
    """Least squares on differences between environments."""

    display_name: ClassVar[str] = "Causal Dantzig"
    requires: ClassVar[tuple[str, ...]] = ("vector", "environments")
    replaces_model: ClassVar[bool] = True

    def fit(self, examples: Examples) -> Linear:
        origin = Origin.of(examples)
        shares, within, between = origin.seen_from(examples).moments()
        scale = np.sqrt(shares)[:, None, None]
        left = scale * (within - np.tensordot(shares, within, 1))
        right = scale * (between - np.tensordot(shares, between, 1))
        b = least_squares(left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1]))
        return origin.predictor(b)
