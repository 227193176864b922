"""Measure how much predictions tell about a nuisance, without a critic, on data that no model was trained on.

Mutual information is in nats, from distances to nearest neighbours: Kraskov, Stögbauer, Grassberger (2004), estimator
1, for real nuisances, and Ross (2014) for categories. It is that of scikit-learn, but takes vectors too and is not cut
off at zero. Real numbers are standardised first. Vectors of more than 3 numbers are reduced to their 3 principal
components, since neighbours are far in many dimensions.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import jensenshannon, pdist, squareform
from scipy.special import digamma
from torch import Tensor

from invbench.core.data import Split
from invbench.core.method import Outputs
from invbench.core.task import BinaryClassification, Task

Array = NDArray[np.float64]
NEIGHBOURS = 5
MOST_COMPONENTS = 3
SAMPLE = 2000
"""Largest number of examples of which all pairs are compared."""
TOP = 0.05
"""Share of the background that passes a cut: that with the highest scores."""
SIGNAL_EFFICIENCY = 0.5
HISTOGRAM_BINS = 32
NUISANCE_BINS = 5
"""Number of quantile bins of a real nuisance; the primary metric is measured in each."""
MOST_CATEGORIES = 32
"""Largest number of categories of a nuisance in each of which the primary metric is measured."""


def dependence_metrics(outputs: Outputs, task: Task, split: Split) -> dict[str, float]:
    """Measure the dependence of predictions on the nuisances of a split; {} without these, or without finite outputs.

    mutual_information, distance_correlation: between score and nuisance; the score is the logit, the prediction, or all
        logits. With representation_ in front: between representation and nuisance.
    energy_distance: of the nuisance of the 5 % of background with the highest scores from that of all background, and
    jensen_shannon: in nats, between histograms of the nuisance of background that passes this cut and that fails.
    roc_auc, background_rejection: the latter is 1 over the background's efficiency where the signal's is one half.
    <primary metric>_bin<i>: in quantile bins of the nuisance, or in its categories.

    Where there are several nuisances, _<index> is appended to what is about one of them.
    """
    parts = [outputs.prediction, *([] if outputs.representation is None else [outputs.representation])]
    if split.nuisance is None or not all(torch.isfinite(part).all() for part in parts):
        return {}
    score = outputs.prediction.double().cpu().numpy()
    metrics: dict[str, float] = {}
    if isinstance(task, BinaryClassification):
        metrics |= _separation(score[:, 0], split.y.cpu().numpy())
    quality = task.scores(outputs.prediction, split.y)[task.primary].double().cpu().numpy()
    background = split.y.cpu().numpy() == 0
    for name, nuisance in _columns(split.nuisance):
        metrics |= {f"{key}{name}": value for key, value in _dependences(outputs, nuisance).items()}
        real = np.issubdtype(nuisance.dtype, np.floating)
        if isinstance(task, BinaryClassification) and real and background.any():
            sculpted = sculpting(score[background, 0], nuisance[background].astype(np.float64))
            metrics |= {f"{key}{name}": value for key, value in sculpted.items()}
        metrics |= {f"{task.primary}{name}_bin{i}": quality[rows].mean() for i, rows in _bins(nuisance) if rows.any()}
    return {name: float(value) for name, value in metrics.items()}


def _columns(nuisance: Tensor) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield every nuisance (N,), with the end of its metrics' names in front."""
    table = nuisance.reshape(len(nuisance), -1).cpu().numpy()
    for i in range(table.shape[1]):
        yield ("" if table.shape[1] == 1 else f"_{i}"), table[:, i]


def _dependences(outputs: Outputs, nuisance: NDArray[np.generic]) -> dict[str, float]:
    """Measure the dependence of score and representation on a nuisance (N,)."""
    rows = np.random.default_rng(0).permutation(len(nuisance))[:SAMPLE]
    parts = {"": outputs.prediction, "representation_": outputs.representation}
    metrics = {}
    for prefix, part in parts.items():
        if part is not None:
            values = part.flatten(1).double().cpu().numpy()[rows]
            metrics[f"{prefix}mutual_information"] = mutual_information(values, nuisance[rows])
            metrics[f"{prefix}distance_correlation"] = distance_correlation(values, nuisance[rows])
    return metrics


def mutual_information(values: Array, nuisance: NDArray[np.generic], neighbours: int = NEIGHBOURS) -> float:
    """Estimate the mutual information in nats between vectors (N, D) and a nuisance (N,).

    The estimate is around 0, also below, where there is none.

    Args:
        values: the vectors (N, D).
        nuisance: real numbers, or integers as categories.
        neighbours: number of nearest neighbours.
    """
    values = standardised(principal_components(values))
    if np.issubdtype(nuisance.dtype, np.floating):
        return _with_real(values, standardised(nuisance[:, None].astype(np.float64)), neighbours)
    return _with_category(values, nuisance, neighbours)


def _with_real(values: Array, nuisance: Array, neighbours: int) -> float:
    """Estimate mutual information with a real nuisance (N, 1): Kraskov et al. (2004), estimator 1."""
    joint = np.hstack([values, nuisance])
    distances, _ = cKDTree(joint).query(joint, neighbours + 1, p=np.inf)
    radii = np.nextafter(distances[:, -1], 0)
    counts = [_within(part, part, radii) for part in (values, nuisance)]  # each counts itself
    return float(digamma(len(values)) + digamma(neighbours) - sum(digamma(count).mean() for count in counts))


def _with_category(values: Array, nuisance: NDArray[np.generic], neighbours: int) -> float:
    """Estimate mutual information with categories (N,): Ross (2014). 0 where no category has two examples."""
    total, used = 0.0, 0
    groups = [values[nuisance == category] for category in np.unique(nuisance)]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return 0.0
    everything = np.concatenate(groups)
    for group in groups:
        k = min(neighbours, len(group) - 1)
        distances, _ = cKDTree(group).query(group, k + 1, p=np.inf)
        counts = _within(everything, group, np.nextafter(distances[:, -1], 0))
        total += len(group) * (digamma(k) - digamma(len(group))) - digamma(counts).sum()
        used += len(group)
    return float(digamma(used) + total / used)


def _within(points: Array, centres: Array, radii: Array) -> NDArray[np.int64]:
    """Count the points within a radius of each centre, in the maximum norm."""
    counts: NDArray[np.int64] = cKDTree(points).query_ball_point(centres, radii, p=np.inf, return_length=True)
    return counts


def standardised(columns: Array) -> Array:
    """Scale columns (N, D) to mean 0 and deviation 1, and add fixed noise of 1e-10, which tells equal numbers apart."""
    deviation = columns.std(0)
    scaled: Array = (columns - columns.mean(0)) / np.where(deviation > 0, deviation, 1)
    return scaled + 1e-10 * np.random.default_rng(0).normal(size=columns.shape)


def principal_components(columns: Array) -> Array:
    """Return the first 3 principal components (N, 3); columns (N, D) as they are where D is at most 3."""
    if columns.shape[1] <= MOST_COMPONENTS:
        return columns
    centred = columns - columns.mean(0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :MOST_COMPONENTS]
    components: Array = centred @ directions
    return components


def distance_correlation(values: Array, nuisance: NDArray[np.generic]) -> float:
    """Measure the distance correlation, 0 to 1, between vectors (N, D) and a nuisance (N,); Székely et al. (2007).

    Different categories are at distance 1.
    """
    real = np.issubdtype(nuisance.dtype, np.floating)
    nuisance_distances = pdist(nuisance[:, None].astype(np.float64), "euclidean" if real else "hamming")
    a, b = (_centred(squareform(distances)) for distances in (pdist(values), nuisance_distances))
    scale = np.sqrt((a * a).mean() * (b * b).mean())
    return float(np.sqrt(max((a * b).mean(), 0) / scale)) if scale > 0 else 0.0


def _centred(distances: Array) -> Array:
    """Subtract the means of rows and columns from distances (N, N)."""
    centred: Array = distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()
    return centred


def sculpting(score: Array, nuisance: Array) -> dict[str, float]:
    """Measure how far a cut on the score (N,) changes the distribution of the background's nuisance (N,)."""
    from scipy.stats import energy_distance  # takes a second, as does scikit-learn below

    passes = score >= np.quantile(score, 1 - TOP)
    if passes.all():  # one score for all: no cut changes anything
        return {"energy_distance": 0.0, "jensen_shannon": 0.0}
    edges = np.linspace(nuisance.min(), nuisance.max(), HISTOGRAM_BINS + 1)
    histograms = [np.histogram(nuisance[rows], edges)[0] for rows in (passes, ~passes)]
    return {
        "energy_distance": float(energy_distance(nuisance, nuisance[passes])),
        "jensen_shannon": float(jensenshannon(*histograms) ** 2),
    }


def _separation(score: Array, y: NDArray[np.generic]) -> dict[str, float]:
    """Measure how well the score (N,) separates signal from background; {} where one of them is missing."""
    from sklearn.metrics import roc_auc_score

    signal, background = score[y == 1], score[y == 0]
    if not (len(signal) and len(background)):
        return {}
    passing = (background >= np.quantile(signal, 1 - SIGNAL_EFFICIENCY)).sum()
    return {
        "roc_auc": float(roc_auc_score(y, score)),
        "background_rejection": len(background) / max(passing, 1),
    }


def _bins(nuisance: NDArray[np.generic]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield the number and the rows of each bin of a nuisance (N,); none for too many categories."""
    if np.issubdtype(nuisance.dtype, np.floating):
        real = nuisance.astype(np.float64)
        index = np.searchsorted(np.quantile(real, np.linspace(0, 1, NUISANCE_BINS + 1)[1:-1]), real)
    else:
        index = nuisance.astype(np.int64)
    if index.max() < MOST_CATEGORIES:
        yield from ((i, np.equal(index, i)) for i in range(int(index.max()) + 1))
