"""Clusters of examples, as many as fit them best."""

import numpy as np
from numpy.typing import NDArray

SAMPLE = 2000
"""Largest number of examples of which all pairs are compared."""


def clusters(points: NDArray[np.float64], most: int, seed: int) -> tuple[NDArray[np.int64], float]:
    """Cluster points (N, D) by k-means, with the k from 2 to `most` of the largest silhouette; return numbers (N,), it.

    Fewer than three different points are one cluster, with a silhouette of 0.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score  # a second together

    different = len(np.unique(points, axis=0))
    best: tuple[NDArray[np.int64], float] = np.zeros(len(points), np.int64), 0.0
    for k in range(2, min(most, different - 1) + 1):
        numbers = KMeans(k, n_init=10, random_state=seed).fit_predict(points).astype(np.int64)
        score = float(silhouette_score(points, numbers, sample_size=min(SAMPLE, len(points)), random_state=seed))
        if k == 2 or score > best[1]:
            best = numbers, score
    return best
