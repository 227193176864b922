"""What a profile tells of a run, and that it leaves the run alone."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from cells import small_config
from conftest import Bench

from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.system import stopwatch
from invbench.training.phases import PHASES, Phases, timed_phase
from invbench.training.profile import TRACED, Profile, profile_run
from invbench.training.runner import run_one

STEP = {"data", "forward", "objective", "backward", "optimiser", "other"}
SECOND = {"critic"}
RULE = {"gradient rule"}
EVALUATION = ["evaluation", "last evaluation"]


def profiled(config: RunConfig, out: Path) -> Profile:
    return profile_run(config, Options("cpu", out))


def test_a_phase_does_not_count_what_is_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes on by a second whenever one looks at it."""
    ticks = iter(range(100))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(ticks)))
    watching = Phases(torch.device("cpu"))
    with watching.watch(), timed_phase("backward"):  # 0 to 7
        with timed_phase("forward"), timed_phase("data"):  # 1 to 4, 2 to 3
            pass
        with timed_phase("forward"):  # 5 to 6
            pass
    assert watching.seconds == {"backward": 3.0, "forward": 3.0, "data": 1.0}
    with timed_phase("backward"):
        pass
    assert sum(watching.seconds.values()) == 7.0, "nobody watches any more"


def test_after_an_error_nobody_watches() -> None:
    watching = Phases(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="no"), watching.watch(), timed_phase("forward"):
        raise RuntimeError("no")
    assert Phases.watching is None
    with watching.watch(), timed_phase("data"):
        pass
    assert watching.open == []


@pytest.mark.parametrize(
    ("method", "dataset", "strategy", "parts"),
    [
        ("erm", "spirals", "joint", STEP),
        ("erm", "spirals", "vmap", STEP | RULE),
        ("and_mask", "spirals", "vmap", STEP | RULE),
        ("irmv1", "spirals", "loop", STEP | RULE),
        ("vrex", "spirals", "joint", STEP),
        ("mutual_information", "mi_toy", "joint", STEP | SECOND),
        ("adversary", "mi_toy", "joint", STEP | SECOND),
    ],
)
def test_the_parts_of_a_step(method: str, dataset: str, strategy: str, parts: set[str], tmp_path: Path) -> None:
    """All those that a step has, in their order, and the whole run's calls of them."""
    config = small_config(method, dataset, 0, trainer__strategy=strategy, trainer__steps=20, trainer__evaluate_every=5)
    profile = profiled(config, tmp_path)
    names = [cost.name for cost in profile.costs]
    assert names == [*(name for name in (*PHASES, "other") if name in parts), *EVALUATION]
    assert [cost.calls for cost in profile.costs] == [20] * len(parts) + [3, 1]
    assert all(cost.seconds > 0 for cost in profile.costs)
    traced = json.loads(gzip.decompress(profile.trace.read_bytes()))["traceEvents"]
    steps = [event for event in traced if event.get("name") == "step" and event.get("cat") == "user_annotation"]
    assert len(steps) == TRACED
    assert parts - {"other"} <= {event.get("name") for event in traced}


@pytest.mark.parametrize(("steps", "timed"), [(1, 0), (3, 0), (5, 1)])
def test_the_shortest_runs(steps: int, timed: int, tmp_path: Path) -> None:
    profile = profiled(small_config("and_mask", "spirals", 0, trainer__steps=steps), tmp_path)
    assert profile.steps == timed
    assert [cost.name for cost in profile.costs][-2:] == EVALUATION


def test_a_method_without_training_has_its_evaluation_only(tmp_path: Path) -> None:
    assert [cost.name for cost in profiled(small_config("icp", "irm_regression", 0), tmp_path).costs] == EVALUATION


def test_the_run_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    """A profile ahead of a run, and one of a run that is done: the same numbers, and the record is not touched."""
    config = small_config("irmv1", "spirals", 0)
    plain = run_one(config, Options("cpu", tmp_path / "plain"))
    profile = profiled(config, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [profile.trace]
    assert run_one(config, Options("cpu", tmp_path / "out")).metrics == plain.metrics
    record = tmp_path / "out" / config.spec.run_id / "record.json"
    before = record.read_bytes()
    profiled(config, tmp_path / "out")
    assert record.read_bytes() == before


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    command = ["run", "-m", "erm", "-d", "spirals", "--set", "trainer.steps=6", "--out", str(tmp_path), "--profile"]
    status, table, said = bench(*command)
    assert status == 0
    assert "backward" in table
    assert "last evaluation" in table
    assert "trace.json.gz" in said
    status, _, said = bench(*command, "--json")
    assert status == 2
    assert said == "error: --profile takes one seed, and neither --json nor --logger\n"
