"""What the tests share: an isolated machine, small cells, and stand-in methods for each hook."""

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

# Machines differ in speed: no test may fail for being slow.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

REAL_DATA = os.environ.get("INVBENCH_DATA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the official files their tests are skipped, and say so."""
    for item in items:
        if "realdata" in item.keywords and not REAL_DATA:
            item.add_marker(pytest.mark.skip(reason="INVBENCH_DATA names no folder with the official files"))


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees this machine's data or cache, but for those marked `realdata`."""
    if "realdata" in request.keywords and REAL_DATA:
        monkeypatch.setenv("INVBENCH_DATA", str(Path(REAL_DATA).resolve()))
    else:
        monkeypatch.delenv("INVBENCH_DATA", raising=False)
    monkeypatch.setenv("INVBENCH_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def mnist_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with 60 training and 20 test images in the format of the MNIST files."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 20)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", rng.integers(0, 10, count).astype(np.uint8))
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path / "data"))
    return folder


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write bytes in the idx format, gzipped where the name says so."""
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
