"""Recorded steps are the steps themselves, to the last bit; what cannot be recorded goes on as it is."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import small_config
from torch import Tensor, nn

from invbench.core.registry import METHODS
from invbench.errors import CannotFuse
from invbench.pytree import Tree, flatten, map_leaves
from invbench.runs.folder import RunFolder
from invbench.training import loop, recorded_step
from invbench.training.build import load_problem, model_on
from invbench.training.loop import TrainingLoop
from invbench.training.phases import Phases
from invbench.training.recorded_step import EARLIER, Recorded, only_computes
from invbench.training.recording import Recorder, traced

STEPS = EARLIER + 6
CELLS = {
    **dict.fromkeys(METHODS.entries(), "spirals"),
    **dict.fromkeys(
        (
            "augerino",
            "augerino_color",
            "fixed_augmentation",
            "insta_aug",
            "steerable",
            "canonical",
            "symmetrised",
            "irm_games",
            "partial_steerable",
            "marginal_likelihood",
        ),
        "digits",
    ),
    **dict.fromkeys(("oracle", "icp"), "irm_regression"),
    "arm": "colored_digits",
    "afr": "grouped_digits",
    "irmv1+adareg": "chain_sem",
    "irmv1+mutual_information": "tabular_nuisance",
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the steps of short runs too."""
    monkeypatch.setattr(loop, "RECORDED_FROM", 1)


def training_of(method: str, dataset: str, is_recorded: bool, steps: int = STEPS, **settings: Any) -> TrainingLoop:
    """Return a training after some steps."""
    settings = {"trainer__epochs": None, "trainer__steps": 4 * STEPS} | settings
    config = small_config(method, dataset, 0, **settings)
    problem = load_problem(config)
    training = TrainingLoop(config, problem, model_on(torch.device("cpu"), config, problem), RunFolder(Path()), "", 1e9)
    for recorded in recorded_of(training):
        recorded.is_given_up |= not is_recorded
    advance(training, steps)
    return training


def advance(training: TrainingLoop, steps: int) -> None:
    with training.noise():
        training.model.train()
        for _ in range(steps if training.total else 0):
            training.step(training.next_batch())


def recorded_of(training: TrainingLoop) -> list[Recorded]:
    return [training.recorded_step.recorded, *training.critics.slopes.values()]


def assert_same(first: TrainingLoop, second: TrainingLoop) -> None:
    ours, theirs = (flatten(training.state()) for training in (first, second))
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("method", "dataset"), CELLS.items())
def test_every_method_takes_the_same_steps(method: str, dataset: str) -> None:
    steps = 4 * STEPS if method == "irm_games" else STEPS  # each player has steps of its own
    recorded = training_of(method, dataset, is_recorded=True, steps=steps)
    assert_same(recorded, training_of(method, dataset, is_recorded=False, steps=steps))
    if recorded.total and METHODS.literal(method.partition("+")[0], "trains", True):
        assert recorded.recorded_step.recorded.programs, "its steps are recorded"
        assert not any(part.is_given_up for part in recorded_of(recorded))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("method", ["erm", "irmv1", "and_mask", "group_dro"])
@pytest.mark.parametrize("settings", [{"norm": "batch", "width": 4}, {"norm": "group", "width": 4}])
def test_running_means_and_layouts(method: str, settings: dict[str, Any]) -> None:
    backbone = {"backbone__name": "resnet9"} | {f"backbone__{name}": value for name, value in settings.items()}
    first = training_of(method, "colored_digits", True, trainer__batch_size=8, **backbone)
    assert_same(first, training_of(method, "colored_digits", False, trainer__batch_size=8, **backbone))
    assert first.recorded_step.recorded.programs


@pytest.mark.usefixtures("short")
def test_a_resumed_run_records_at_another_step() -> None:
    whole = training_of("irmv1", "spirals", is_recorded=True)
    half = training_of("irmv1", "spirals", is_recorded=True, steps=3)
    other = training_of("irmv1", "spirals", is_recorded=True, steps=0)
    state = map_leaves(Tensor.clone, half.state())
    other.load_state(half.done, half.objective_steps, state)
    advance(other, STEPS - 3)
    assert_same(other, whole)


@pytest.mark.parametrize(("steps", "is_recorded"), [(99, False), (100, True)])
def test_steps_of_short_runs_are_not_recorded(steps: int, is_recorded: bool) -> None:
    """Recording takes the time of some steps."""
    training = training_of("mutual_information", "mi_toy", True, EARLIER + 3, trainer__steps=steps)
    assert [bool(part.programs) for part in recorded_of(training)] == [is_recorded] * 2


def test_own_methods_and_networks_are_called_in_every_step() -> None:
    """They may print, which a recorded step would not."""
    assert only_computes(METHODS.load("irmv1")(), nn.Linear(2, 2))
    assert not only_computes(METHODS.load("irmv1")(), Skipping())


class Counting(nn.Module):
    """Network that counts its calls in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scaled: Tensor = self.layer(x) / self.calls
        return scaled


class Choosing(nn.Module):
    """Network with another way for large inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3


class Skipping(nn.Module):
    """Network that leaves its layer out at random, by Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if random.random() < 0.5 else x * 3  # noqa: S311  no secret


class Selecting(nn.Module):
    """Network that takes some rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0].sum(0)


@pytest.mark.parametrize("network", [Counting(), Choosing(), Skipping(), Selecting()])
def test_what_differs_from_call_to_call_is_called(network: nn.Module) -> None:
    recorded = Recorded(lambda inputs: {"y": network(inputs["x"])}, network)
    batches = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
    random.seed(0)
    got = [recorded({"x": x})["y"].detach() for x in batches]
    assert recorded.is_given_up
    assert not recorded.programs
    random.seed(0)
    if isinstance(network, Counting):
        network.calls = 0
    for x, y in zip(batches, got, strict=True):
        assert torch.equal(network(x), y)


def test_a_number_that_changes_out_of_sight_is_found_by_the_next_call() -> None:
    """What a function takes from elsewhere is a constant of the recording; the call after it differs."""
    steps: Iterator[int] = iter(range(100))
    recorded = Recorded(lambda inputs: {"y": inputs["x"] * next(steps)})
    x = torch.ones(2)
    assert [recorded({"x": x})["y"][0].item() for _ in range(12)] == list(range(12))
    assert recorded.is_given_up


def test_random_numbers_are_drawn_anew() -> None:
    dropout = nn.Dropout(0.5)
    recorded = Recorded(lambda inputs: {"y": dropout(inputs["x"]) + torch.rand(4)}, dropout)
    x = torch.ones(4)

    def twelve() -> list[Tensor]:
        torch.manual_seed(0)
        return [recorded({"x": x})["y"] for _ in range(12)]

    first = twelve()
    assert recorded.programs
    second = twelve()
    recorded.is_given_up = True
    for ours, again, called in zip(first, second, twelve(), strict=True):
        assert torch.equal(ours, called)
        assert torch.equal(again, called)


def test_gradients_of_gradients_and_changes_in_place() -> None:
    def call(inputs: Tree) -> Tree:
        weight = inputs["weight"].detach().requires_grad_()
        loss = (inputs["x"] @ weight).tanh().square().mean()
        gradient = torch.autograd.grad(loss, weight, create_graph=True)[0]
        second = torch.autograd.grad(gradient.square().sum() + loss, weight)[0]
        with torch.no_grad():
            inputs["seen"].add_(1).mul_(0.9)
        return {"loss": loss.detach(), "second": second, "seen": inputs["seen"]}

    recorded, seen, by_hand = Recorded(call), torch.zeros(2), torch.zeros(2)
    for k in range(12):
        draw = torch.Generator().manual_seed(k)
        inputs = {"x": torch.randn(7, 3, generator=draw), "weight": torch.randn(3, 2, generator=draw)}
        ours, theirs = recorded(inputs | {"seen": seen}), call(inputs | {"seen": by_hand})
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert torch.equal(seen, by_hand)
    assert recorded.programs


def test_a_step_that_is_too_large_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_step, "MOST_BYTES", 4 * 1000 * 3)
    small, large = Recorded(lambda inputs: {"y": inputs["x"] * 2}), Recorded(lambda inputs: {"y": inputs["x"] * 2 + 1})
    for _ in range(EARLIER + 3):
        small({"x": torch.ones(1000)})
        assert torch.equal(large({"x": torch.ones(1001)})["y"], torch.full((1001,), 3.0))
    assert small.programs
    assert large.is_given_up


def test_other_shapes_are_recorded_apart_and_phases_are_timed() -> None:
    calls: list[int] = []

    def call(inputs: Tree) -> Tree:
        calls.append(len(inputs["x"]))
        return {"y": inputs["x"] + 1}

    recorded = Recorded(call)
    for _ in range(EARLIER + 4):
        for rows in (2, 3):
            recorded({"x": torch.zeros(rows)})
    assert calls.count(2) == calls.count(3) == EARLIER + 2, "one is recorded, one is compared"
    with Phases(None).watch():
        recorded({"x": torch.zeros(2)})
    assert calls.count(2) == EARLIER + 3


def test_runs_that_are_mapped_draw_no_numbers_and_read_none() -> None:
    for function in (lambda x: [x + torch.rand(2)], lambda x: [x * x.sum().item()], lambda x: [x[x > 0]]):
        with pytest.raises(CannotFuse, match="random numbers|reads the number"):
            traced(function, [torch.ones(2)])
    recorder = Recorder([torch.ones(2)], is_alone=True)
    with recorder:
        assert torch.ones(()).item() == 1
    assert "reads the number" in recorder.obstacle
