"""Clusters of examples, as many as fit them best."""

import warnings

import numpy as np
from numpy.typing import NDArray

from invbench.errors import UserError

SAMPLE = 2000
"""Largest number of examples of which all pairs are compared."""


def clusters(points: NDArray[np.float64], most: int, seed: int) -> tuple[NDArray[np.int64], float]:
    """Cluster points (N, D) by k-means, with the k from 2 to `most` of the largest silhouette; return numbers (N,), it.

    The silhouette is that of SAMPLE points, and 0 where these are of one cluster. Fewer than three different points are
    one cluster, with a silhouette of 0.

    Raises:
        UserError: a point is not finite.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score  # a second together

    if not np.isfinite(points).all():
        raise UserError("outputs of the first stage are not finite, so there are no clusters of them")
    different = len(np.unique(points, axis=0))
    sample = np.random.RandomState(seed).permutation(len(points))[:SAMPLE]  # as scikit-learn draws it
    best: tuple[NDArray[np.int64], float] = np.zeros(len(points), np.int64), 0.0
    for k in range(2, min(most, different - 1) + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # points that k-means cannot tell apart
            numbers = KMeans(k, n_init=10, random_state=seed).fit_predict(points).astype(np.int64)
        several = 1 < len(np.unique(numbers[sample])) < len(sample)
        score = float(silhouette_score(points[sample], numbers[sample])) if several else 0.0
        if k == 2 or score > best[1]:
            best = numbers, score
    return best
