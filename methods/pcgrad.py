"""PCGrad: take out of each environment's gradient what contradicts another's.

Yu, Kumar, Gupta, Levine, Hausman, Finn (2020), "Gradient Surgery for Multi-Task Learning", arXiv 2001.06782, algorithm
1, with the gradients g_e over all parameters, environments in the place of tasks:

    for every i: h ← g_i;  for all j ≠ i, in random order: if h·g_j < 0 then h ← h - (h·g_j / ‖g_j‖²) g_j
    g = (1/E) Σ_i h_i

All h stay in the span of the g_e, so the projections are done on coefficients with the Gram matrix (E, E). With
`order: most_conflicting` the j come in the order of g_i·g_j, the smallest first, and nothing is random. Deviation: the
authors add the h_i up where this takes their mean, as ERM does.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invbench.core.method import Gradients, Method, State
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.core.task import one_hot


@register_method("pcgrad")
class PCGrad(Method):
    """Project conflicting gradients of environments onto each other's normal planes."""

    display_name: ClassVar[str] = "PCGrad"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"method.order": "most_conflicting"}}

    order: Literal["random", "most_conflicting"] = setting("random", "in which the others are gone through")

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        gram = torch.stack([g.flatten(1) @ g.flatten(1).T for g in risk_grads.values()]).sum(0)
        weights = projected(gram, self._orders(gram)).mean(0)
        means = {name: torch.einsum("e,e...->...", weights, g) for name, g in risk_grads.items()}
        return {name: mean + penalty_grad[name] for name, mean in means.items()}, state

    def _orders(self, gram: Tensor) -> Tensor:
        """Draw for every environment the order (E, E) of all environments."""
        keys = gram if self.order == "most_conflicting" else torch.rand_like(gram)
        return keys.argsort(1)


def projected(gram: Tensor, orders: Tensor) -> Tensor:
    """Compute coefficients (E, E): row i gives what is left of g_i as a sum of all g."""
    count = len(gram)
    identity = torch.eye(count, dtype=gram.dtype, device=gram.device)
    coefficients = identity
    for position in range(count):
        other = one_hot(orders[:, position], count, gram.dtype)  # (E, E)
        inner = (coefficients * (other @ gram)).sum(1)
        size = (other @ gram.diagonal()).clamp(min=torch.finfo(gram.dtype).tiny)
        itself = (other * identity).sum(1)
        conflict = inner.clamp(max=0) * (1 - itself)
        coefficients = coefficients - (conflict / size)[:, None] * other
    return coefficients
