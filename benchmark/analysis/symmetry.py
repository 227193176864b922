"""Generators that leave a trained network's outputs unchanged: the null space of the outputs' Lie derivatives.

    (d/dε) f_i(exp(ε L) x) at ε = 0   =   ∇f_i(x)ᵀ L x   =   ⟨∇f_i(x) xᵀ, L⟩           L (d, d), linear in L

With a row vec(∇f_i(x_n) x_nᵀ) for each of N test inputs and each output, A (R, d²), the null space of A holds the
generators that leave all outputs unchanged to first order. It comes from the eigenvalues σ_j² of AᵀA (d², d²), in
double precision outside of the network. Images and point clouds are searched within the span of their named
generators (`invbench.components.affine`): the columns of A are then derivatives along m orthonormal combinations of
these.

    change(L) = |A vec(L)| / (|L| · √(tr(AᵀA) / m)),   change_j = σ_j / √(tr(AᵀA) / m)             m = d² for vectors

is the root mean square of the derivatives along L, in units of that along random generators of the span: 0 is exact
invariance, 1 as much as a random generator, and the squares of all m changes have mean 1. |L| is the Frobenius norm,
in the units of the inputs as the network gets them; of an image, those of the square [-1, 1]²: a translation by half
the side counts as much as a rotation by 0.7 radians.

The dimension of the symmetry is where the ascending changes grow by the largest factor, among those below a
tolerance; 0 where nothing doubles. Changes below a thirtieth of the tolerance count as equal. Trained networks are
near invariance, not at it: of an MLP that has learned |x| in R³, rotations have changes of 0.08 to 0.15, and all
others 1 and more. The generators found are rotated by varimax (Kaiser 1958), which leaves their span and makes their
entries large or small.

Related: equivariance error along named generators (Gruver, Finzi, Goldblum, Wilson, arXiv 2210.02984); null spaces of
constraints on generators (Finzi, Welling, Wilson, arXiv 2104.09459).

Beware of what is no symmetry of interest: all L with L x = 0 on the data, which then lie in a subspace of r
dimensions, and all that move inputs only where f is flat, its gradients having s dimensions. These d² - r s are in
the null space, too, and counted as `trivial`; f(x) = x_1 has no others. And derivatives at test inputs say nothing
about far transformations or about other inputs.

Of several logits the differences count, on which alone the class probabilities depend. A network that is random in
evaluation keeps one draw for each input. Derivatives of transformed images are central differences: those of bilinear
sampling itself are one-sided on the grid of the pixels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import Tensor

from invbench.components.affine import action, basis, generators
from invbench.components.augmentation import test_copies
from invbench.console import OnProgress
from invbench.core.backbone import EnvironmentNetwork
from invbench.core.data import Problem
from invbench.core.method import as_outputs
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.evaluation.symmetry import principal_angles
from invbench.seeding import stream, torch_stream
from invbench.training.restored import RestoredRun

Function = Callable[[Tensor], Tensor]
"""Function from inputs (N, ...) to outputs (N,) or (N, outputs), each of its own input alone."""
TOLERANCE, EQUAL, FACTOR = 0.5, 1 / 30, 2.0
"""Largest change that counts; the share of it below which changes count as equal; and the factor that makes a gap."""
LARGEST = 64
"""Most features, whose square is the size of a matrix that is decomposed."""
ROWS, NUMBERS = 512, 2**20
"""Most examples, and most numbers in their inputs, whose graph is in memory at a time."""
STEP = 1e-4
"""Step of the differences that give derivatives of transformed inputs, in units of generators of norm 1."""
KEPT = 32
"""Most generators of a null space that are kept."""
TURNS, TURNED = 500, 1e-12
"""Most iterations of varimax, and the change of entries at which it ends."""


class FoundSymmetry(BaseModel):
    """Generators by how far they change a network's outputs.

    Args:
        examples: N.
        names: the generators in whose span was searched; none where that is all of gl(d).
        typical: √(tr(AᵀA) / (R m)), root mean square of the outputs' derivatives along random generators of norm 1.
        changes: of the m orthogonal generators, ascending.
        tolerance, dimension: how many changes are ahead of the largest gap, all of them below the tolerance.
        trivial: d² - r s, how many generators of vectors tell only where the data lie and where the network is flat.
        generators: those that change least as matrices (k, d, d) of norm 1: as many as `dimension` says or as the truth
            has, whichever is more, but at least one and at most 32.
        generator_changes: of each of these.
        coefficients: of each of these, by named generator, where all have norm 1; empty for vectors.
        true_changes: of each generator that the targets are known not to depend on, by name or number.
        angles: between the span of these k and that of the generators that change least, k or `dimension` of them,
            whichever is more, in degrees, ascending (k).
    """

    examples: int
    names: list[str]
    typical: float
    changes: list[float]
    tolerance: float
    dimension: int
    trivial: int
    generators: list[list[list[float]]]
    generator_changes: list[float]
    coefficients: list[list[float]]
    true_changes: dict[str, float]
    angles: list[float]


class Span:
    """All matrices (d, d), acting on vectors x as L x."""

    def __init__(self, size: int) -> None:
        self.size, self.dimension = size, size**2

    def derivatives(self, x: Tensor) -> Function:
        """Return a function from gradients by inputs x (N, ...) to derivatives (N, m) along an orthonormal basis."""
        return lambda gradient: torch.einsum("ni,nj->nij", gradient, x).flatten(1)

    def matrices(self, coefficients: Tensor) -> Tensor:
        """Return combinations (k, d, d) of the basis, whose coefficients (k, m) are given."""
        return coefficients.reshape(-1, self.size, self.size)

    def coefficients(self, matrices: Tensor) -> Tensor:
        """Return the coefficients (k, m) of matrices (k, d, d) in the span."""
        return matrices.flatten(1)


class NamedSpan(Span):
    """Combinations of the named generators of a problem's images or point clouds."""

    def __init__(self, problem: Problem) -> None:
        self.names, self.act = tuple(generators(problem)), action(problem)
        named = basis(problem, self.names).double()
        super().__init__(named.shape[-1])
        self.dimension = len(named)
        self.named = named.flatten(1) / named.flatten(1).norm(dim=1, keepdim=True)
        factors = torch.linalg.qr(self.named.T)  # Gram-Schmidt, where an orthogonal generator stays as it is
        self.basis = factors.Q.T * factors.R.diagonal().sign()[:, None]

    def derivatives(self, x: Tensor) -> Function:
        basis = self.matrices(torch.eye(self.dimension, dtype=x.dtype, device=x.device))
        moved = torch.stack([self._moved(x, generator) for generator in basis])
        return lambda gradient: torch.einsum("n...,mn...->nm", gradient, moved)

    def matrices(self, coefficients: Tensor) -> Tensor:
        return super().matrices(coefficients @ self.basis.to(coefficients))

    def coefficients(self, matrices: Tensor) -> Tensor:
        return torch.einsum("kp,mp->km", matrices.flatten(1), self.basis.to(matrices))

    def by_name(self, matrices: Tensor) -> Tensor:
        """Return the coefficients (k, m) of matrices (k, d, d) by named generator of norm 1."""
        solution: Tensor = torch.linalg.lstsq(self.named.T, matrices.flatten(1).T).solution
        return solution.T

    def _moved(self, x: Tensor, generator: Tensor) -> Tensor:
        """Return the derivative of the transformed inputs along a generator, like x."""
        identity = torch.eye(self.size, dtype=x.dtype, device=x.device)
        ahead, behind = (self.act(x, (identity + step * generator).expand(len(x), -1, -1)) for step in (STEP, -STEP))
        return (ahead - behind) / (2 * STEP)


@dataclass(frozen=True)
class NullSpace:
    """Orthonormal generators of a span by how far they change a function.

    Args:
        span: what was searched.
        gram: AᵀA (m, m), divided by tr(AᵀA) / m.
        changes: ascending (m,); the squares have mean 1.
        vectors: coefficients (m, m) of the generators in the span's basis, a row for each.
        typical: root mean square of the derivatives along random generators of norm 1.
    """

    span: Span
    gram: Tensor
    changes: Tensor
    vectors: Tensor
    typical: float

    def generators(self, count: int) -> Tensor:
        """Return the generators (count, d, d) that change the function least, of norm 1."""
        return self.span.matrices(self.vectors[:count])

    def dimension(self, tolerance: float = TOLERANCE) -> int:
        """Count the changes ahead of the largest gap, all below a tolerance."""
        below = int((self.changes < tolerance).sum())
        if below in (0, len(self.changes)):
            return below
        changes = self.changes[: below + 1].clamp(min=EQUAL * tolerance)
        factor, gap = (changes[1:] / changes[:-1]).max(0)
        return int(gap) + 1 if factor >= FACTOR else 0

    def change(self, matrices: Tensor) -> Tensor:
        """Return the change (k,) along each of some generators (k, d, d) of the span, whatever their norms."""
        coefficients = self.span.coefficients(matrices.to(self.gram))
        squares = torch.einsum("kp,pq,kq->k", coefficients, self.gram, coefficients)
        change: Tensor = squares.clamp(min=0).sqrt() / coefficients.norm(dim=1)
        return change

    def trivial(self, tolerance: float = TOLERANCE) -> int:
        """Count the generators d² - r s of vectors that leave the inputs where they are, or move them where f is flat.

        r and s are the ranks of the inputs and of the gradients, each weighted by the other's length: root mean squares
        along a direction, relative to those of all directions, that are not below the tolerance.
        """
        if isinstance(self.span, NamedSpan):
            return 0
        square = self.gram.unflatten(0, (self.span.size,) * 2).unflatten(2, (self.span.size,) * 2)
        of_inputs, of_gradients = torch.einsum("ijil->jl", square), torch.einsum("ijkj->ik", square)
        return self.span.dimension - _rank(of_inputs, tolerance) * _rank(of_gradients, tolerance)


def _rank(moments: Tensor, tolerance: float) -> int:
    values = torch.linalg.eigvalsh(moments)
    return int((values >= tolerance**2 * values.mean()).sum()) if values.mean() > 0 else 0


def lie_null_space(
    function: Function, x: Tensor, span: Span | None = None, rows: int = ROWS, on_progress: OnProgress = int
) -> NullSpace:
    """Find the generators along which a function changes least.

    >>> import torch
    >>> x = torch.randn(100, 3, dtype=torch.float64)
    >>> lie_null_space(lambda x: x.square().sum(1), x).dimension()  # rotations of space
    3

    Args:
        function: differentiable almost everywhere.
        x: inputs (N, ...), vectors where no span is given.
        span: what to search; by default all matrices (d, d).
        rows: how many inputs the function gets at a time.
        on_progress: called with the number of inputs that are done.

    Raises:
        UserError: too many features, fewer derivatives than generators, or derivatives that are not finite.
    """
    if span is None:
        if x.ndim != 2 or x.shape[1] > LARGEST:
            shape = " x ".join(map(str, x.shape[1:]))
            raise UserError(f"inputs have {shape} features; generators are found of vectors of {LARGEST} at most")
        span = Span(x.shape[1])
    gram = torch.zeros(span.dimension, span.dimension, dtype=torch.float64, device=x.device)
    count = 0
    for start in range(0, len(x), rows):
        for derivatives in _derivatives(function, x[start : start + rows], span):
            gram += derivatives.T @ derivatives
            count += len(derivatives)
        on_progress(min(start + rows, len(x)))
    if count < span.dimension:
        few = f"{len(x)} examples have {count} derivatives, too few for {span.dimension} generators"
        raise UserError(f"{few}; more examples are needed (--examples, and a test split that has them)")
    if not gram.isfinite().all():
        raise UserError("the network has derivatives that are not finite")
    mean = gram.trace() / span.dimension
    gram = gram / mean if mean > 0 else gram
    values, vectors = torch.linalg.eigh(gram)
    return NullSpace(span, gram, values.clamp(min=0).sqrt(), vectors.T, math.sqrt(mean.item() / count))


def _derivatives(function: Function, x: Tensor, span: Span) -> Iterator[Tensor]:
    """Yield the derivatives (N, m) of each output along a span's basis."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        outputs = function(leaf).reshape(len(x), -1)
    along = span.derivatives(x.detach().double())
    for output in outputs.unbind(1):
        if output.requires_grad:
            (gradient,) = torch.autograd.grad(output.sum(), leaf, retain_graph=True, materialize_grads=True)
            yield along(gradient.double())
        else:  # of a function that is constant
            yield x.new_zeros(len(x), span.dimension, dtype=torch.float64)


def symmetry(
    run: RestoredRun, examples: int = 1000, tolerance: float = TOLERANCE, on_progress: OnProgress = int
) -> FoundSymmetry:
    """Find the generators that leave the outputs of a run's network unchanged on its test split.

    Args:
        run: on any device.
        examples: most test examples, evenly spread over the split.
        tolerance: largest change of a generator that counts.
        on_progress: called with the number of examples that are done.

    Raises:
        UserError: as `lie_null_space` does, and of a network that predicts the examples of an environment together.
    """
    problem, seed = run.problem, run.config.spec.seed
    if any(isinstance(part, EnvironmentNetwork) for part in run.model.modules()):
        raise UserError(f"{run.config.title} predicts the examples of an environment together, not each by itself")
    test = problem.splits["test"]
    x = test.x[torch.linspace(0, len(test) - 1, min(examples, len(test)), device=test.y.device).long()]
    rows = max(1, min(ROWS, NUMBERS // x[0].numel()) // test_copies(run.model))
    span = None if problem.kind == "vector" else NamedSpan(problem)
    with torch_stream(stream(seed, "analysis", "symmetry"), x.device):
        space = lie_null_space(_outputs(run), x, span, rows, on_progress)
    truth = true_generators(problem)
    dimension = space.dimension(tolerance)
    shown = min(KEPT, max(1, dimension, len(truth)))
    parts = space.vectors[: min(shown, dimension)], space.vectors[dimension:shown]
    kept = torch.cat([_ordered(space, space.span.matrices(varimax(part))) for part in parts if len(part)])
    result = FoundSymmetry(
        examples=len(x),
        names=list(span.names) if span else [],
        typical=space.typical,
        changes=space.changes.tolist(),
        tolerance=tolerance,
        dimension=dimension,
        trivial=space.trivial(tolerance),
        generators=kept.tolist(),
        generator_changes=space.change(kept).tolist(),
        coefficients=span.by_name(kept.cpu()).tolist() if span else [],
        true_changes={name: space.change(matrix[None]).item() for name, matrix in truth.items()},
        angles=[],
    )
    if truth:
        true = torch.stack(list(truth.values())).to(kept)
        result.angles = principal_angles(space.generators(max(len(true), dimension)), true)[: len(true)].tolist()
    return result


def _outputs(run: RestoredRun) -> Function:
    """Return the network's outputs as a function; of several logits, orthonormal combinations of their differences."""
    task = run.problem.task
    if not isinstance(task, Classification):
        return lambda x: as_outputs(run.model(x)).prediction
    ones = torch.ones(task.outputs, 1, dtype=torch.float64)
    contrasts = torch.linalg.qr(ones, mode="complete").Q[:, 1:]

    def differences(x: Tensor) -> Tensor:
        prediction = as_outputs(run.model(x)).prediction
        combined: Tensor = prediction @ contrasts.to(prediction)
        return combined

    return differences


def true_generators(problem: Problem) -> dict[str, Tensor]:
    """Return the generators (d, d) that the targets are known not to depend on, by name or number; {} if not known."""
    if problem.symmetry is None:
        return {}
    if problem.kind == "vector":
        algebra = problem.symmetry.algebra
        return {} if algebra is None else {str(number): matrix for number, matrix in enumerate(algebra, 1)}
    reaching = [name for name, reach in problem.symmetry.half_widths.items() if reach > 0]
    known = [name for name in reaching if name in generators(problem)]
    return dict(zip(known, basis(problem, known), strict=True)) if known else {}


def varimax(vectors: Tensor) -> Tensor:
    """Rotate orthonormal vectors (k, m) among themselves such that their squared entries vary most.

    Source: Kaiser (1958), "The varimax criterion for analytic rotation in factor analysis". The largest entry of each
    becomes positive.
    """
    entries = vectors.T
    turned = entries
    for _ in range(TURNS):
        left, _, right = torch.linalg.svd(entries.T @ (turned**3 - turned * turned.square().mean(0)))
        before, turned = turned, entries @ left @ right
        if (turned - before).abs().max() < TURNED:
            break
    largest = turned.gather(0, turned.abs().argmax(0, keepdim=True))
    return (turned * largest.sign()).T


def _ordered(space: NullSpace, matrices: Tensor) -> Tensor:
    """Sort generators by their change."""
    return matrices[space.change(matrices).argsort(stable=True)]
