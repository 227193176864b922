"""Metrics of groups and classes, and of probabilities, on problems whose examples have an attribute.

accuracy_group<g>: of each group that has an example in the split; accuracy_group_average and accuracy_group_worst of
    these; accuracy_group_weighted, the mean with the groups' shares in training, which papers on Waterbirds and CelebA
    print as the average accuracy.
accuracy_class<k>, accuracy_class_average (the balanced accuracy), accuracy_class_worst: the same of the classes, for
    which no attribute need be known.
roc_auc: of two classes the area under the curve, of more its mean over each class against the rest.
brier_score: mean of Σ_k (p_k - 1[y = k])², halved for two classes, as scikit-learn has it.
calibration_error: of the largest probability, in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.classes import class_probabilities
from invbench.core.data import Problem, Split

Array = NDArray[Any]
MOST = 32
"""Largest number of environments, groups or classes that are measured one by one."""
BINS = 15


def group_metrics(problem: Problem, name: str, accuracy: Tensor) -> dict[str, Tensor]:
    """Average the accuracy (N,) of a split over groups and classes; {} where no example of the data has an attribute.

    Groups that have no example in the split count nowhere.
    """
    if not problem.attributes:
        return {}
    labels = problem.splits[name].y.long()
    classes = max(2, problem.task.outputs)
    metrics = _summary(_means(accuracy, labels, classes), labels, "class")
    groups = problem.groups(name)
    if groups is None:
        return metrics
    means = _means(accuracy, groups, len(problem.group_names))
    metrics |= _summary(means, groups, "group")
    here, train = (np.array(problem.group_counts.get(part, [0])) for part in (name, "train"))
    shares = torch.from_numpy((here > 0) * train).to(accuracy)
    if (here * train).any():  # else no group of the split was trained on
        metrics["accuracy_group_weighted"] = (means * shares).sum() / shares.sum()
    return metrics


def _summary(means: Tensor, numbers: Tensor, what: str) -> dict[str, Tensor]:
    """Name the means (groups,) of groups or classes that have an example, with numbers (N,), and sum them up."""
    present = numbers.unique()
    means = means[present]
    each = dict(zip(present.tolist(), means, strict=True)) if len(present) <= MOST else {}
    metrics = {f"accuracy_{what}{number}": value for number, value in each.items()}
    return metrics | {f"accuracy_{what}_average": means.mean(), f"accuracy_{what}_worst": means.min()}


def _means(values: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Average values (N,) by their group (count,); 0 for a group without any."""
    sums = values.new_zeros(count).index_add(0, numbers, values)
    return sums / torch.bincount(numbers, minlength=count).clamp(min=1)


def probability_metrics(problem: Problem, split: Split, prediction: Tensor) -> dict[str, float]:
    """Measure the probabilities of predictions (N, outputs); {} without attributes, or where one is not finite."""
    if not problem.attributes:
        return {}
    probabilities = class_probabilities(prediction.double().cpu()).numpy()
    if not np.isfinite(probabilities).all():
        return {}
    labels = split.y.long().cpu().numpy()
    metrics = {"brier_score": brier_score(probabilities, labels)}
    metrics["calibration_error"] = calibration_error(probabilities, labels)
    return metrics | roc_auc(probabilities, labels)


def brier_score(probabilities: Array, labels: Array) -> float:
    """Compute the Brier score of probabilities (N, K) of labels (N,)."""
    wrong = probabilities - np.eye(probabilities.shape[1])[labels]
    half = 2 if probabilities.shape[1] == 2 else 1
    return float((wrong**2).sum(1).mean() / half)


def calibration_error(probabilities: Array, labels: Array) -> float:
    """Compute the expected calibration error of probabilities (N, K) of labels (N,)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.ceil(confidence * BINS).astype(int).clip(1, BINS)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS + 1)
    return float(np.abs(gaps).sum() / len(labels))


def roc_auc(probabilities: Array, labels: Array) -> dict[str, float]:
    """Compute the area under the curve; {} where a class has no example, for which there is none."""
    from sklearn.metrics import roc_auc_score  # half a second

    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return {}
    score = probabilities[:, 1] if classes == 2 else probabilities
    return {"roc_auc": float(roc_auc_score(labels, score, multi_class="ovr"))}
