"""Update rules against torch.optim and against the authors' formulas."""

from typing import Any

import pytest
import torch
from torch.func import vmap

from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError
from invbench.training.optimizers import Optimizer


def trainer(**values: Any) -> TrainerConfig:
    return TrainerConfig.parse({"steps": 10} | values, "trainer")


def ours(settings: TrainerConfig, start: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Return the parameter after one step per gradient."""
    parameters = {"w": start.clone()}
    optimizer = Optimizer.of(settings, ["w"])
    state = optimizer.initial_state(parameters)
    for count, gradient in enumerate(gradients.unbind()):
        parameters, state = optimizer.step(parameters, {"w": gradient}, state, count, settings.learning_rate)
    return parameters["w"]


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"optimizer": "adam", "learning_rate": 0.1}, lambda p: torch.optim.Adam(p, lr=0.1)),
        (
            {"optimizer": "adam", "learning_rate": 0.1, "weight_decay": 0.3},
            lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3),
        ),
        (
            {"optimizer": "adam", "learning_rate": 0.1, "betas": [0.5, 0.9], "epsilon": 1e-3},
            lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-3),
        ),
        (
            {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.3},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3),
        ),
        (
            {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        ),
    ],
)
def test_against_torch(settings: dict[str, Any], reference: Any) -> None:
    start, gradients = torch.randn(5, 3, dtype=torch.float64), torch.randn(10, 5, 3, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = reference([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(ours(trainer(**settings), start, gradients), parameter, rtol=1e-12, atol=1e-12)


def test_decay_after_adam_is_scaled_by_the_corrected_step_size() -> None:
    """θ ← θ - (lr / (1 - β1^t)) wd θ after the update: ten-fold at the first step."""
    start, gradients = torch.randn(4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    theta, m, v = start.clone(), torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        size = 0.1 / (1 - 0.9**t)
        theta = theta - size * m / (v.sqrt() / (1 - 0.999**t) ** 0.5 + 1e-8)
        theta = theta - size * 0.2 * theta
    settings = trainer(learning_rate=0.1, weight_decay=0.2, weight_decay_order="after")
    assert torch.allclose(ours(settings, start, gradients), theta, rtol=1e-12)


def test_decay_after_gradient_descent() -> None:
    settings = trainer(optimizer="sgd", learning_rate=0.3, weight_decay=0.01, weight_decay_order="after")
    start, gradient = torch.tensor([2.0]), torch.tensor([[1.0]])
    assert torch.allclose(ours(settings, start, gradient), torch.tensor([(2 - 0.3) * (1 - 0.01 * 0.3)]))


def test_a_masked_weight_moves_by_the_learning_rate_whatever_the_decay() -> None:
    """Why coupled decay erases what the mask holds still: Adam divides the decay's size away."""
    for decay in (1e-1, 1e-4):
        settings = trainer(learning_rate=0.01, weight_decay=decay)
        moved = ours(settings, torch.tensor([0.5], dtype=torch.float64), torch.zeros(10, 1, dtype=torch.float64))
        assert moved.item() == pytest.approx(0.4, abs=2e-3)


def test_l1() -> None:
    settings = trainer(optimizer="sgd", learning_rate=1.0, l1=0.25)
    start = torch.tensor([2.0, -2.0, 0.0])
    assert torch.equal(ours(settings, start, torch.zeros(1, 3)), torch.tensor([1.75, -1.75, 0.0]))


def test_decay_by_name() -> None:
    settings = trainer(weight_decay=0.5, weight_decay_of={"*.bias": 0.0, "head.*": 0.1})
    optimizer = Optimizer.of(settings, ["body.weight", "head.weight", "head.bias"])
    assert optimizer.decays == {"body.weight": 0.5, "head.weight": 0.1, "head.bias": 0.0}
    with pytest.raises(UserError, match="no parameter matches 'haed"):
        Optimizer.of(trainer(weight_decay_of={"haed.*": 0.0}), ["head.bias"])


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_runs_can_be_stacked(name: str, order: str) -> None:
    """The same code with a leading axis of runs, and a value of every fusable setting for each."""
    settings = trainer(optimizer=name, weight_decay_order=order)
    values = {
        "learning_rate": torch.tensor([0.1, 0.01, 1.0]),
        "weight_decay": torch.tensor([0.0, 0.1, 0.5]),
        "momentum": torch.tensor([0.0, 0.9, 0.5]),
        "l1": torch.tensor([0.2, 0.0, 0.1]),
    }
    assert set(values) == set(TrainerConfig.fusable())
    start, gradients = torch.randn(3, 4), torch.randn(3, 2, 4)

    def two_steps(theta: torch.Tensor, g: torch.Tensor, changed: dict[str, Any]) -> torch.Tensor:
        return ours(settings.model_copy(update=changed), theta, g)

    stacked = vmap(two_steps)(start, gradients, values)
    for run in range(3):
        alone = two_steps(start[run], gradients[run], {key: value[run].item() for key, value in values.items()})
        assert torch.allclose(stacked[run], alone, rtol=1e-5)


def test_schedules() -> None:
    step = trainer(epochs=150, steps=None, schedule="multi_step")
    factors = [step.rate_factor(s, 4) for s in range(600)]
    assert factors[: 112 * 4] == [1.0] * 448
    assert factors[448:] == [pytest.approx(0.1)] * 152
    cosine = trainer(steps=100, schedule="cosine", warmup=0.1, floor=0.01)
    factors = [cosine.rate_factor(s, 1) for s in range(100)]
    assert factors[0] == 0
    assert factors[5] == pytest.approx(0.5 * 0.5 * (1 + torch.tensor(0.05 * torch.pi).cos().item()))
    assert min(factors[10:]) == pytest.approx(0.01)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert {trainer().rate_factor(s, 3) for s in range(10)} == {1.0}
