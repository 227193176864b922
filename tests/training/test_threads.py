"""Threads follow the size of a run, sleep while they wait unless the user has chosen, and are put back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cells import small_config
from conftest import Bench
from threadpoolctl import threadpool_info

from invbench.runs.folder import run_folders
from invbench.runs.options import Options
from invbench.system import threads
from invbench.system.threads import set_threads, threads_put_back, wait_passively
from invbench.training import threads as run_threads
from invbench.training.runner import run_one

SHOWN = "import os, {}; print(os.environ.get('OMP_WAIT_POLICY'))"


@pytest.fixture
def three() -> Iterator[None]:
    """Set this process to three threads while a test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(("worth", "expected"), [(1, 3), (2**60, 1)])
def test_a_run_takes_what_its_size_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: int, expected: int
) -> None:
    monkeypatch.setattr(run_threads, "WORTH_THREADS", worth)
    record = run_one(small_config("erm", "spirals"), Options("cpu", tmp_path))
    assert record.machine["threads"] == expected
    assert torch.get_num_threads() == 3, "put back"


@pytest.mark.usefixtures("three")
def test_what_is_asked_for_is_taken(tmp_path: Path, bench: Bench) -> None:
    assert bench("run", "-m", "erm", "-d", "linear_unit_tests", "--set", "trainer.steps=3", "--threads", "2")[0] == 0
    (folder,) = run_folders(tmp_path / "results")
    record = folder.read_record()
    assert record is not None
    assert record.machine["threads"] == 2


def test_linear_algebra_takes_as_many_threads_as_torch() -> None:
    def counts() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threads_put_back():
        set_threads(3)
        with threads_put_back():
            set_threads(2)
            assert counts() == {2}
            assert torch.get_num_threads() == 2
        assert counts() == {3}
        assert torch.get_num_threads() == 3


def test_what_is_loaded_later_takes_no_more() -> None:
    code = (
        "from invbench.system.threads import set_threads; set_threads(1); import numpy, scipy.linalg, threadpoolctl; "
        "print(*(library['num_threads'] for library in threadpoolctl.threadpool_info()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("method", ["augerino", "erm"])
def test_counting_moves_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Neither random numbers nor running means."""
    config = small_config(method, "mario_iggy")
    given = run_one(config, Options("cpu", tmp_path / "given", threads=1))
    monkeypatch.setattr(run_threads, "WORTH_THREADS", 2**60)
    chosen = run_one(config, Options("cpu", tmp_path / "chosen"))
    assert chosen.metrics == given.metrics


def test_multiplications_of_known_networks() -> None:
    from torch import nn

    dense = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    assert run_threads._multiplications(dense, torch.zeros(1, 3)) == 3 * 5 + 5 * 2
    pictures = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, groups=2))
    assert run_threads._multiplications(pictures, torch.zeros(1, 2, 8, 8)) == 64 * 4 * 2 * 9 + 36 * 6 * 2 * 9


def test_the_user_s_choice_is_left() -> None:
    for given in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "1"}):
        environment = dict(given)
        wait_passively(environment)
        assert environment == given
    empty: dict[str, str] = {}
    wait_passively(empty)
    assert empty == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("module", ["invbench", "invbench.cli"])
def test_it_is_set_ahead_of_torch(module: str) -> None:
    """By the package alone, which loads no torch: that reads it only once."""
    plain = {name: value for name, value in os.environ.items() if name not in threads.CHOSEN}
    code = SHOWN.format(module) + "; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PASSIVE", "False"]
