"""The 8x8 digits that come with scikit-learn; shared by the datasets that are made of them."""

from importlib.metadata import distribution
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.data import floats

LICENCE = "CC BY 4.0, bundled with scikit-learn"
CITATION = "Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI (1998)"
BOUNDS = {"train": (0, 1197), "validation": (1197, 1397), "test": (1397, 1797)}
"""Of the splits, in the order of `shuffled_small_digits`."""


def load_small_digits() -> tuple[Tensor, NDArray[Any]]:
    """Load all 1,797 images (N, 1, 8, 8) with pixels in [0, 1], and their labels (N,).

    The same as `sklearn.datasets.load_digits` returns, whose import takes as long as that of torch.
    """
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",")
    return floats(table[:, :-1] / 16).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)


def shuffled_small_digits() -> tuple[Tensor, NDArray[Any]]:
    """Load the same in an order that is at random, but fixed."""
    images, labels = load_small_digits()
    order = np.random.default_rng(np.random.SeedSequence(1797)).permutation(len(labels))
    return images[order], labels[order]
