"""CIFAR-10's official files, binary and python, read without running anything that is in them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from invbench.datafiles.checksums import read
from invbench.datafiles.download import required
from invbench.datafiles.release import release
from invbench.datasets._pickled import Array, read_pickle
from invbench.errors import UserError

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
MAX_BATCH = 1 << 28
"""Most bytes of a file; an official one has 31 MB."""


def load_batches() -> tuple[Labelled, Labelled]:
    """Load training and test images (N, 3, 32, 32) with labels (N,), bytes. Missing training batches are left out.

    Raises:
        UserError: the files are not here and cannot be fetched, or one is damaged.
    """
    paths = required(release("cifar10"))
    test = [path for name, path in paths.items() if "test_batch" in name]
    train = [path for name, path in sorted(paths.items()) if "data_batch" in name]
    return _joined(train), _joined(test)


def _joined(paths: list[Path]) -> Labelled:
    images, labels = zip(*(read_batch(path) for path in paths), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def read_batch(path: Path) -> Labelled:
    """Read one official file: `.bin`, or a pickle of the python version, which may hold arrays and built-ins only."""
    content = read(path, MAX_BATCH)
    binary = path.name.removesuffix(".gz").endswith(".bin")
    images, labels = _binary(content, path) if binary else _python(content, path)
    if len(labels) == 0 or labels.max() > 9:
        raise UserError(f"{path} is damaged: labels must be 0 to 9; fetch it again")
    return images.reshape(-1, *SHAPE), labels


def _binary(content: bytes, path: Path) -> Labelled:
    if len(content) % RECORD:
        raise UserError(f"{path} has {len(content)} bytes, no multiple of {RECORD}; fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return records[:, 1:], records[:, 0]


def _python(content: bytes, path: Path) -> Labelled:
    try:
        batch = read_pickle(content)
        images, labels = (batch.get(name) if isinstance(batch, dict) else None for name in (b"data", b"labels"))
        if not isinstance(images, Array) or not isinstance(labels, list):
            raise ValueError("it has no array of data, or no list of labels")
        if images.value.dtype != np.uint8 or images.value.shape != (len(labels), RECORD - 1):
            raise ValueError(f"data of type {images.value.dtype} and shape {images.value.shape}")
        if not all(type(label) is int and 0 <= label <= 9 for label in labels):
            raise ValueError("labels must be 0 to 9")
        return images.value, np.array(labels, np.uint8)
    except ValueError as error:
        raise UserError(f"{path} is no python batch of CIFAR-10 ({error}); fetch the binary version") from None
