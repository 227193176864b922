"""What is measured on a machine: chosen once, remembered, and kept by a run to its end."""

from pathlib import Path

import pytest
import torch
from cells import run_until, small_cell

from invbench.datafiles.release import cache_folder
from invbench.runs.record import RunFolder
from invbench.runs.spec import Cell
from invbench.training.build import load_problem
from invbench.training.loop import Training
from invbench.training.loop import strategy as calibration
from invbench.training.progress import Report
from invbench.training.runner import Options, build_training
from invbench.training.strategy import fastest_strategy

CPU = torch.device("cpu")


def training_of(cell: Cell, folder: Path) -> Training:
    return build_training(cell, load_problem(cell), RunFolder(folder), CPU, "", Options())


def measured(seed: int = 0) -> Cell:
    return small_cell("and_mask", "spirals", seed, trainer__strategy="measured")


def clock(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[str]:
    """Let the strategies take so long; returns the list of what is timed."""
    calls: list[str] = []

    def timed(step: object, device: torch.device) -> float:
        (objective,) = step.__defaults__  # type: ignore[attr-defined]
        calls.append(objective.strategy)
        return seconds[objective.strategy]

    monkeypatch.setattr(calibration, "timed", timed)
    return calls


@pytest.mark.parametrize("fastest", ["joint", "loop", "vmap"])
def test_the_fastest_is_taken_and_remembered(fastest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other seeds of the same kind of run do not ask again; a far slower way is tried once only."""
    calls = clock(monkeypatch, **({"vmap": 2.0, "loop": 2.5, "joint": 9.0} | {fastest: 1.0}))
    assert training_of(measured(), tmp_path).objective.strategy == fastest
    slow = [strategy for strategy in ("vmap", "loop", "joint") if calls.count(strategy) == 1]
    assert slow == ([] if fastest == "joint" else ["joint"])
    asked = len(calls)
    assert training_of(measured(1), tmp_path).objective.strategy == fastest
    assert len(calls) == asked


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    """Real times: whatever is chosen, parameters, state and random numbers are as they were."""
    training = training_of(small_cell("and_mask", "spirals"), tmp_path)
    before = {name: value.detach().clone() for name, value in training.parameters.items()}
    drawn = torch.random.get_rng_state()
    assert fastest_strategy(training) in ("joint", "loop", "vmap")
    assert all(torch.equal(before[name], value) for name, value in training.parameters.items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert training.done == 0


def test_a_run_goes_on_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has become faster meanwhile does not matter to it."""
    folder = RunFolder(tmp_path)
    clock(monkeypatch, vmap=3.0, loop=1.0, joint=2.0)
    run_until(measured(), folder, 3)
    (cache_folder() / "calibration.json").unlink()
    clock(monkeypatch, vmap=1.0, loop=3.0, joint=2.0)
    training = training_of(measured(), tmp_path)
    assert training.objective.strategy == "vmap"
    training.begin(Report("", training.total, folder.log, quiet=True))
    assert (training.done, training.objective.strategy) == (3, "loop")


@pytest.mark.parametrize(("method", "coupled"), [("erm", False), ("and_mask", True)])
def test_what_the_network_or_the_method_decides_is_not_measured(
    method: str, coupled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = clock(monkeypatch)
    cell = small_cell(method, "spirals", 0, trainer__strategy="measured", backbone__batch_norm=coupled)
    assert training_of(cell, tmp_path).objective.strategy == "joint"
    assert calls == []
