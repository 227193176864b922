"""Where the MNIST digits come from; shared by every dataset that is made of them."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from invbench.errors import UserError
from invbench.idx import read_idx
from invbench.sources import DATA_VARIABLE, SourceFile, cache_folder, locate
from invbench.torchvision_import import torchvision

LICENCE = "CC BY-SA 3.0"
CITATION = "LeCun, Cortes, Burges, The MNIST database of handwritten digits"
HOME = "https://ossci-datasets.s3.amazonaws.com/mnist"


def _source(name: str, size: int, sha256: str) -> SourceFile:
    return SourceFile(f"MNIST/raw/{name}", sha256, size, f"{HOME}/{name}.gz")


SOURCES = (
    _source("train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    _source("train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    _source("t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    _source("t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


@dataclass(frozen=True)
class Digits:
    """Training digits, then test digits: images (N, 28, 28) and labels (N,), bytes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    train: int
    official: bool


def load_mnist() -> Digits:
    """The digits from a data folder, else from torchvision's download.

    Raises:
        UserError: no copy is there and none can be fetched, or a file is damaged.
    """
    paths = [locate(source) for source in SOURCES]
    if None in paths:
        _download()
        paths = [locate(source) for source in SOURCES]
    train_x, train_y, test_x, test_y = (_read(path, s) for path, s in zip(paths, SOURCES, strict=True))
    if (len(train_x), len(test_x)) != (len(train_y), len(test_y)):
        raise UserError(f"{paths[0]} and its neighbours hold different numbers of images and labels; fetch them again")
    official = (len(train_x), len(test_x)) == (60_000, 10_000)
    return Digits(np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y]), len(train_x), official)


def _read(path: Path | None, source: SourceFile) -> NDArray[np.uint8]:
    if path is None:
        raise UserError(f"{source.path} is missing after the download; repeat the command")
    return read_idx(path, source)


def _download() -> None:
    """torchvision fetches all four files into the cache and checks their checksums."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".mnist.lock"), contextlib.redirect_stdout(sys.stderr):
            torchvision().datasets.MNIST(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"the MNIST files are not here and cannot be downloaded ({reason}). "
            f"Three ways: set {DATA_VARIABLE} to a folder that has {SOURCES[0].path}[.gz] and its three neighbours; "
            f"put that MNIST folder into the cache, {cache}; or connect to the network and repeat the command"
        ) from None
