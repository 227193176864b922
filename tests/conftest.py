"""What the tests share: an isolated machine, small cells, and stand-in methods for each hook."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
import torch
from faulty import FaultySweep
from standins import write_all, write_mnist

from invbench.cli import main
from invbench.system.threads import set_threads

# Machines differ in speed: no test may fail for being slow.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

MOST_WORKERS = 4
"""Processes that share the tests, each with one thread and up to 2 GB."""
Bench = Callable[..., tuple[int, str, str]]
"""Arguments of the command -> exit status, stdout, stderr."""
REAL_DATA = os.environ.get("INVBENCH_DATA")


def pytest_xdist_auto_num_workers() -> int:
    """Start one worker more than there are cores, up to a limit: tests of sweeps wait a lot."""
    return min((os.cpu_count() or 1) + 1, MOST_WORKERS)


def pytest_configure() -> None:
    """Give each worker, and each process that it starts, one thread."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        set_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that none is left alone at the end, and skip tests whose official files are not here."""
    items.sort(key=lambda item: "slow" not in item.keywords)
    for item in items:
        if "realdata" in item.keywords and not REAL_DATA:
            item.add_marker(pytest.mark.skip(reason="INVBENCH_DATA names no folder with the official files"))


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide this machine's data and cache from every test that is not marked `realdata`."""
    if "realdata" in request.keywords and REAL_DATA:
        monkeypatch.setenv("INVBENCH_DATA", str(Path(REAL_DATA).resolve()))
    else:
        monkeypatch.delenv("INVBENCH_DATA", raising=False)
    monkeypatch.setenv("INVBENCH_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Return the metrics, by id, of the slow runs that tests of sweeps disturb."""
    sweep = FaultySweep(tmp_path_factory.mktemp("undisturbed"))
    status, said = sweep.run(sweep.slow_file())
    assert status == 0, said
    return sweep.metrics()


@pytest.fixture
def faulty_sweep(tmp_path: Path) -> Iterator[FaultySweep]:
    """Make a folder for a sweep of runs that fail, and kill its processes after the test."""
    sweep = FaultySweep(tmp_path)
    yield sweep
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("FAULTY_KILLED") == sweep.environment["FAULTY_KILLED"]:
            process.kill()


@pytest.fixture(scope="session")
def standin_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data folder with a small file in the place of every official one; nobody may change it."""
    return write_all(tmp_path_factory.mktemp("standins"))


@pytest.fixture
def standins(standin_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of small files the data folder."""
    monkeypatch.setenv("INVBENCH_DATA", str(standin_files))
    return standin_files


@pytest.fixture
def mnist_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write 60 training and 20 test images as MNIST files into a data folder that a test may damage."""
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path / "data"))
    return write_mnist(tmp_path / "data" / "MNIST" / "raw")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    """Run the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call
