"""Linear problems solved from sufficient statistics: a few examples that stand for all of an environment.

Every mean over an environment of a quadratic function of (x, y) depends on the examples through their mean m and
covariance C alone. With C = RᵀR, R (k, D), and Z (k + 1, k) orthonormal columns, each orthogonal to 1, the k + 1 rows

    m + √(k + 1) Z R

have that mean and that covariance. A linear model with squared loss has the same risk on them as on all rows, the
same gradient, and the same penalty, if that is made of such means: what a step costs no longer depends on how many
examples there are.
"""

import math

import torch
from torch import Tensor, nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Problem, Split
from invbench.core.task import Regression
from invbench.core.trainer import TrainerConfig

LINEAR = {FeaturesAndHead, nn.Sequential, nn.Linear, nn.Flatten, nn.Identity}
"""Modules whose compositions are linear functions."""


def training_examples(
    train: Split, problem: Problem, method: Composition, model: nn.Module, trainer: TrainerConfig
) -> Split:
    """Return the examples that are trained on, condensed where that is exact, allowed and shorter."""
    if not (
        trainer.condense and method.uses_moments_only and _is_quadratic(problem, model) and _is_whole(train, trainer)
    ):
        return train
    short = condensed(train)
    return short if len(short) < len(train) else train


def condensed(split: Split) -> Split:
    """Make k + 1 examples per environment with the environment's moments; k bounds the rank of its covariance."""
    joined = torch.cat([split.inputs().flatten(1), split.y[:, None]], 1).double()
    env = torch.zeros(len(split), dtype=torch.int64, device=joined.device) if split.env is None else split.env
    parts = [_rows(joined[env == e]) for e in range(int(env.max()) + 1)]
    rows = torch.cat(parts).to(split.x.dtype)
    index = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
    x = rows[:, :-1].unflatten(1, split.x.shape[1:])
    return Split(x, rows[:, -1], None if split.env is None else index.to(split.env))


def _rows(examples: Tensor) -> Tensor:
    """Condense examples (N, D) to (k + 1, D) with the same mean and covariance."""
    from scipy.linalg import helmert  # half a second, that only linear problems need

    mean = examples.mean(0)
    factor = torch.linalg.qr(examples - mean, mode="r").R / math.sqrt(len(examples))
    count = len(factor) + 1
    simplex = torch.from_numpy(helmert(count).T.copy()).to(factor)
    rows: Tensor = mean + math.sqrt(count) * simplex @ factor
    return rows


def _is_quadratic(problem: Problem, model: nn.Module) -> bool:
    squared = isinstance(problem.task, Regression) and problem.task.loss == "squared"
    return squared and problem.augment is None and {type(module) for module in model.modules()} <= LINEAR


def _is_whole(train: Split, trainer: TrainerConfig) -> bool:
    """Tell whether every step takes every example once, and the split has no nuisance; weighted ones are drawn."""
    counts = torch.bincount(train.env) if train.env is not None else torch.tensor([len(train)])
    same = bool((counts == counts[0]).all())
    all_examples = trainer.batch_size in (None, int(counts[0]))
    all_environments = trainer.environments_per_step in (None, len(counts))
    return same and all_examples and all_environments and train.nuisance is None and train.weights is None
