"""Curvature at a trained run: eigenvalues of the Hessian of its risk, and how many directions they determine.

    H = ∇²_θ (1/n) Σ_i ℓ(f_θ(g_i x_i), y_i)              θ (P): the network's weights; g_i: one draw for each example
    N_eff(α) = Σ_k λ_k / (λ_k + α)   over all λ_k > 0     effective dimension (Maddox, Benton, Wilson, arXiv 2003.02139)

The largest eigenvalues come from scipy's Lanczos method. What the others contribute is estimated by stochastic Lanczos
quadrature in the space orthogonal to them: m steps from a random vector give Ritz values r_j with weights τ_j², and

    Σ_{k > top} φ(λ_k) ≈ (P - top) · mean over vectors of Σ_j τ_j² φ(r_j)

which is exact in expectation for polynomials φ up to degree 2m - 1 (Ubaru, Chen, Saad 2017). The Augerino authors' code
keeps the Ritz values of 50 steps, of which a sum can be 50 at most. As with them, a learned augmentation is drawn once
and then held still; the network is in evaluation mode.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.linalg import eigh_tridiagonal, eigvalsh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from invbench.components.augmentation import Averaged
from invbench.components.learned import learned_parameters
from invbench.console import OnProgress
from invbench.core.data import Split
from invbench.core.method import as_outputs
from invbench.core.task import Task
from invbench.errors import RunFailed
from invbench.evaluation.metrics import outputs_of
from invbench.seeding import stream, torch_stream
from invbench.tensors import to_host
from invbench.training.curve_columns import learned_columns
from invbench.training.restored import RestoredRun

DENSE = 1000
"""Number of weights up to which all eigenvalues are computed, as where an estimate would need no fewer products."""
ROWS = 512
"""Number of examples whose graph is in memory at a time."""
TOLERANCE = 1e-4
"""Relative tolerance of the eigenvalues."""
FAINT = 1e-7
"""Norm of a Lanczos vector, relative to the first diagonal entry, below which the space is exhausted."""
Vector = NDArray[np.floating]


class Bulk(BaseModel):
    """Estimate of all but the largest eigenvalues from a random vector: Ritz values, with weights that add up to 1."""

    values: list[float]
    weights: list[float]


class Spectrum(BaseModel):
    """Eigenvalues of a run's Hessian.

    Args:
        weights: P.
        examples: n.
        risk: at the weights.
        eigenvalues: the largest, the first being the largest of all; all P of a small network.
        bulk: estimates of the others, one for each random vector.
        widths: what the run learned besides its weights, such as `width.rotation`.
    """

    weights: int
    examples: int
    risk: float
    eigenvalues: list[float]
    bulk: list[Bulk]
    widths: dict[str, float]

    def effective_dimension(self, alpha: float) -> tuple[float, float]:
        """Compute N_eff(α), for α > 0, and the standard error of its estimate: 0 where all eigenvalues are known."""
        known = float(_share(self.eigenvalues, alpha).sum())
        if not self.bulk:
            return known, 0.0
        others = self.weights - len(self.eigenvalues)
        each = [others * np.dot(bulk.weights, _share(bulk.values, alpha)) for bulk in self.bulk]
        error = np.std(each, ddof=1) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        return known + float(np.mean(each)), float(error)


def _share(values: list[float], alpha: float) -> Vector:
    positive = np.maximum(values, 0.0)
    return np.asarray(positive / (positive + alpha))


def spectrum(
    run: RestoredRun,
    top: int = 20,
    steps: int = 50,
    vectors: int = 4,
    examples: int | None = None,
    on_progress: OnProgress = int,
) -> Spectrum:
    """Compute the spectrum of a run's Hessian on its training split.

    Args:
        run: on any device.
        top: how many of the largest eigenvalues.
        steps: of the Lanczos process from each of the random vectors.
        examples: the first so many of the split in a random order; None takes all.
        on_progress: called with the number of products with the Hessian that are done.

    Raises:
        RunFailed: the eigenvalues do not converge.
    """
    seed = run.config.spec.seed
    split = some_rows(run.problem.splits["train"], examples, seed)
    network, x = held_still(run.model, split, seed)
    hessian = Hessian(network, x, split.y, run.problem.task, on_progress)
    rng = np.random.default_rng(stream(seed, "analysis", "spectrum"))
    widths = to_host(learned_columns(learned_parameters(run.model), None))
    result = Spectrum(weights=hessian.size, examples=len(x), risk=hessian.risk, eigenvalues=[], bulk=[], widths=widths)
    if hessian.size <= max(DENSE, top + steps * vectors):
        dense = np.stack([hessian.product(row) for row in np.eye(hessian.size)])
        result.eigenvalues = eigvalsh((dense + dense.T) / 2)[::-1].tolist()
        return result
    values, basis = _largest(hessian, top, rng)
    result.eigenvalues = values.tolist()
    result.bulk = [_lanczos(hessian.product, rng.standard_normal(hessian.size), basis, steps) for _ in range(vectors)]
    return result


def some_rows(split: Split, examples: int | None, seed: int) -> Split:
    """Return the first examples of the split in a random order, or all."""
    if examples is None or examples >= len(split):
        return split
    order = np.random.default_rng(stream(seed, "analysis", "examples")).permutation(len(split))
    return split.rows(torch.from_numpy(np.sort(order[:examples])).to(split.x.device))


def held_still(model: nn.Module, split: Split, seed: int) -> tuple[nn.Module, Tensor]:
    """Return the network without random transformations of its input, and the inputs (n, ...) under one draw."""
    x = split.inputs()
    with torch.no_grad(), torch_stream(stream(seed, "analysis", "augmentation"), x.device):
        while isinstance(model, Averaged):
            if model.method.train_copies:
                x = torch.cat([model.transformation(part) for part in x.split(ROWS)])
            model = model.model
    return model, x


class Hessian:
    """Products with H, in double precision outside of the network.

    Args:
        network: in evaluation mode.
        x, y: examples (n, ...), (n,).
        on_progress: called with the number of products that are done.
    """

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, task: Task, on_progress: OnProgress) -> None:
        self.network, self.x, self.y, self.task, self.on_progress = network, x, y, task, on_progress
        self.weights = [value for value in network.parameters() if value.requires_grad]
        self.sizes = [value.numel() for value in self.weights]
        self.size, self.products = sum(self.sizes), 0
        with torch.no_grad():
            self.risk = task.losses(outputs_of(network, x).prediction, y).mean().item()

    def product(self, vector: Vector) -> Vector:
        """Compute H v, for v (P,)."""
        flat = torch.from_numpy(np.asarray(vector)).to(self.weights[0])
        tangents = [part.view_as(value) for part, value in zip(flat.split(self.sizes), self.weights, strict=True)]
        total = torch.zeros_like(flat, dtype=torch.float64)
        for x, y in zip(self.x.split(ROWS), self.y.split(ROWS), strict=True):
            loss = self.task.losses(as_outputs(self.network(x)).prediction, y).sum()
            gradients = torch.autograd.grad(loss, self.weights, create_graph=True, materialize_grads=True)
            slope = torch.stack([(g * v).sum() for g, v in zip(gradients, tangents, strict=True)]).sum()
            if slope.requires_grad:  # not of a function that is linear in the weights
                parts = torch.autograd.grad(slope, self.weights, materialize_grads=True)
                total += torch.cat([part.flatten() for part in parts])
        self.products += 1
        self.on_progress(self.products)
        return np.asarray((total / len(self.x)).cpu())


def _largest(hessian: Hessian, top: int, rng: np.random.Generator) -> tuple[Vector, Vector]:
    """Compute the largest eigenvalues, descending (top,), and their vectors (P, top)."""
    operator = LinearOperator((hessian.size,) * 2, matvec=hessian.product, dtype=np.float64)
    try:
        values, vectors = eigsh(
            operator, top, which="LA", tol=TOLERANCE, v0=rng.standard_normal(hessian.size), ncv=2 * top + 20
        )
    except ArpackNoConvergence as error:
        converged = len(error.eigenvalues)
        raise RunFailed("error", f"only {converged} of {top} eigenvalues converged; ask for fewer with --top") from None
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


def _lanczos(product: Callable[[Vector], Vector], start: Vector, without: Vector, steps: int) -> Bulk:
    """Run the Lanczos process orthogonal to the columns of `without` (P, k), every vector orthogonalised twice."""

    def cleaned(vector: Vector) -> Vector:
        for _ in range(2):
            vector = vector - without @ (without.T @ vector)
            vector = vector - kept[:done].T @ (kept[:done] @ vector)
        return vector

    kept, done = np.empty((steps, len(start))), 0
    diagonal: list[float] = []
    beside = [float("inf")]
    vector = cleaned(start)
    while done < steps and beside[-1] > FAINT * abs(diagonal[0] if diagonal else 1.0):
        kept[done] = vector / np.linalg.norm(vector)
        done += 1
        after = product(kept[done - 1])
        diagonal.append(float(kept[done - 1] @ after))
        vector = cleaned(after)
        beside.append(float(np.linalg.norm(vector)))
    values, vectors = eigh_tridiagonal(diagonal, beside[1:-1])
    return Bulk(values=values.tolist(), weights=np.square(vectors[0]).tolist())
