"""The 8x8 digits that come with scikit-learn; shared by the datasets that are made of them."""

from importlib.metadata import distribution
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.data import floats

LICENCE = "CC BY 4.0, bundled with scikit-learn"
CITATION = "Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI (1998)"


def load_small_digits() -> tuple[Tensor, NDArray[Any]]:
    """Load all 1,797 images (N, 1, 8, 8) with pixels in [0, 1], and their labels (N,).

    The same as `sklearn.datasets.load_digits` returns, whose import takes as long as that of torch.
    """
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",")
    return floats(table[:, :-1] / 16).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
