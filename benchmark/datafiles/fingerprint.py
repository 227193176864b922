"""One hash for many arrays."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprint(arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """sha256 over every array's name, type, shape and bytes, in the order given."""
    digest = hashlib.sha256()
    for name, value in arrays:
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
