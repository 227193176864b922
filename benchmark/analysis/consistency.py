"""Consistency of a minimum across environments: whether other environments agree where one of them has a minimum.

Parascandolo, Neitz, Orvieto, Gresele, Schölkopf (2020), arXiv 2009.00329. With N(A) the connected part of the set
{θ : |R_A(θ) - R_A(θ*)| ≤ ε} that has θ* in it,

    inconsistency(θ*) = max over A ≠ B of  max over θ in N(A) of  |R_B(θ) - R_A(θ*)|
    score = -inconsistency

The inner maximum cannot be computed; both ways here find points of N(A), so that they give lower bounds:

sampling: along rays from θ* in random directions, as far as all points of a geometric grid are in the set.
path:     from θ* uphill on the largest |R_B - R_A(θ*)|; where that leaves the set, along it, at right angles to ∇R_A.

The set may be unbounded. Both ways stop at a share of the length of θ*: only scores with equal settings compare.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from invbench.analysis.spectrum import held_still
from invbench.console import OnProgress
from invbench.core.method import as_outputs
from invbench.core.task import Task
from invbench.errors import UserError
from invbench.seeding import stream
from invbench.training.flat_module import FlatModule
from invbench.training.restored import RestoredRun
from invbench.training.sampling import Sampler, loader_of

Risks = Callable[[Tensor], Tensor]
"""Function from parameters (P,) to the risk of each environment (E,)."""
GRID = 24
"""Number of points on a ray, each 1.5 times as far away as the one before."""
HALVINGS = 8
MOST_ENVIRONMENTS = 16
MARGIN = 0.5
"""Margin of a plane beyond its points, as a share of their distances."""
TINY = 1e-30


def by_sampling(
    risks: Risks, theta: Tensor, epsilon: float, directions: Tensor, reach: float, on_progress: OnProgress = int
) -> Tensor:
    """Return the largest |R_B - R_A(θ*)| in N(A) along rays, as rows A and columns B (E, E).

    Args:
        theta: θ* (P,).
        epsilon: how much R_A may differ from R_A(θ*).
        directions: (K, P), of any length.
        reach: how far a ray goes.
    """
    with torch.no_grad():
        first = risks(theta)
        distances = reach * 1.5 ** torch.arange(1.0 - GRID, 1.0, dtype=theta.dtype, device=theta.device)
        gaps = (first[None, :] - first[:, None]).abs()
        for number, direction in enumerate(directions, 1):
            unit = direction / direction.norm()
            along = torch.stack([risks(theta + distance * unit) for distance in distances])  # (GRID, E)
            inside = ((along - first).abs() <= epsilon).cumprod(0).bool()  # a point counts if all before it do
            on_ray = (along[:, None, :] - first[:, None]).abs()  # (GRID, A, B)
            gaps = torch.maximum(gaps, torch.where(inside[:, :, None], on_ray, 0.0).amax(0))
            on_progress(number)
    return gaps


def by_path(
    risks: Risks, theta: Tensor, epsilon: float, steps: int, reach: float, away: Tensor, on_progress: OnProgress = int
) -> Tensor:
    """Return the largest |R_B - R_A(θ*)| in N(A) along one path for each A, as rows A and columns B (E, E).

    Args:
        steps: of a path; together they are no longer than `reach`.
        away: a direction (P,) to take where there is no slope, as at a minimum of all risks.
    """
    rows = []
    for a in range(len(risks(theta.detach()))):
        rows.append(_climb(risks, theta, a, epsilon, steps, reach / steps, away))
        on_progress(len(rows))
    return torch.stack(rows)


def _climb(risks: Risks, theta: Tensor, a: int, epsilon: float, steps: int, length: float, away: Tensor) -> Tensor:
    """Return the largest |R_B - R_A(θ*)| (E,) on a path in N(A)."""
    point = theta.detach()
    values = risks(point).detach()
    level_set = _LevelSet(risks, a, values[a], epsilon)
    gaps = (values - values[a]).abs()
    for _ in range(steps):
        attempts = (level_set.step_within(point, direction, length) for direction in (*level_set.uphill(point), away))
        reached = next((attempt for attempt in attempts if attempt is not None), None)
        if reached is None:
            break
        point, values = reached
        gaps = torch.maximum(gaps, (values - level_set.level).abs())
    return gaps


@dataclass(frozen=True)
class _LevelSet:
    """Set of points at which R_A is within ε of a level."""

    risks: Risks
    a: int
    level: Tensor
    epsilon: float

    def gap(self, values: Tensor) -> Tensor:
        """Return the largest |R_B - level| of the other environments."""
        return (torch.cat([values[: self.a], values[self.a + 1 :]]) - self.level).abs().max()

    def uphill(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the steepest direction up the gap, and its part at right angles to ∇R_A."""
        leaf = point.clone().requires_grad_()
        values = self.risks(leaf)
        (steepest,) = torch.autograd.grad(self.gap(values), leaf, retain_graph=True)
        (across,) = torch.autograd.grad(values[self.a], leaf)
        return steepest, steepest - (steepest @ across) / (across @ across).clamp_min(TINY) * across

    @torch.no_grad()
    def step_within(self, point: Tensor, direction: Tensor, length: float) -> tuple[Tensor, Tensor] | None:
        """Return a point in the set, at most `length` away, with a larger gap, and its risks; None if there is none."""
        gap, unit = self.gap(self.risks(point)), direction / direction.norm().clamp_min(TINY)
        for halving in range(HALVINGS):
            after = point + length / 2**halving * unit
            values = self.risks(after)
            if (values[self.a] - self.level).abs() <= self.epsilon and self.gap(values) > gap:
                return after, values
        return None


@dataclass(frozen=True)
class Environments:
    """Trained network as a function of its weights, with some examples of each environment.

    Args:
        network: in evaluation mode, without random transformations.
        x, y: (E, B, ...), (E, B).
        theta: its weights (P,).
    """

    network: FlatModule
    task: Task
    x: Tensor
    y: Tensor
    theta: Tensor

    @classmethod
    def of(cls, run: RestoredRun, examples: int = 256) -> "Environments":
        """Take a run's network, and equally many examples, at most `examples`, of each of its first environments.

        Raises:
            UserError: the run had fewer than two environments.
        """
        split, seed = run.problem.splits["train"], run.config.spec.seed
        if split.env is None or int(split.env.max()) < 1:
            raise UserError(f"{run.config.title} has no training environments to compare")
        split = split.rows(split.env < MOST_ENVIRONMENTS)
        smallest = int(torch.bincount(split.env).min())  # type: ignore[arg-type]
        sizes = {"batch_size": min(examples, smallest), "environments_per_step": None}
        network, x = held_still(run.model, split, seed)
        sampler = Sampler.of(replace(split, x=x, weights=None), run.config.trainer.model_copy(update=sizes), seed)
        batch = loader_of(sampler).batch(0)
        order = batch.env.argsort()
        flat = FlatModule(network)
        return cls(flat, run.problem.task, batch.x[order], batch.y[order], flat.weights())

    def risks(self, theta: Tensor) -> Tensor:
        """Compute the risks R_e(θ) (E,)."""
        model = self.network.bind({"weights": theta, "buffers": self.network.buffers()})
        prediction = as_outputs(model(self.x.flatten(0, 1))).prediction
        return self.task.losses(prediction.unflatten(0, self.y.shape), self.y).mean(1)

    def agreement(self) -> dict[str, float]:
        """Compute for each parameter tensor the mean over elements of |Σ_e sign ∂R_e/∂θ| / E: 1 where all agree."""
        leaf = self.theta.clone().requires_grad_()
        signs = torch.stack([torch.autograd.grad(risk, leaf, retain_graph=True)[0].sign() for risk in self.risks(leaf)])
        each = signs.mean(0).abs().split(self.network.sizes)
        return {name: part.mean().item() for name, part in zip(self.network.shapes, each, strict=True)}


class Consistency(BaseModel):
    """Consistency of one run.

    Args:
        epsilon: ε.
        reach: as a share of the length of θ*.
        risks: of the environments at θ*.
        sampling, path: largest |R_B - R_A(θ*)| found either way, rows A, columns B.
        agreement: of the gradients' signs by parameter tensor.
    """

    epsilon: float
    reach: float
    risks: list[float]
    sampling: list[list[float]]
    path: list[list[float]]
    agreement: dict[str, float]

    @property
    def score(self) -> float:
        """Consistency score: minus the largest gap."""
        return -max(largest(self.sampling), largest(self.path))


def largest(gaps: list[list[float]]) -> float:
    """Return the largest of the gaps, but for A = B."""
    matrix = np.array(gaps)
    return float(matrix[~np.eye(len(matrix), dtype=bool)].max())


def consistency(
    run: RestoredRun,
    epsilon: float = 0.1,
    reach: float = 0.1,
    directions: int = 64,
    steps: int = 50,
    examples: int = 256,
    on_progress: OnProgress = int,
) -> Consistency:
    """Measure how consistent a run's minimum is across its training environments.

    Args:
        epsilon: how much an environment's risk may differ from that at the minimum.
        reach: how far from the minimum is looked, as a share of its parameters' length.
        directions: of rays, at random.
        steps: of a path.
        examples: of each environment, at most.
        on_progress: called with the number of rays and paths that are done.

    Raises:
        UserError: the run had fewer than two environments.
    """
    environments = Environments.of(run, examples)
    theta, length = environments.theta, reach * float(environments.theta.norm())
    rng = np.random.default_rng(stream(run.config.spec.seed, "analysis", "consistency"))
    rays = torch.from_numpy(rng.standard_normal((directions, len(theta)))).to(theta)
    return Consistency(
        epsilon=epsilon,
        reach=reach,
        risks=environments.risks(theta).tolist(),
        sampling=by_sampling(environments.risks, theta, epsilon, rays, length, on_progress).tolist(),
        path=by_path(
            environments.risks, theta, epsilon, steps, length, rays[0], lambda done: on_progress(directions + done)
        ).tolist(),
        agreement=environments.agreement(),
    )


def plane(risks: Risks, first: Tensor, second: Tensor, third: Tensor, *, points: int = 41) -> "Plane":
    """Compute risks on the plane through three points (P,).

    Coordinates are lengths: the first point is the origin, the second on the first axis.
    """
    right = second - first
    up = (third - first) - ((third - first) @ right) / (right @ right) * right
    width, height = right.norm(), up.norm()
    shares = torch.linspace(-MARGIN, 1 + MARGIN, points, dtype=first.dtype, device=first.device)
    with torch.no_grad():
        values = [[risks(first + u * right + v * up) for u in shares] for v in shares]
    grid = torch.stack([torch.stack(row) for row in values]).permute(2, 0, 1)
    ends = (0.0, 0.0), (float(width), 0.0), (float(((third - first) @ right) / width), float(height))
    return Plane((shares * width).cpu().numpy(), (shares * height).cpu().numpy(), grid.cpu().numpy(), ends)


class Plane(NamedTuple):
    """Risks of environments on a plane: x (X,), y (Y,), risks (E, Y, X), and the coordinates of the three points."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    risks: NDArray[np.floating]
    points: tuple[tuple[float, float], ...]
