"""Weights of groups, or of classes, from how many training examples they have."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Rule = Literal["inverse", "square_root", "class_balanced"]


def group_weights(counts: Tensor, rule: Rule, beta: float = 0.9999) -> Tensor:
    """Compute the weight of each group (G,), on average 1 over those that have an example; the others have weight 0.

    >>> import torch
    >>> group_weights(torch.tensor([1.0, 3.0, 0.0]), "inverse")
    tensor([1.5000, 0.5000, 0.0000])

    Args:
        counts: numbers of examples (G,), real.
        rule: `inverse`: 1 / n; `square_root`: 1 / √n; `class_balanced`: (1 - β) / (1 - βⁿ), between equal weights
            (β = 0) and the inverse (β → 1).
        beta: β.
    """
    n = counts.clamp(min=1)
    if rule == "inverse":
        weights = 1 / n
    elif rule == "square_root":
        weights = n.rsqrt()
    else:
        exact = n.double()
        weights = ((1 - beta) / (1 - beta**exact)).to(n)
    present = (counts > 0).to(n)
    weights = weights * present
    return weights * present.sum() / weights.sum()


def counts_by(groups: Tensor, by: Literal["group", "class"]) -> Tensor:
    """Return the numbers of examples of groups (G,), or of classes (K,), from those of groups (K, attributes)."""
    return groups.flatten() if by == "group" else groups.sum(1)


def subsampled(groups: Tensor, counts: Tensor, generator: np.random.Generator) -> Tensor:
    """Draw as many examples of each group (N,) as the smallest one has; return their sorted indices."""
    size = int(counts[counts > 0].min())
    order = torch.from_numpy(generator.permutation(len(groups)))
    drawn = [order[groups[order] == group][:size] for group in counts.nonzero().flatten().tolist()]
    return torch.cat(drawn).sort().values
