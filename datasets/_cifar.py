"""CIFAR-10's official files, binary and python, read without running anything that is in them."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invbench.errors import UserError
from invbench.fetch import required
from invbench.sources import release

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""What the official pickles name: the parts of a numpy array."""


def load_batches() -> tuple[Labelled, Labelled]:
    """Training and test images (N, 3, 32, 32) with labels (N,), bytes. Training batches that are not here are left out.

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
    """One official file: `.bin`, or a pickle of the python version, of which only arrays and built-ins are admitted."""
    images, labels = _binary(path) if path.suffix == ".bin" else _python(path)
    if len(labels) == 0 or labels.max() > 9:
        raise UserError(f"{path} is damaged: labels must be 0 to 9; fetch it again")
    return images.reshape(-1, *SHAPE), labels


def _binary(path: Path) -> Labelled:
    content = np.fromfile(path, np.uint8)
    if len(content) % RECORD:
        raise UserError(f"{path} has {len(content)} bytes, no multiple of {RECORD}; fetch it again")
    records = content.reshape(-1, RECORD)
    return records[:, 1:], records[:, 0]


def _python(path: Path) -> Labelled:
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
        if images.dtype != np.uint8 or images.shape != (len(labels), RECORD - 1):
            raise ValueError(f"data of type {images.dtype} and shape {images.shape}")
        return images, labels.astype(np.uint8)
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no python batch of CIFAR-10 ({error}); fetch the binary version") from None


class _Unpickler(pickle.Unpickler):
    """Refuses every name but those of numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name before numpy 2
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
