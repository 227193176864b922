"""Measure how far a learned distribution of transformations is from the one that a problem is known to have."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invbench.components.symmetry import LearnedSymmetry
from invbench.core.data import Problem, Symmetry
from invbench.core.task import Regression

EXAMPLES = 256
"""Most test examples for which distributions that depend on the input are computed."""
RANK = 1e-10
"""Share of the largest singular value below which a direction is rounding."""


def symmetry_metrics(model: nn.Module, problem: Problem, symmetry: Symmetry) -> dict[str, float]:
    """Compare what a model has learned with the truth; {} for a model that learns no symmetry.

    Returns:
        `symmetry_error`: mean over the generators whose truth is known, and over both ends of their ranges, of
            |learned end - true end|, in the generators' units: radians, or twentieths of an image's side. Of several
            parts of a model the farthest end counts.
        `symmetry_error_class<k>`: the same for a class, where the distribution depends on the input.
        `symmetry_angle`: largest principal angle, in degrees, between the spans of learned and of true generators; 90
            where one has more dimensions than the other.
    """
    learned = [part for part in model.modules() if isinstance(part, LearnedSymmetry)]
    metrics = _width_errors(learned, problem, symmetry) if symmetry.half_widths else {}
    algebras = [algebra for part in learned if (algebra := part.algebra()) is not None]
    if algebras and symmetry.algebra is not None and torch.cat(algebras).isfinite().all():
        angles = principal_angles(torch.cat(algebras), symmetry.algebra.to(algebras[0]))
        metrics["symmetry_angle"] = angles[-1].item()
    return metrics


def _width_errors(learned: Sequence[LearnedSymmetry], problem: Problem, symmetry: Symmetry) -> dict[str, float]:
    """Return the mean error of the ranges' ends over examples, and over those of each class."""
    test = problem.splits["test"]
    rows = torch.arange(0, len(test), -(-len(test) // EXAMPLES), device=test.y.device)  # of all classes
    examples = test.rows(rows)
    extents = [extent for part in learned if (extent := part.extent(examples.inputs()))]
    if not extents:
        return {}
    zero = test.y.new_zeros(1, dtype=torch.float32)
    errors = []
    for name, end in symmetry.half_widths.items():
        of_parts = [extent[name] for extent in extents if name in extent] or [(zero, zero)]
        low, high = (torch.stack(torch.broadcast_tensors(*ends)) for ends in zip(*of_parts, strict=True))
        errors.append(((low.amin(0) + end).abs() + (high.amax(0) - end).abs()) / 2)
    mean = torch.stack(torch.broadcast_tensors(*errors)).mean(0)
    metrics = {"symmetry_error": mean.mean().item()}
    if len(mean) > 1 and not isinstance(problem.task, Regression):
        classes = examples.y.long()
        metrics |= {f"symmetry_error_class{k}": mean[classes == k].mean().item() for k in classes.unique().tolist()}
    return metrics


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return angles in degrees, ascending, between the spans of matrices (k, d, d) and (l, d, d).

    There are as many as the larger span has dimensions; those that the other one lacks count as 90 degrees.
    Source: Björck and Golub (1973), "Numerical methods for computing angles between linear subspaces".
    """
    bases = [_orthonormal(matrices.double().flatten(1)) for matrices in (first, second)]
    cosines = torch.linalg.svdvals(bases[0] @ bases[1].T).clamp(max=1)
    missing = cosines.new_zeros(max(map(len, bases)) - len(cosines))
    return torch.cat([cosines, missing]).acos() * (180 / math.pi)


def _orthonormal(rows: Tensor) -> Tensor:
    """Return orthonormal rows (r, D) with the span of rows (k, D), whose rank r may be 0."""
    _, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
    return torch.as_tensor(directions[lengths > RANK * lengths.max()])
