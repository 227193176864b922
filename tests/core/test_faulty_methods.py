"""Methods whose hooks return what they should not: every run of one fails in words, and has a record."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import invbench
from invbench.core.data import Problem
from invbench.core.hooks import OptimizerRestarts, Update, UpdateSchedule
from invbench.core.method import Gradients, Method, State
from invbench.core.registry import METHODS
from invbench.errors import RunFailed, UserError
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.sweeps.engines.worker import carry_out
from invbench.testing import temporary_registrations

SIX_STEPS = {"trainer.epochs": None, "trainer.steps": 6}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the methods of a test at its end."""
    with temporary_registrations():
        yield


class BuildFails(Method):
    """Fail to build the network for one seed in two."""

    count: ClassVar[int] = 0

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        type(self).count += 1
        if type(self).count % 2:
            raise ValueError("no network today")
        return model


def test_a_network_that_cannot_be_built_is_a_failed_run(tmp_path: Path) -> None:
    """The other seeds are run, and the failure has a record that says where it came from."""
    METHODS.register("build_fails")(BuildFails)
    BuildFails.count = 0
    where = r"ValueError: no network today \(test_faulty_methods.py, line 41\)"
    with pytest.raises(RunFailed, match=rf"seed 0 failed \(error\): {where}; .*\(2 of 4 runs failed\)"):
        invbench.run("build_fails", "spirals", seeds="0-3", settings=SIX_STEPS, out=tmp_path)
    results = invbench.load_results(tmp_path).sort_values("seed")
    assert results["status"].tolist() == ["failed", "done", "failed", "done"]
    record = RunFolder(Path(results["path"].iloc[0])).load_record()
    assert record is not None
    assert "raise ValueError" in str(record.traceback)
    assert (record.kind, record.message) == ("error", "no network today")


def test_failures_are_answers_in_the_process_of_the_sweep_too(tmp_path: Path) -> None:
    METHODS.register("build_fails")(BuildFails)
    BuildFails.count = 0
    (outcome,) = carry_out([resolve("build_fails", "spirals", 0, SIX_STEPS).spec.model_dump()], Options(out=tmp_path))
    assert (outcome.status, outcome.kind) == ("failed", "error")


class Tensors(UpdateSchedule):
    """Give rates as tensors."""

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        return Update({name: torch.tensor(1.0) for name in names}, count)  # type: ignore[dict-item]


def test_rates_may_be_tensors(tmp_path: Path) -> None:
    METHODS.register("tensors")(Tensors)
    ours, erm = (invbench.run(name, "spirals", settings=SIX_STEPS, out=tmp_path) for name in ("tensors", "erm"))
    assert ours.metrics == erm.metrics


class NoRate(UpdateSchedule):
    """Give a rate that is no number."""

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        return Update(dict.fromkeys(names, float("nan")), count)


class OtherName(UpdateSchedule):
    """Move a parameter that is not there."""

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        return Update({"nobody": 1.0}, count)


class NoTuple(Method):
    """Return a tensor where moments are a tuple."""

    def moments(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient  # type: ignore[return-value]


class OneNumber(Method):
    """Return one number for each parameter."""

    def combine(
        self, risk_grads: Mapping[str, Tensor], penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        return {name: gradients.mean() for name, gradients in risk_grads.items()}, state


class Forgets(Method):
    """Return the gradient of the first parameter only."""

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        first = next(iter(moments))
        return {first: moments[first][0]}, state


class Counts(Method):
    """Count steps under the engine's name."""

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"step": torch.tensor(100)}


class Restarts(OptimizerRestarts):
    """Restart the optimiser at what is no step."""

    at: float = -3

    def restarts(self) -> tuple[Any, ...]:
        return (self.at,)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (NoRate, RunFailed, r"update of method faulty gives '[\w.]+' the rate nan"),
        (OtherName, RunFailed, "update of method faulty gives 'nobody' the rate 1.0"),
        (NoTuple, RunFailed, "moments of method faulty returns no tuple"),
        (OneNumber, RunFailed, r"combine of method faulty returns a gradient of shape \(\) for '[\w.]+', whose shape"),
        (Forgets, RunFailed, "combine_moments of method faulty returns no gradient for"),
        (Counts, UserError, "initial_state of method faulty has 'step', which the engine keeps"),
        (Restarts, RunFailed, "method faulty restarts the optimiser ahead of step -3"),
        (type("Halves", (Restarts,), {"__annotations__": {"at": float}, "at": 2.5}), RunFailed, "ahead of step 2.5"),
    ],
)
def test_what_hooks_return_is_checked(
    method: type[Method], error: type[Exception], message: str, tmp_path: Path
) -> None:
    METHODS.register("faulty")(method)
    with pytest.raises(error, match=message):
        invbench.run("faulty", "spirals", settings=SIX_STEPS, out=tmp_path)
