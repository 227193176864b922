"""Checks for third parties: a class that breaks one property is told which, and is forgotten afterwards."""

import doctest
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import invbench.testing
from invbench.core.backbone import Backbone
from invbench.core.data import Batch, Dataset, Problem, Split
from invbench.core.method import Gradients, Method, Outputs, State
from invbench.core.metric import METRICS, Metric, register_metric
from invbench.core.registry import BACKBONES, DATASETS, METHODS
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification
from invbench.errors import UserError
from invbench.testing import (
    check_backbone,
    check_dataset,
    check_method,
    checks_of_method,
    temporary_registrations,
)


class WorstRisk(Method):
    """Soft maximum of the risks: sound."""

    requires: ClassVar[tuple[str, ...]] = ("environments",)
    sharpness: float = setting(5.0, "β", gt=0, fusable=True)

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.logsumexp(self.sharpness * risks, dim=0) / self.sharpness, state


class FavoursFirst(WorstRisk):
    """Counts the environment that comes first twice."""

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        return risks.mean() + risks[0], state


class LeavesTensors(WorstRisk):
    """Branches on the value of a tensor."""

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        return (risks.max() if risks.max().item() > 1 else risks.mean()), state


class WritesState(WorstRisk):
    """Changes its state in place."""

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"count": next(iter(parameters.values())).new_zeros(())}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        state["count"] += 1
        return risks.mean(), state


class Explodes(Method):
    """Divides by zero."""

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return risks.mean() / torch.zeros(()), state


class DropsPenalty(Method):
    """A rule that leaves the penalty out."""

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        return {name: gradient.mean(0) for name, gradient in risk_grads.items()}, state


class OnlyPrediction(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.model(x).prediction
        return prediction


class DropsLearned(Method):
    """A model that keeps the prediction only."""

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return OnlyPrediction(model)


class DropsWeight(Method):
    """A penalty that has a weight and does not use it."""

    weight: float = setting(1.0, "λ", fusable=True)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return outputs.prediction.square().mean(), state


class FusesWords(Method):
    """Marks a word as a number."""

    mode: str = setting("soft", "how", fusable=True)


class Forgets(Method):
    """Keeps what it learns where no checkpoint looks."""

    seen: ClassVar[list[float]] = []

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        self.seen.append(0.0)
        return risks.mean() * len(self.seen), state


BROKEN_METHODS = [
    (FavoursFirst, "order_of_environments_does_not_matter on spirals: the gradient of .* changes when two environ"),
    (LeavesTensors, r"whole_runs_can_be_mapped on spirals: RuntimeError: .*\.item\(\)"),
    (WritesState, "hooks_are_pure on spirals: a hook changes the parameters, the batch or the state"),
    (Explodes, "trains on spirals: the objective of step 0 is inf"),
    (DropsPenalty, "rule_adds_penalty on spirals: the rule drops the penalty's gradient"),
    (DropsLearned, "model_reports_what_is_learned on spirals: .*drops `Outputs.learned`"),
    (DropsWeight, "penalty_heeds_its_weight on spirals: the step is the same with another weight"),
    (FusesWords, "fusable_settings_are_numbers on spirals: setting mode is fusable, but its default is no number"),
    (Forgets, "hooks_are_pure on spirals: the same parameters, batch and state give another step"),
]


class Noise(Dataset):
    """Two environments of noise: sound."""

    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "environments")
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 4, "trainer.batch_size": 5}

    def load(self, seed: np.random.SeedSequence) -> Problem:
        rng = np.random.default_rng(seed)

        def drawn() -> Split:
            x = torch.tensor(rng.normal(size=(40, 3)), dtype=torch.float32)
            return Split(x, (x[:, 0] > 0).float(), torch.arange(40) % 2)

        return Problem({"train": drawn(), "test": drawn()}, BinaryClassification(), "vector", "synthetic")


def changed(problem: Problem, **parts: Any) -> Problem:
    """Return the problem with other parts of its training split."""
    train = problem.splits["train"]
    tensors = {"x": train.x, "y": train.y, "env": train.env, "nuisance": train.nuisance} | parts
    return Problem({**problem.splits, "train": Split(**tensors)}, problem.task, problem.kind, problem.variant)


class Promises(Noise):
    """Promises a nuisance that it has not."""

    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "environments", "nuisance")


class Silent(Noise):
    """Does not say that it has environments."""

    provides: ClassVar[tuple[str, ...]] = ("vector", "classification")


class Drifts(Noise):
    """Draws from torch's generator."""

    def load(self, seed: np.random.SeedSequence) -> Problem:
        return changed(super().load(seed), x=torch.randn(40, 3))


class Spawns(Noise):
    """Uses its seed up."""

    def load(self, seed: np.random.SeedSequence) -> Problem:
        return super().load(seed.spawn(1)[0])


class Gaps(Noise):
    """Numbers its environments 1 and 3."""

    def load(self, seed: np.random.SeedSequence) -> Problem:
        problem = super().load(seed)
        return changed(problem, env=2 * (torch.arange(40) % 2) + 1)


class Signs(Noise):
    """Labels are -1 and 1."""

    def load(self, seed: np.random.SeedSequence) -> Problem:
        problem = super().load(seed)
        return changed(problem, y=2 * problem.splits["train"].y - 1)


class Wider(Noise):
    """Has wider inputs in the test split."""

    def load(self, seed: np.random.SeedSequence) -> Problem:
        problem = super().load(seed)
        test = replace(problem.splits["test"], x=torch.zeros(len(problem.splits["test"]), 9))
        return replace(problem, splits={**problem.splits, "test": test})


class OtherMetric(Noise):
    """Names a metric that no run measures."""

    def load(self, seed: np.random.SeedSequence) -> Problem:
        return replace(super().load(seed), metric="nope")


class TurnsNothingOn(Noise):
    """Names a setting that turns nothing on."""

    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "environments", "oracle")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"oracle": {"validation_share": 0.2}}


BROKEN_DATASETS = [
    (
        Promises,
        "provides_what_it_says: `provides`, or what `capabilities` returns, names nuisance, which the data do not have",
    ),
    (Silent, "provides_what_it_says: the data have environments, which `capabilities` does not name"),
    (Drifts, "loading_is_pure: `load` gives other tensors when it is called again with one seed"),
    (Spawns, "loading_is_pure: `load` gives other tensors when it is called again with one seed"),
    (Gaps, r"splits_are_sound: training environments are numbered \[1, 3\], not from 0 without gaps"),
    (Signs, "splits_are_sound: labels of split train are not whole numbers from 0 to 1"),
    (Wider, r"splits_can_be_measured: inputs of split test have shape \(9,\), those of train \(3,\)"),
    (OtherMetric, "splits_can_be_measured: `metric` of the problem is 'nope', and runs measure"),
    (TurnsNothingOn, "optional_settings_turn_on: `optional` says how to turn oracle on"),
]


class Flat(Backbone):
    """A linear network: sound."""

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    def build(self, problem: Problem) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(problem.splits["train"].x[0].numel(), problem.task.outputs))


class TwoOutputs(Flat):
    """Always two outputs."""

    def build(self, problem: Problem) -> nn.Module:
        return nn.Sequential(super().build(problem), nn.Linear(problem.task.outputs, 2))


class Unused(Flat):
    """Has a layer that it does not use."""

    def build(self, problem: Problem) -> nn.Module:
        model = super().build(problem)
        model.register_parameter("spare", nn.Parameter(torch.ones(1)))
        return model


class OwnSeed(Flat):
    """Draws its weights from another generator."""

    def build(self, problem: Problem) -> nn.Module:
        model = super().build(problem)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += float(np.random.default_rng().normal())
        return model


class Centred(Flat):
    """Takes the mean of the batch off, in evaluation too."""

    def build(self, problem: Problem) -> nn.Module:
        class Centre(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x - x.mean(0)

        return nn.Sequential(Centre(), super().build(problem))


class Single(Flat):
    """Computes in float32 whatever it is given."""

    def build(self, problem: Problem) -> nn.Module:
        class Cast(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.float()

        return nn.Sequential(Cast(), super().build(problem))


class Sound(Flat):
    """Accepts what is no kind of input."""

    accepts: ClassVar[tuple[str, ...]] = ("audio",)


BROKEN_BACKBONES = [
    (TwoOutputs, r"predictions_have_the_right_shape: .* have shape \(6, 2\), not \(6, 3\)"),
    (Unused, "parameters_get_gradients: parameter spare gets no gradient on vector inputs"),
    (OwnSeed, "building_is_pure: .* differs between networks built from one state of torch's generator"),
    (Centred, "rows_do_not_mix_in_evaluation: in evaluation the prediction of an example depends on the rest"),
    (Single, "takes_double_precision: RuntimeError"),
    (Sound, "predictions_have_the_right_shape: `accepts` names 'audio', which is no kind of input"),
]


@pytest.mark.parametrize(("method", "wrong"), BROKEN_METHODS, ids=lambda case: getattr(case, "__name__", ""))
def test_a_broken_method(method: type[Method], wrong: str) -> None:
    with pytest.raises(AssertionError, match=f"^method {method.__name__} fails {wrong}") as error:
        check_method(method, ["spirals"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("dataset", "wrong"), BROKEN_DATASETS, ids=lambda case: getattr(case, "__name__", ""))
def test_a_broken_dataset(dataset: type[Dataset], wrong: str) -> None:
    with pytest.raises(AssertionError, match=f"^dataset {dataset.__name__} fails {wrong}"):
        check_dataset(dataset)


@pytest.mark.parametrize(("backbone", "wrong"), BROKEN_BACKBONES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_broken_backbone(backbone: type[Backbone], wrong: str) -> None:
    with pytest.raises(AssertionError, match=f"^backbone {backbone.__name__} fails {wrong}"):
        check_backbone(backbone)


def test_sound_ones_pass_and_are_forgotten() -> None:
    before = [set(registry.known()) for registry in (METHODS, DATASETS, BACKBONES)]
    check_method(WorstRisk)
    check_dataset(Noise)
    check_backbone(Flat)
    assert [set(registry.known()) for registry in (METHODS, DATASETS, BACKBONES)] == before


@pytest.mark.parametrize(("name", "check"), checks_of_method("vrex", ["spirals"]))
def test_checks_are_cases(name: str, check: Any) -> None:
    assert name.endswith("[spirals]")
    check()


def test_what_is_neither_a_class_nor_a_name() -> None:
    with pytest.raises(UserError, match="no method 'vrexx'; did you mean 'vrex'"):
        check_method("vrexx")
    with pytest.raises(UserError, match=r"must be a class that derives from invbench\.core\.method\.Method"):
        check_method(Noise)  # type: ignore[arg-type]


def test_a_method_that_no_dataset_without_files_suits() -> None:
    class Points(Method):
        requires: ClassVar[tuple[str, ...]] = ("point_cloud",)

    with pytest.raises(UserError, match="no dataset without files provides what points requires"):
        check_method(Points)


@pytest.mark.slow
def test_what_a_test_registers_is_forgotten() -> None:
    registries = (METHODS, DATASETS, BACKBONES)
    before = [dict(registry.known()) for registry in registries], dict(METRICS)
    with pytest.raises(ZeroDivisionError), temporary_registrations():
        for registry, cls in zip(registries, (WorstRisk, Noise, Flat), strict=True):
            registry.register("mine")(cls)
        register_metric(Metric("regret", higher_is_better=False))
        check_method("mine", ["mine"])
        raise ZeroDivisionError
    assert ([dict(registry.known()) for registry in registries], METRICS) == before
    for registry in registries:
        with pytest.raises(UserError, match=f"no {registry.kind} 'mine'"):
            registry.load("mine")


def test_a_name_means_what_it_meant() -> None:
    with temporary_registrations():
        METHODS.register("mine")(WorstRisk)
        with temporary_registrations():
            METHODS.register("mine")(type("WorstRisk", (Method,), {"__module__": __name__}))
            assert METHODS.load("mine") is not WorstRisk
        assert METHODS.load("mine") is WorstRisk


def test_what_the_package_loads_meanwhile_stays() -> None:
    """Import a module once: a second import would not register its class."""
    program = """
from invbench.core.registry import METHODS
from invbench.testing import temporary_registrations
with temporary_registrations():
    inside = METHODS.load("vrex")
assert METHODS.load("vrex") is inside
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["check_method", "check_dataset", "check_backbone", "temporary_registrations"])
def test_examples_run_as_printed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(invbench.testing, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, module=False, globs={"__name__": "example"})
    output: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=output.append)
    assert result.attempted
    assert not result.failed, "".join(output)
