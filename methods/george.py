"""GEORGE: take clusters of each class's features for its hidden groups ("No Subclass Left Behind").

Sohoni, Dunnmon, Angus, Gu, Ré (2020), arXiv 2011.12945. The representations φ(x_i) of the training examples in a
finished run are reduced to their first principal components, and those of each class clustered by k-means, with the k
of the largest silhouette. Every cluster of every class is an environment, on which another part trains, in the paper
`group_dro`, as in `bench run -m group_dro --infer-groups george`; alone, it minimises the mean of their risks. No
attribute need be known; environments that the training data have are not used. Deviations: the authors reduce to two
dimensions by UMAP, and divide clusters further where that helps.
"""

from typing import ClassVar

import numpy as np
import torch

from invbench.components.clusters import clusters
from invbench.core.data import Problem
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.core.stages import FirstStage, SecondStage, with_environments
from invbench.errors import UserError


@register_method("george")
class GEORGE(SecondStage):
    """Infer an environment for each cluster of each class's features in a finished run."""

    display_name: ClassVar[str] = "GEORGE"
    requires: ClassVar[tuple[str, ...]] = ("classification",)
    provides: ClassVar[tuple[str, ...]] = ("environments",)

    components: int = setting(2, "principal components that are clustered", ge=1)
    most_clusters: int = setting(5, "of each class", ge=2, le=50)

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        train = problem.splits["train"]
        features = first.outputs(train).representation
        if features is None:
            raise UserError("george clusters representations, and the first stage's network has none")
        points = principal_components(features.flatten(1), self.components).numpy()
        labels, environment = train.y.long().numpy(), np.zeros(len(train), np.int64)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            numbers, _ = clusters(points[rows], self.most_clusters, int(generator.integers(2**31)))
            environment[rows] = environment.max() + 1 + numbers
        return with_environments(problem, torch.from_numpy(environment))


def principal_components(features: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first principal components (N, count) of features (N, D)."""
    centred = features - features.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    scores: torch.Tensor = (u * s)[:, :count]
    return scores
