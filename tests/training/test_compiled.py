"""Steps that torch's compiler makes: the numbers of other steps up to rounding, and of their own when resumed."""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch._inductor as inductor
from cells import small_config
from torch import Tensor

from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import METHODS
from invbench.errors import CannotFuse, UserError
from invbench.methods.erm import ERM
from invbench.pytree import flatten, map_leaves
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.training.attempt import build_training
from invbench.training.build import load_problem
from invbench.training.fused.loop import FusedTraining
from invbench.training.loop import TrainingLoop

STEPS = 6
CLOSE = 1e-9
"""Of the largest parameter, in double precision, with settings in which rounding does not grow."""
SETTINGS: dict[str, Any] = {
    "trainer__dtype": "float64",
    "trainer__optimizer": "adam",
    "trainer__epsilon": 1e-3,
    "trainer__learning_rate": 1e-3,
    "trainer__epochs": None,
    "trainer__steps": 50,
}
FEW_UPDATES = {"method__pretrain_steps": 0, "method__critic_warm_up": 0, "method__critic_steps": 1}
CELLS: dict[tuple[str, str], dict[str, Any]] = {
    ("erm", "spirals"): {},
    ("and_mask", "spirals"): {},
    ("coral", "spirals"): {},
    ("mixup", "spirals"): {},
    ("rsc", "spirals"): {},
    ("adversary", "mi_toy"): FEW_UPDATES,
    ("steerable", "digits"): {},
    ("irm_games", "irm_regression"): {},
}
"""A method of each kind of step, with settings that leave less to compile."""
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++")


def training_of(method: str, dataset: str, seed: int = 0, **settings: Any) -> TrainingLoop:
    config = small_config(method, dataset, seed, **(SETTINGS | settings))
    options = Options("cpu", Path(), checkpoint_seconds=1e9)
    return build_training(config, load_problem(config), RunFolder(Path()), torch.device("cpu"), "", options)


def advance(training: TrainingLoop, steps: int) -> TrainingLoop:
    with training.noise():
        training.model.train()
        for _ in range(steps if training.total else 0):
            training.step(training.next_batch())
    return training


def check_close(training: TrainingLoop, reference: TrainingLoop) -> None:
    ours, theirs = (flatten(each.state()["parameters"]) for each in (training, reference))
    largest = max((float(value.abs().max()) for value in theirs.values()), default=1.0)
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) <= CLOSE * largest, name
    buffers = dict(reference.model.named_buffers())  # running means among them
    for name, value in training.model.named_buffers():
        assert torch.allclose(value.double(), buffers[name].double(), rtol=CLOSE), name


@pytest.mark.slow
def test_alone_and_together() -> None:
    plain, compiled = (
        advance(training_of("irmv1", "irm_regression", trainer__compile=is_compiled), STEPS)
        for is_compiled in (False, True)
    )
    assert compiled.recorded_step.recorded.programs
    check_close(compiled, plain)
    runs = [training_of("irmv1", "irm_regression", seed, trainer__compile=True) for seed in range(2)]
    fused = FusedTraining(runs)
    for _ in range(STEPS):
        fused.step()
    fused.unstack_runs()
    check_close(runs[0], plain)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dataset"), CELLS)
def test_methods_of_every_kind(method: str, dataset: str) -> None:
    settings = CELLS[method, dataset]
    plain, compiled = (
        advance(training_of(method, dataset, trainer__compile=is_compiled, **settings), STEPS)
        for is_compiled in (False, True)
    )
    assert compiled.recorded_step.recorded.programs
    check_close(compiled, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "dataset", "settings"), [("and_mask", "spirals", {}), ("mutual_information", "mi_toy", FEW_UPDATES)]
)
def test_together(method: str, dataset: str, settings: dict[str, Any]) -> None:
    runs = [training_of(method, dataset, seed, trainer__compile=True, **settings) for seed in range(2)]
    try:
        fused = FusedTraining(runs)
    except CannotFuse as reason:
        pytest.fail(str(reason))
    for _ in range(STEPS):
        fused.step()
    fused.unstack_runs()
    check_close(runs[1], advance(training_of(method, dataset, 1, **settings), STEPS))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "strategy"), [("erm", "auto"), ("vrex", "loop")])
def test_a_resumed_run_gives_the_same_bits(method: str, strategy: str) -> None:
    settings: dict[str, Any] = {"trainer__compile": True, "trainer__strategy": strategy, "trainer__dtype": "float32"}
    settings |= {"backbone__dropout": 0.5, "dataset__environments": 2}
    whole = advance(training_of(method, "spirals", **settings), STEPS)
    half, other = (training_of(method, "spirals", **settings) for _ in range(2))
    with half.noise():
        half.model.train()
        for _ in range(2):
            half.step(half.next_batch())
        generator = torch.get_rng_state()
    other.load_state(half.done, half.objective_steps, map_leaves(Tensor.clone, half.state()))
    with other.noise():
        torch.set_rng_state(generator)
        other.model.train()
        for _ in range(STEPS - 2):
            other.step(other.next_batch())
    ours, theirs = flatten(other.state()), flatten(whole.state())
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    message = "torch's compiler fails, so leave trainer.compile out: [^\n]*$"
    missing = inductor.config.patch({"cpp.cxx": (str(tmp_path / "none"),)})
    with missing, pytest.raises(UserError, match=message):
        advance(training_of("erm", "irm_regression", trainer__compile=True), 1)


def test_a_step_that_reads_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of("erm", "irm_regression", trainer__compile=True)
    monkeypatch.setattr(
        type(training.objective.task), "losses", lambda self, p, y: (p[..., 0] - y) * float(p.detach().sum())
    )
    with pytest.raises(UserError, match="trainer.compile is on, but a step reads the number of a tensor"):
        advance(training, 1)


class Counting(ERM):
    """Counts its steps in Python, which no program sees."""

    calls: ClassVar[int] = 0

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        type(self).calls += 1
        return self.calls * outputs.prediction.square().mean(), state


@pytest.mark.slow
def test_a_step_that_depends_on_more_than_its_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._registered, "erm", Counting)
    with pytest.raises(UserError, match="a step depends on more than its tensors"):
        advance(training_of("erm", "spirals", trainer__compile=True), 2)
