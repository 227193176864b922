"""The 8x8 digits that come with scikit-learn; shared by the datasets that are made of them."""

from typing import Any

from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from invbench.core.data import floats

LICENCE = "CC BY 4.0, bundled with scikit-learn"
CITATION = "Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI (1998)"


def load_small_digits() -> tuple[Tensor, NDArray[Any]]:
    """Load all 1,797 images (N, 1, 8, 8) with pixels in [0, 1], and their labels (N,)."""
    pixels, labels = load_digits(return_X_y=True)
    return floats(pixels / 16).reshape(-1, 1, 8, 8), labels
