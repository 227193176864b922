"""The optimiser of a single run makes the update of the pure one, to the last bit."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from invbench.core.trainer import TrainerConfig
from invbench.training.in_place_optimizer import InPlaceOptimizer
from invbench.training.optimizers import Optimizer

RULES: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.5, "nesterov": True},
]
SETTINGS = [
    rule | {"weight_decay": decay, "weight_decay_order": order, "l1": l1, "weight_decay_of": {"bias": 0.0}}
    for rule, decay, order, l1 in product(RULES, (0.0, 0.1), ("before", "after"), (0.0, 0.01))
]


def parameters(dtype: torch.dtype) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "weight": (17, 24),
        "bias": (17,),
        "kernel": (5, 3, 3, 3),
        "transposed": (6, 4),
        "learned": (3,),
        "one": (),
    }
    tensors = {name: torch.randn(shape, generator=draw, dtype=dtype) for name, shape in shapes.items()}
    tensors["kernel"] = tensors["kernel"].contiguous(memory_format=torch.channels_last)
    tensors["transposed"] = tensors["transposed"].t()
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("scale", [1.0, 0.3, torch.tensor(0.3)])
def test_the_same_update(settings: dict[str, Any], dtype: torch.dtype, scale: Any) -> None:
    trainer = TrainerConfig.parse({"steps": 10} | settings, "trainer")
    pure = parameters(dtype)
    rule = Optimizer.of(trainer, pure, {"learned": 0.02}, {"kernel": 0.1})
    state = rule.initial_state(pure)
    changed = {name: value.clone().requires_grad_() for name, value in parameters(dtype).items()}
    in_place = InPlaceOptimizer(rule, changed)
    scale = scale.to(dtype) if isinstance(scale, Tensor) else scale
    for count in range(6):
        gradients = {name: torch.randn(value.shape, dtype=dtype) * 10.0 ** (count - 4) for name, value in pure.items()}
        names = {"weight", "learned", "kernel"} if count % 3 == 2 else set(pure)
        new, moments = rule.step({n: pure[n] for n in pure if n in names}, gradients, state, count, 0.01, scale)
        pure, state = pure | new, state | moments
        in_place.step(names, gradients, count, 0.01, scale)
        for name, value in pure.items():
            assert torch.equal(changed[name], value), name
            assert all(torch.equal(in_place.state[name][moment], m) for moment, m in state[name].items()), name


def test_moments_are_loaded_and_forgotten() -> None:
    trainer = TrainerConfig.parse({"steps": 10}, "trainer")
    first, second = ({name: v.clone() for name, v in parameters(torch.float32).items()} for _ in "ab")
    rule = Optimizer.of(trainer, first)
    ours, theirs = InPlaceOptimizer(rule, first), InPlaceOptimizer(rule, second)
    gradients = {name: torch.ones_like(value) for name, value in first.items()}
    ours.step(set(first), gradients, 0, 0.1)
    theirs.load_state(ours.state)
    for name, moments in ours.state.items():
        assert all(torch.equal(theirs.state[name][moment], value) for moment, value in moments.items())
        assert theirs.state[name]["first"].data_ptr() != moments["first"].data_ptr()
    theirs.restart()
    assert not any(value.any() for moments in theirs.state.values() for value in moments.values())
    assert list(theirs.state) == list(first)
