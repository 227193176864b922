"""Diversity and correlation shift: how a test distribution differs from the one that is trained on.

Ye, Li, Bai, Yu, Hong, Zhou, Li, Zhu (2022), "OoD-Bench: quantifying and understanding two dimensions of
out-of-distribution generalization", arXiv 2106.03721, with the squared distances of the authors' later code. A network
learns to tell training examples from test examples, h(g(x) · w(y)), from half of them; z = g(x) of the other half are
eight numbers, standardised. With kernel estimates p and q of the density of z in training and in test, and M points z_j
drawn from an estimate s of both together,

    diversity   = 1/2M Σ_j [p_j < ε or q_j < ε] (√p_j - √q_j)² / s_j
    correlation = Σ_y w_y 1/2M Σ_j [p_j, q_j > ε'] (√(p(z_j | y) √(q_j / p_j)) - √(q(z_j | y) √(p_j / q_j)))² / s_j

where w_y is the share of label y. Diversity is near 1 where test inputs are unlike all that were trained on;
correlation is large where like inputs have other labels. Both samples get equally many examples of every label, so that
a change of the labels' frequencies counts for nothing. A real target is replaced by its quartile.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from invbench.console import OnProgress
from invbench.core.backbone import network_with_head
from invbench.core.data import Problem
from invbench.core.registry import BACKBONES
from invbench.core.task import Regression
from invbench.errors import UserError
from invbench.results.statistics import half_width
from invbench.runs.resolve import resolve
from invbench.seeding import stream, torch_stream
from invbench.training.build import loaded

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
FEATURES, POINTS = 8, 5000
"""Size of z, and number of points of the integrals."""
NO_DENSITY, SOME_DENSITY = 1e-12, 5e-4
"""Density ε below which a point is outside of a sample, and ε' above which labels are compared there."""
MOST_EXAMPLES = 4000
"""Most examples of each sample, half of which the network is trained on."""
STEPS, BATCH, LEARNING_RATE = 1000, 64, 1e-3
SMALL_IMAGE = 2**13
"""Most numbers in an image that a fully connected network sees."""


@dataclass(frozen=True)
class Shift:
    """How a test distribution differs from the training distribution."""

    diversity: float
    correlation: float
    diversity_of_halves: float
    correlation_of_halves: float
    """The same of two random halves of both samples together: what few examples alone make."""
    accuracy: float
    """Share of held-out examples of which the network can tell whether they are for training or for the test."""


def measure_shift(problem: Problem, seed: int = 0, split: str = "test") -> Shift:
    """Measure the shift between the training split and another.

    Args:
        problem: on the CPU.
        seed: of the examples that are taken, the network and the points.

    Raises:
        UserError: no such split, or too few examples of a label in it.
    """
    if split not in problem.splits or split == "train":
        raise UserError(f"no split '{split}' to compare with training; there are {', '.join(problem.splits)}")
    rng = np.random.default_rng(stream(seed, "analysis", "shift"))
    first, second, labels = _balanced(problem, split, rng)
    half = len(labels) // 2
    inputs = _inputs(problem, split, first, second)
    with torch_stream(stream(seed, "analysis", "shift", "network"), torch.device("cpu")):
        network = _trained(problem, [x[:half] for x in inputs], labels[:half])
    first_z, second_z = (network.features_of(x[half:]).double().numpy() for x in inputs)
    swapped = rng.random(len(first_z)) < 0.5  # pairs have one label
    mixed = [np.where(swapped[:, None], *pair) for pair in ((first_z, second_z), (second_z, first_z))]
    accuracy = network.accuracy([x[half:] for x in inputs], labels[half:])
    return Shift(
        *shift_of_features(first_z, second_z, labels[half:], rng),
        *shift_of_features(mixed[0], mixed[1], labels[half:], rng),
        accuracy,
    )


def shift_table(
    datasets: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    split: str = "test",
    on_progress: OnProgress = int,
) -> pd.DataFrame:
    """Average the shift of datasets over seeds, each of which makes other data where these are drawn.

    Args:
        settings: of the datasets, by dotted name, e.g. `{"dataset.environments": "rotation_bins"}`.

    Returns:
        A row for each dataset: its name, the mean of each field of `Shift`, and `diversity_half_width` and
        `correlation_half_width`, half of the 95 % t-intervals.
    """
    rows: list[dict[str, Any]] = []
    for name in datasets:
        each = []
        for seed in seeds:
            each.append(asdict(measure_shift(loaded(resolve("erm", name, seed, settings)), seed, split)))
            on_progress(len(rows) * len(seeds) + len(each))
        of_seeds = pd.DataFrame(each)
        half_widths = {f"{what}_half_width": half_width(of_seeds[what]) for what in ("diversity", "correlation")}
        means = {field: float(of_seeds[field].mean()) for field in each[0]}
        rows.append({"dataset": name, **means, **half_widths})
    return pd.DataFrame(rows)


def shift_of_features(first: Array, second: Array, labels: Labels, rng: np.random.Generator) -> tuple[float, float]:
    """Compute diversity and correlation shift between features (N, d) of training and of test, both with these labels.

    Labels (N,) with too few examples for a density are left out of the correlation.
    """
    from scipy.stats import gaussian_kde  # a second

    both = np.concatenate([first, second])
    mean, spread = both.mean(0), both.std(0)
    varies = spread > 1e-12 * (1 + np.abs(mean))
    if not varies.any():
        return 0.0, 0.0
    first, second, both = (((z - mean) / spread.clip(min=1e-300))[:, varies] for z in (first, second, both))
    try:
        together, of_both = gaussian_kde(both.T), [gaussian_kde(z.T) for z in (first, second)]
    except (np.linalg.LinAlgError, ValueError) as error:
        raise UserError("the features of these examples fill fewer dimensions than they have: no density") from error
    points = together.resample(POINTS, seed=rng)
    s, p, q = (density(points) for density in (together, *of_both))
    outside = (p < NO_DENSITY) | (q < NO_DENSITY)
    diversity = (outside * (np.sqrt(p) - np.sqrt(q)) ** 2 / s).sum() / (2 * POINTS)
    inside = (p > SOME_DENSITY) & (q > SOME_DENSITY)
    ratio = np.sqrt(np.divide(q, p, out=np.ones_like(p), where=inside))
    total = weight = 0.0
    for label in np.unique(labels):
        of_label = labels == label
        try:
            of_first, of_second = (gaussian_kde(z[of_label].T)(points) for z in (first, second))
        except (np.linalg.LinAlgError, ValueError):  # fewer examples than features
            continue
        squares = (np.sqrt(of_first * ratio) - np.sqrt(of_second / ratio)) ** 2
        total += of_label.sum() * (inside * squares / s).sum() / (2 * POINTS)
        weight += of_label.sum()
    return float(diversity), float(total / weight) if weight else 0.0


class SampleClassifier(nn.Module):
    """Network h(g(x) · w(y)) that tells the samples apart: two logits, of training and of test."""

    def __init__(self, features: nn.Module, width: int, labels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(features, nn.Linear(width, FEATURES))
        self.of_label, self.head = nn.Linear(labels, FEATURES), nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x) * self.of_label(y))
        return logits

    def features_of(self, x: Tensor) -> Tensor:
        """Return z (N, 8) of inputs (N, ...)."""
        with torch.no_grad():
            return torch.cat([self.features(part) for part in x.split(512)])

    def accuracy(self, samples: list[Tensor], labels: Labels) -> float:
        """Return the share of examples whose sample is told, of samples with the same labels."""
        y = _one_hot(labels, self.of_label.in_features)
        with torch.no_grad():
            right = [
                (self(part, part_y).argmax(1) == number).double()
                for number, x in enumerate(samples)
                for part, part_y in zip(x.split(512), y.split(512), strict=True)
            ]
        return float(torch.cat(right).mean())


def _trained(problem: Problem, samples: list[Tensor], labels: Labels) -> SampleClassifier:
    is_small = problem.kind == "vector" or math.prod(problem.input_shape) <= SMALL_IMAGE
    name, settings = ("mlp", {"width": 128, "depth": 2}) if is_small else ("cnn_small", {})
    name, settings = ("deep_sets", {}) if problem.kind == "point_cloud" else (name, settings)
    _, network = network_with_head(BACKBONES.load(name).parse(settings, "backbone").build(problem))
    model = SampleClassifier(network.features, network.head.in_features, int(labels.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    y, sample = _one_hot(labels, int(labels.max()) + 1), torch.arange(2).repeat_interleave(BATCH)
    for _ in range(STEPS):
        rows = torch.randint(len(labels), (2, BATCH))
        x = torch.cat([part[index] for part, index in zip(samples, rows, strict=True)])
        optimizer.zero_grad()
        F.cross_entropy(model(x, y[rows.flatten()]), sample).backward()
        optimizer.step()
    return model.eval()


def _balanced(problem: Problem, split: str, rng: np.random.Generator) -> tuple[Labels, Labels, Labels]:
    """Draw rows of both samples with the same labels, in a random order; rows (N,), rows (N,), labels (N,)."""
    train, test = (problem.splits[name].y.double().numpy() for name in ("train", split))
    if isinstance(problem.task, Regression):
        limits = np.quantile(np.concatenate([train, test]), [0.25, 0.5, 0.75])
        train, test = np.searchsorted(limits, train), np.searchsorted(limits, test)
    rows: list[tuple[Labels, Labels]] = []
    for label in np.unique(train):
        pair = [rng.permutation(np.flatnonzero(labels == label)) for labels in (train, test)]
        count = min(map(len, pair))
        rows.append((pair[0][:count], pair[1][:count]))
    first, second = (np.concatenate(part) for part in zip(*rows, strict=True))
    order = rng.permutation(len(first))[:MOST_EXAMPLES]
    if len(order) < 8 * FEATURES:
        raise UserError(f"the splits train and {split} share labels of {len(order)} examples only; 64 are needed")
    return first[order], second[order], train[first[order]].astype(np.int64)


def _inputs(problem: Problem, split: str, first: Labels, second: Labels) -> list[Tensor]:
    """Return the inputs of rows of the training split and of the other; vectors standardised by those in training."""
    pairs = (("train", first), (split, second))
    inputs = [problem.splits[name].rows(torch.from_numpy(rows)).inputs().float() for name, rows in pairs]
    if problem.kind != "vector":
        return inputs
    spread, mean = torch.std_mean(inputs[0], 0)
    return [(x - mean) / spread.clamp(min=1e-6) for x in inputs]


def _one_hot(labels: Labels, count: int) -> Tensor:
    return F.one_hot(torch.from_numpy(labels), count).float()
