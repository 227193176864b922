"""Learned generators of a group of matrices that acts on vectors."""

import math
from typing import Literal

import torch
from torch import Tensor

from invbench.components.learned import LearnedScalars
from invbench.components.symmetry import LearnedSymmetry
from invbench.core.data import Problem
from invbench.errors import UserError

Coefficients = Literal["normal", "uniform", "integers"]
PARTS, TERMS = 16, 12
"""Of `one_parameter_group`: parts of the way that are products of matrices, and terms of Taylor polynomials."""


class LearnedAlgebra(LearnedSymmetry):
    """x -> exp(Σ_k z_k L_k) x with matrices L_k that are learned, and random z for every input.

    Args:
        problem: tells how long a vector is.
        count: K, number of generators.
        block: side n of the matrices: vectors are cut into parts of n numbers, each of which they act on; None is the
            whole vector.
        deviation: of the first entries.
        learning_rate: of the entries; None takes the trainer's.
    """

    def __init__(
        self, problem: Problem, count: int, block: int | None, deviation: float, learning_rate: float | None
    ) -> None:
        super().__init__()
        (length,) = problem.input_shape
        self.side = block or length
        if count > self.side**2:
            raise UserError(
                f"method.generators: matrices of {self.side} rows have {self.side**2} directions, not {count}"
            )
        if length % self.side:
            raise UserError(f"method.block: {length} inputs cannot be cut into parts of {self.side}")
        entries = (deviation * torch.randn(count, self.side, self.side)).flatten().tolist()
        names = (f"{k}.{i}.{j}" for k in range(count) for i in range(self.side) for j in range(self.side))
        raw = dict(zip(names, entries, strict=True))
        self.shape, self.parts = (count, self.side, self.side), length // self.side
        self.entries = LearnedScalars("generator", raw, torch.clone, learning_rate)

    def generators(self) -> Tensor:
        """Return the matrices (K, n, n)."""
        matrices: Tensor = self.entries().reshape(self.shape)
        return matrices

    def algebra(self) -> Tensor:
        return on_every_block(self.generators(), self.parts)

    def within_one(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """As `transformed`, with coefficients between -1 and 1; of one generator in much less time."""
        if self.shape[0] > 1:
            return self.transformed(x, coefficients)
        (generator,) = self.generators()
        return one_parameter_group(x.unflatten(1, (self.parts, self.side)), generator, coefficients[:, 0]).flatten(1)

    def transformed(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """Apply exp(Σ_k z_k L_k) to vectors (N, features), with coefficients z (N, K)."""
        matrices: Tensor = torch.linalg.matrix_exp(torch.einsum("nk,kij->nij", coefficients, self.generators()))
        moved: Tensor = (x.unflatten(1, (self.parts, self.side)) @ matrices.mT).flatten(1)
        return moved


def one_parameter_group(x: Tensor, generator: Tensor, z: Tensor) -> Tensor:
    """Return exp(z L) x of vectors x (N, ..., n), a matrix L (n, n) and numbers z (N,) between -1 and 1.

    No exponential is computed for each of them: exp(z L) x = exp(m L / 16) exp(ρ L / 16) x with the whole number m next
    to 16 z. There are 33 of the first, and the second is a Taylor polynomial of the vector. The error is below 1e-12
    of the result up to a norm of L of 20, and 2e-6 of it at 60, where all of the norm is in one direction.
    """
    step, scaled = generator.mT / PARTS, (z * PARTS).reshape(-1, *[1] * (x.ndim - 1))
    whole = scaled.round()
    moved, rest = x, scaled - whole
    for k in range(TERMS, 0, -1):
        moved = torch.addcmul(x, moved @ step, rest, value=1 / k)
    chosen = (whole.reshape(-1, 1) == torch.arange(-PARTS, PARTS + 1, device=x.device)).to(x.dtype)
    result: Tensor = torch.einsum("nk,n...i,kij->n...j", chosen, moved, _powers(step))
    return result


def _powers(step: Tensor) -> Tensor:
    """Return exp(m A) of a matrix A for m = -16 to 16 (33, n, n)."""
    one = torch.eye(len(step), dtype=step.dtype, device=step.device)
    both, quarter = one.expand(2, -1, -1), torch.stack([step, -step]) / 4
    power = both
    for k in range(TERMS, 0, -1):
        power = torch.baddbmm(both, power, quarter, alpha=1 / k)
    power = power @ power
    powers = (power @ power)[:, None]  # of A and of -A
    while powers.shape[1] < PARTS:
        powers = torch.cat([powers, powers @ powers[:, -1:]], 1)
    return torch.cat([powers[1].flip(0), one[None], powers[0]])


def on_every_block(generators: Tensor, count: int) -> Tensor:
    """Let generators (k, d, d) act on each of `count` vectors alike (k, count d, count d)."""
    return torch.stack([torch.block_diag(*[generator] * count) for generator in generators])


def draw_coefficients(x: Tensor, count: int, kind: Coefficients, scale: float) -> Tensor:
    """Draw coefficients z (N, K) for inputs x (N, ...).

    Args:
        kind: normal of deviation `scale`; uniform on (-scale, scale); integers from -scale to below scale.
        scale: see `kind`.
    """
    if kind == "normal":
        return scale * torch.randn(len(x), count, dtype=x.dtype, device=x.device)
    drawn = scale * (2 * torch.rand(len(x), count, dtype=x.dtype, device=x.device) - 1)
    return drawn.floor() if kind == "integers" else drawn


def normalised(generators: Tensor) -> Tensor:
    """Scale matrices (K, n, n) to a Frobenius norm of √n, as a rotation of the plane has."""
    norms = generators.flatten(1).norm(dim=1)[:, None, None]
    scaled: Tensor = generators / (norms / math.sqrt(generators.shape[-1]) + 1e-6)
    return scaled


def overlap(generators: Tensor) -> Tensor:
    """Sum |⟨L̂_i, L̂_j⟩| over pairs of normalised generators (K, n, n)."""
    flat = normalised(generators).flatten(1)
    return (flat @ flat.T).triu(1).abs().sum()
