"""The MNIST digits; shared by every dataset that is made of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from invbench.datafiles.download import required
from invbench.datafiles.release import release
from invbench.datasets._idx import read_idx
from invbench.errors import UserError

SHAPE = (28, 28)


@dataclass(frozen=True)
class Digits:
    """Training digits, then test digits: images (N, 28, 28) and labels (N,), bytes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    train: int
    official: bool


def load_mnist() -> Digits:
    """Load the digits from a data folder, else download them.

    Raises:
        UserError: no copy is there and none can be fetched, or a file is damaged.
    """
    mnist = release("mnist")
    paths = required(mnist)
    train_x, train_y, test_x, test_y = (
        read_idx(paths[file.path], file, SHAPE if "images" in file.path else ()) for file in mnist.files
    )
    if (len(train_x), len(test_x)) != (len(train_y), len(test_y)):
        folder = paths[mnist.files[0].path].parent
        raise UserError(f"the files in {folder} hold different numbers of images and labels; fetch them again")
    images, labels = np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])
    if labels.max() > 9:
        raise UserError(f"the labels beside {paths[mnist.files[0].path]} must be 0 to 9; fetch them again")
    return Digits(images, labels, len(train_x), (len(train_x), len(test_x)) == (60_000, 10_000))
