"""A cache for constructions that take long, keyed by the hash of all that they depend on."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from invbench.datafiles.checksums import fingerprint
from invbench.datafiles.npz import read_npz
from invbench.datafiles.release import cache_folder
from invbench.files import replacing

Arrays = dict[str, NDArray[Any]]
PRINT = "fingerprint"


def cached_arrays(name: str, depends_on: Iterable[str], make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that `make` returns, from the cache where it has them undamaged.

    A cache that cannot be written saves no time and does no harm.

    Args:
        name: for the file's name.
        depends_on: hashes, settings and the version of the construction; change one and it is made anew.
        make: pure function of what it depends on. Processes that want the same wait for the first.
    """
    key = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:16]
    path = cache_folder() / "prepared" / f"{name}-{key}.npz"
    arrays: Arrays | None = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            arrays = _load(path)
            if arrays is None:
                arrays = make()
                _save(path, arrays)
    return make() if arrays is None else arrays


def _save(path: Path, arrays: Arrays) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{PRINT: np.array(fingerprint(sorted(arrays.items())))}, **arrays)


def _load(path: Path) -> Arrays | None:
    """Load the arrays of a cached file; None where it is not there or damaged."""
    try:
        arrays = read_npz(path, path.stat().st_size)  # it is not compressed, so it holds no more than it has
        return arrays if str(arrays.pop(PRINT)) == fingerprint(sorted(arrays.items())) else None
    except (OSError, ValueError, KeyError):
        return None
