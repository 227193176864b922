"""Anchor regression: least squares that holds when the anchors, or the environments, shift more than in training.

Rothenhäusler, Meinshausen, Bühlmann, Peters (2021), "Anchor regression: heterogeneous data meet causality", arXiv
1801.06229. With Π the projection on the anchors A (N, q), all centred at their means, equation 4 is

    b = argmin |(I - Π)(y - x b)|² + γ |Π(y - x b)|²

which is least squares on x' = (I + (√γ - 1) Π) x and y' likewise. Discrete anchors are indicators of environments: then
|Π r|² = Σ_e N_e (mean of r in e)². γ = 1 is pooled least squares, γ = 0 least squares within environments, and the
limit γ → ∞ the instrumental variables estimator (two-stage least squares). Where the anchors do not fix that, as with
fewer environments than inputs, it is the one of all its solutions with the least |(I - Π)(y - x b)|².
"""

from typing import ClassVar, Literal

import numpy as np

from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.errors import UserError
from invbench.methods._linear_estimator import (
    ROUNDING,
    Array,
    Examples,
    Linear,
    LinearEstimator,
    Origin,
    least_squares,
)


@register_method("anchor")
class Anchor(LinearEstimator):
    """Least squares with a γ-fold weight on what the environments, or a nuisance, explain of the residuals."""

    display_name: ClassVar[str] = "Anchor regression"
    requires: ClassVar[tuple[str, ...]] = ("vector", "environments")
    replaces_model: ClassVar[bool] = True

    gamma: float | None = setting(
        10.0,
        "γ; 1 is pooled least squares, null the limit γ → ∞, instrumental variables",
        ge=0,
        search=LogUniform(1, 1e4),
    )
    anchors: Literal["environment", "nuisance"] = setting(
        "environment", "discrete anchors: environments; or continuous ones: the nuisance"
    )
    ridge: float = setting(0.0, "λ of λ |b|², with the mean of the squares", ge=0)

    def fit(self, examples: Examples) -> Linear:
        origin = Origin.of(examples)
        centred = origin.seen_from(examples)
        basis = _orthonormal(self._anchors(examples))
        if self.gamma is None:
            b = instrumental_variables(basis, centred.x, centred.y)
        else:
            x, y = (
                values + (np.sqrt(self.gamma) - 1) * basis @ (basis.T @ values) for values in (centred.x, centred.y)
            )
            b = least_squares(x, y, self.ridge / origin.units**2)
        return origin.predictor(b)

    def _anchors(self, examples: Examples) -> Array:
        if self.anchors == "environment":
            return np.asarray(examples.env[:, None] == np.unique(examples.env), dtype=np.float64)
        if examples.nuisance is None:
            raise UserError("method.anchors=nuisance: the data have no nuisance; use method.anchors=environment")
        return examples.nuisance


def instrumental_variables(basis: Array, x: Array, y: Array) -> Array:
    """Minimise |Π(y - x b)|², then |(I - Π)(y - x b)|², for Π = basis basisᵀ (N, N), x (N, D), y (N, K)."""
    first, target = basis.T @ x, basis.T @ y
    left, lengths, right = np.linalg.svd(first, full_matrices=True)
    rank = int((lengths > ROUNDING * lengths.max(initial=0.0)).sum())
    b = right[:rank].T @ ((left[:, :rank].T @ target) / lengths[:rank, None])
    free = right[rank:].T
    rest_x, rest_y = x - basis @ first, y - basis @ target
    return np.asarray(b + free @ least_squares(rest_x @ free, rest_y - rest_x @ b))


def _orthonormal(anchors: Array) -> Array:
    """Return orthonormal columns (N, r) that span the centred anchors (N, q)."""
    left, lengths, _ = np.linalg.svd(anchors - anchors.mean(0), full_matrices=False)
    return np.asarray(left[:, lengths > ROUNDING * lengths.max(initial=0.0)])
