"""Mixup between environments: train on weighted means of examples of two environments, and on both their targets.

Yan et al. (2020), arXiv 2001.00677; Xu et al. (2020), arXiv 1912.01805. In each step the environments are put into a
random ring; for every neighbouring pair (i, j) one number λ ~ Beta(α, α) is drawn, and with examples x_i, x_j in order

    x = λ x_i + (1 - λ) x_j        loss = λ ℓ(f(x), y_i) + (1 - λ) ℓ(f(x), y_j)

The objective is the mean over the pairs. The default of α and its search range are DomainBed's, whose construction this
is. Of a single environment, each example is mixed with itself: that is ERM.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.distributions import Beta

from invbench.core.data import Batch, PairedTargets
from invbench.core.hooks import BatchMixing
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.tensors import scalar


@register_method("mixup")
class Mixup(BatchMixing):
    """Train on convex combinations of examples from two environments."""

    display_name: ClassVar[str] = "Mixup"
    requires: ClassVar[tuple[str, ...]] = ("vector or image", "environments")
    # λ = 1/2, one pair
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "environments": {"method.alpha": 1e30, "trainer.environments_per_step": 2}
    }

    alpha: float = setting(0.2, "α, of the Beta distribution", gt=0, search=LogUniform(1e-1, 1e1))

    def mix(self, batch: Batch, state: State) -> Batch:
        environments = len(batch.env)
        ring = torch.randperm(environments, device=batch.x.device)
        alpha = scalar(self.alpha, batch.x)
        share = Beta(alpha, alpha, validate_args=False).sample((environments,))  # λ of each pair
        first, second = ring, ring.roll(-1)
        weight = share.reshape(-1, *[1] * (batch.x.ndim - 1))
        x = weight * batch.x[first] + (1 - weight) * batch.x[second]
        y = PairedTargets(batch.y[first], batch.y[second], share[:, None].expand(batch.y.shape))
        return batch.mixed(x, y, first)
