"""Measure how far a learned distribution of transformations is from the one that a problem is known to have."""

import math

import torch
from torch import Tensor, nn

from invbench.components.symmetry import LearnedSymmetry
from invbench.core.data import Problem, Symmetry

EXAMPLES = 256
"""Most test examples for which distributions that depend on the input are computed."""


def symmetry_metrics(model: nn.Module, problem: Problem, symmetry: Symmetry) -> dict[str, float]:
    """Compare what a model has learned with the truth; {} for a model that learns no symmetry.

    Returns:
        `symmetry_error`: mean over generators of |learned half-width - true one|, in the units of the generators.
        `symmetry_error_class<k>`: the same for a class, where the distribution depends on the input.
        `symmetry_angle`: largest principal angle, in degrees, between the spans of learned and of true generators.
    """
    learned = [part for part in model.modules() if isinstance(part, LearnedSymmetry)]
    metrics: dict[str, float] = {}
    for part in learned:
        if symmetry.half_widths:
            metrics |= _width_errors(part, problem, symmetry)
        algebra = part.algebra()
        if algebra is not None and symmetry.algebra is not None:
            metrics["symmetry_angle"] = principal_angles(algebra, symmetry.algebra.to(algebra))[-1].item()
    return metrics


def _width_errors(part: LearnedSymmetry, problem: Problem, symmetry: Symmetry) -> dict[str, float]:
    """Return the mean error of half-widths over all examples, and over those of each class."""
    test = problem.splits["test"]
    widths = part.half_widths(test.rows(slice(0, EXAMPLES)).inputs())
    zero = test.y.new_zeros(1, dtype=torch.float32)
    errors = [(widths.get(name, zero) - true).abs() for name, true in symmetry.half_widths.items()]
    mean = torch.stack(torch.broadcast_tensors(*errors)).mean(0)
    metrics = {"symmetry_error": mean.mean().item()}
    if len(mean) > 1 and problem.classes:
        y = test.y[:EXAMPLES]
        metrics |= {f"symmetry_error_class{k}": mean[y == k].mean().item() for k in y.unique().tolist()}
    return metrics


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return angles in degrees, ascending, between the spans of matrices (k, d, d) and (l, d, d): max(k, l) of them.

    Where the spans have different dimensions, the ones that are missing count as 90 degrees.
    Source: Björck and Golub (1973), "Numerical methods for computing angles between linear subspaces".
    """
    bases = [torch.linalg.qr(matrices.double().flatten(1).T).Q for matrices in (first, second)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    missing = cosines.new_zeros(max(len(first), len(second)) - len(cosines))
    return torch.cat([cosines, missing]).acos() * (180 / math.pi)
