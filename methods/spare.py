"""SPARE: draw rare clusters of each class more often, from the outputs early in training.

Yang, Gan, Dziugaite, Mirzasoleiman (2024), "Identifying Spurious Biases Early in Training through the Lens of
Simplicity Bias", arXiv 2305.18761. The class probabilities of a run that was stopped early are clustered by k-means in
each class, with the k of the largest silhouette. The network then trains afresh on examples that are drawn with
replacement; of one in a cluster of n examples, the probability is proportional to

    n^(-p)    p = 1 where the silhouette of the class is 0.9 or more, else 2

in each class, and all classes are equally probable. No attribute need be known.
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from invbench.components.classes import class_probabilities
from invbench.components.clusters import clusters
from invbench.core.data import Problem
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.core.stages import FirstStage, SecondStage

CLEAR = 0.9
"""Silhouette from which on clusters are told apart well."""


@register_method("spare")
class SPARE(SecondStage):
    """Draw the rare clusters of an early run's predictions more often."""

    display_name: ClassVar[str] = "SPARE"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    first_share: float = setting(0.1, "length of the first stage, as a multiple of this run's", gt=0)
    most_clusters: int = setting(5, "of each class", ge=2, le=50)

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        train = problem.splits["train"]
        points, labels = class_probabilities(first.outputs(train).prediction).numpy(), train.y.long().numpy()
        weights = np.zeros(len(train))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            numbers, silhouette = clusters(points[rows], self.most_clusters, int(generator.integers(2**31)))
            power = 1 if silhouette >= CLEAR else 2
            of_class = np.bincount(numbers)[numbers] ** -float(power)
            weights[rows] = of_class / of_class.sum()
        return replace(problem, examples=replace(train, weights=torch.from_numpy(weights * len(train))))
