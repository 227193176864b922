"""Methods compose: models wrap, penalties add, clashes are errors that name both."""

import pytest
import torch
from cells import MedianGradient, NormPenalty, SpreadPenalty, WorstRisk
from torch import Tensor, nn

from invbench.core.composition import Composition
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Method, Outputs, as_outputs
from invbench.core.task import BinaryClassification
from invbench.errors import UserError
from invbench.methods.and_mask import ANDMask
from invbench.methods.erm import ERM
from invbench.pytree import sole
from invbench.runs.resolve import resolve
from invbench.training.curve_columns import scalars


def test_two_gradient_rules_clash_and_are_named() -> None:
    with pytest.raises(UserError, match="median and and_mask both replace the mean of the gradients"):
        Composition({"median": MedianGradient(), "and_mask": ANDMask()})


def test_two_risks_clash_and_are_named() -> None:
    class Other(WorstRisk):
        """Another one."""

    with pytest.raises(UserError, match="worst and other both replace the mean of the risks"):
        Composition({"worst": WorstRisk(), "other": Other()})


def test_two_networks_clash_and_are_named() -> None:
    for names in ("steerable+partial_steerable", "partial_steerable+steerable"):
        with pytest.raises(UserError, match=f"{names.replace('+', ' and ')} both replace the network"):
            resolve(names, "sixes")
    with pytest.raises(UserError, match="steerable makes a network of its own, so it must come first: steerable"):
        resolve("augerino+steerable", "sixes")


def test_erm_is_neutral() -> None:
    composition = resolve("erm+and_mask", "spirals").method
    assert composition.rule[0] == "and_mask"
    assert composition.replaces_gradient
    assert not composition.replaces_risk
    assert not composition.has_penalty


def test_penalties_add_up() -> None:
    parts = {"spread": SpreadPenalty(weight=3.0), "norm": NormPenalty()}
    composition = Composition(parts)
    risks, representation = torch.tensor([1.0, 2.0, 4.0]), torch.randn(3, 5, 2)
    outputs = Outputs(torch.randn(3, 5, 1), representation)
    batch = Batch(torch.zeros(3, 5, 2), torch.zeros(3, 5), torch.arange(3))
    state = composition.initial_state({"w": torch.zeros(1)}, 3)
    value, after = composition.penalty(risks, outputs, batch, state)
    expected = 3 * risks.var(correction=0) + representation.square().mean()
    assert torch.allclose(value, expected)
    assert after == state


def test_models_wrap_in_the_order_given() -> None:
    class Scale(Method):
        """Multiplies the prediction."""

        by: float = 2.0

        def build(self, model: nn.Module, problem: Problem) -> nn.Module:
            return _Apply(model, lambda value: value * self.by)

    class Shift(Method):
        """Adds one to the prediction."""

        def build(self, model: nn.Module, problem: Problem) -> nn.Module:
            return _Apply(model, lambda value: value + 1)

    split = Split(torch.zeros(2, 1), torch.zeros(2))
    problem = Problem({"train": split, "test": split}, BinaryClassification(), "vector", "synthetic")
    x = torch.tensor([[5.0]])
    shift_last = Composition({"scale": Scale(), "shift": Shift()}).build(nn.Identity(), problem, 0)
    scale_last = Composition({"shift": Shift(), "scale": Scale()}).build(nn.Identity(), problem, 0)
    assert as_outputs(shift_last(x)).prediction.item() == 11
    assert as_outputs(scale_last(x)).prediction.item() == 12


def test_states_are_apart_and_steps_are_counted() -> None:
    composition = Composition({"erm": ERM(), "worst": WorstRisk()})
    state = composition.advance(composition.initial_state({"w": torch.zeros(1)}, 4))
    assert set(state) == {"erm", "worst"}
    assert state["worst"]["step"] == 1
    risks = torch.tensor([0.0, 0.0, 0.0, 2.0])
    value, after = composition.risk(risks, torch.arange(4), state)
    assert value > risks.mean()
    assert torch.equal(state["worst"]["weights"], torch.ones(4)), "hooks must not change the state they are given"
    assert after["worst"]["weights"].argmax() == 3


def test_scalars_of_two_parts_do_not_hide_each_other() -> None:
    one, two = {"step": torch.tensor(3), "weight": torch.tensor(1.0)}, {"weight": torch.tensor(2.0)}
    assert set(scalars(sole({"a": one}))) == {"weight"}
    assert scalars(sole({"a": one, "b": two})) == {"a.weight": one["weight"], "b.weight": two["weight"]}


@pytest.mark.parametrize(
    ("key", "message"),
    [("method.rate", "no part of the method has the setting"), ("method.x.y", "no part of the method")],
)
def test_settings_of_no_part(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("erm+and_mask", "spirals", 0, {key: 1})


def test_a_method_twice() -> None:
    with pytest.raises(UserError, match="names 'erm' twice"):
        resolve("erm+erm", "spirals")


class _Apply(nn.Module):
    def __init__(self, model: nn.Module, change: object) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(as_outputs(self.model(x)).prediction)  # type: ignore[operator]
