"""Environment gradients: every strategy against a naive one, for every kind of hook and their compositions."""

import pytest
import torch
from cells import MedianGradient, NormPenalty, SpreadPenalty, WorstRisk, objective_of, small_config
from torch import Tensor
from torch.func import functional_call

from invbench.core.composition import Composition
from invbench.core.data import Batch
from invbench.core.method import Gradients, Method, State, as_outputs
from invbench.core.trainer import Strategy
from invbench.errors import UserError
from invbench.methods.adareg import AdaReg
from invbench.methods.and_mask import ANDMask
from invbench.methods.erm import ERM
from invbench.methods.iga import IGA
from invbench.methods.irmv1 import IRMv1
from invbench.methods.pcgrad import PCGrad
from invbench.methods.sand_mask import SANDMask
from invbench.methods.vrex import VREx
from invbench.training.gradients import Moments, Objective, choose_strategy

COMPOSITIONS: dict[str, dict[str, Method]] = {
    "erm": {"erm": ERM()},
    "and_mask": {"and_mask": ANDMask(threshold=0.5)},
    "geometric_mean": {"and_mask": ANDMask(threshold=0.5, rule="geometric_mean", scale_by_inverse_sparsity=False)},
    "penalty": {"spread": SpreadPenalty()},
    "two penalties": {"spread": SpreadPenalty(), "norm": NormPenalty()},
    "risk": {"worst": WorstRisk()},
    "all gradients": {"median": MedianGradient()},
    "risk + penalty + mask": {"worst": WorstRisk(), "norm": NormPenalty(), "and_mask": ANDMask(threshold=0.5)},
    "irmv1 + and_mask": {"irmv1": IRMv1(anneal_steps=0, weight=2.0), "and_mask": ANDMask(threshold=0.5)},
    "vrex + sand_mask": {"vrex": VREx(anneal_steps=0, weight=2.0), "sand_mask": SANDMask(threshold=0.3)},
    "group_dro + iga": {"worst": WorstRisk(), "iga": IGA(weight=2.0)},
    "irmv1 + iga": {"irmv1": IRMv1(anneal_steps=0, weight=2.0), "iga": IGA(weight=2.0)},
    "iga + vrex + pcgrad": {
        "iga": IGA(weight=0.5),
        "vrex": VREx(anneal_steps=0),
        "pcgrad": PCGrad(order="most_conflicting"),
    },
    "irmv1 + adareg": {"irmv1": IRMv1(anneal_steps=0, weight=1.0), "adareg": AdaReg()},
    "risk + penalty + median": {"worst": WorstRisk(), "spread": SpreadPenalty(), "median": MedianGradient()},
}


def naive(
    objective: Objective, parameters: dict[str, Tensor], batch: Batch, state: State
) -> tuple[Gradients, Tensor, State]:
    """Compute a step with one graph, all E gradients kept, and the hooks applied as the contract says."""
    method, names = objective.method, list(parameters)
    leaves = list(parameters.values())
    rows = batch.x.reshape(-1, *batch.x.shape[2:])
    outputs = as_outputs(functional_call(objective.model, parameters, (rows,)))
    shaped = outputs.map(lambda part: part.reshape(*batch.y.shape, *part.shape[1:]))
    risks = torch.stack([objective.task.losses(shaped.prediction[e], batch.y[e]).mean() for e in range(len(batch.y))])
    risk, state = method.risk(risks, batch.env, state)
    with_loss_gradients = shaped._replace(loss_gradients=objective.task.loss_gradients(shaped.prediction, batch.y))
    penalty, state = method.penalty(risks, with_loss_gradients, batch, state)
    if method.has_gradient_penalty:
        each = [torch.autograd.grad(value, leaves, create_graph=True) for value in risks]
        more, state = method.gradient_penalty(
            {name: torch.stack([grads[i] for grads in each]) for i, name in enumerate(names)}, state
        )
        penalty = penalty + more
    weights = torch.autograd.grad(risk, risks, retain_graph=True)[0]
    stacks: list[list[Tensor]] = [[] for _ in leaves]
    for e in range(len(risks)):
        for stack, g in zip(stacks, torch.autograd.grad(risks[e], leaves, retain_graph=True), strict=True):
            stack.append(g * weights[e] * len(risks))
    penalty_grad = [torch.zeros_like(leaf) for leaf in leaves]
    if method.has_penalty:
        grads = torch.autograd.grad(penalty, leaves, retain_graph=True, allow_unused=True)
        penalty_grad = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads, strict=True)]
    risk_grads = dict(zip(names, (torch.stack(stack) for stack in stacks), strict=True))
    rule_state = {name: part | {} for name, part in state.items()}
    gradients, after = method.combine(risk_grads, dict(zip(names, penalty_grad, strict=True)), batch.env, rule_state)
    return gradients, risk + penalty, after


@pytest.mark.parametrize("strategy", ["joint", "loop", "vmap"])
@pytest.mark.parametrize("name", COMPOSITIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_strategies_agree_with_the_naive_one(
    strategy: Strategy, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    method = Composition(COMPOSITIONS[name])
    config = small_config("erm", "spirals")
    objective, parameters, batch, state = objective_of(config, strategy, dtype, method)
    expected, value, after = naive(objective, parameters, batch, state)
    gradients, objective_value, new, *_ = objective.step(parameters, batch, state)
    scale = max(g.abs().max().item() for g in expected.values())
    for key, gradient in expected.items():
        if dtype is torch.float32 and method.rule[0] == "and_mask":
            # A sign that rounding decides may flip an element of the mask: compare the elements that both keep.
            both = (gradient != 0) & (gradients[key] != 0)
            assert both.float().mean() > 0.9 * (gradient != 0).float().mean()
            gradient, gradients[key] = gradient * both, gradients[key] * both
        assert torch.allclose(gradients[key], gradient, rtol=0, atol=tolerance * max(1.0, scale)), key
        assert not gradients[key].requires_grad
    assert torch.allclose(objective_value, value, atol=10 * tolerance)
    assert not objective_value.requires_grad
    if "worst" in after:
        assert torch.allclose(new["worst"]["weights"], after["worst"]["weights"], atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_of_environments_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, parameters, batch, state = objective_of(small_config("and_mask", "spirals"), "vmap")
    whole = objective.step(parameters, batch, state)
    monkeypatch.setattr("invbench.training.gradients._chunk", lambda parameters, environments: chunk)
    parts = objective.step(parameters, batch, state)
    for name, gradient in whole.gradients.items():
        assert torch.allclose(parts.gradients[name], gradient, atol=1e-12)


def test_moments_never_hold_more_than_one_chunk() -> None:
    """Memory is O(parameters): after any number of environments the sums have the parameters' shapes."""
    moments = Moments(Composition({"and_mask": ANDMask(rule="geometric_mean")}))
    for _ in range(50):
        moments.add({"w": torch.randn(1, 7, 5)})
    assert [total.shape for total in moments.sums["w"]] == [(7, 5)] * 3
    assert not moments.kept
    assert moments.count == 50


def test_a_parameter_that_nothing_touches_gets_zero() -> None:
    class Idle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = torch.nn.Linear(18, 1), torch.nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x[:, :18])  # type: ignore[no-any-return]

    config = small_config("erm", "spirals", dataset__signature_dimensions=16)
    objective, _, batch, _ = objective_of(config, "joint", torch.float32)
    model = Idle()
    parameters = dict(model.named_parameters())
    for parts in ({"erm": ERM()}, {"and_mask": ANDMask()}):
        for strategy in ("joint", "loop", "vmap"):
            method = Composition(parts)
            idle = Objective(method, objective.task, model, strategy)  # type: ignore[arg-type]
            gradients = idle.step(parameters, batch, method.initial_state(parameters, 4)).gradients
            assert gradients["idle.weight"].abs().max() == 0


def test_auto_chooses_by_rule_and_network() -> None:
    plain, mask = small_config("erm", "spirals"), small_config("and_mask", "spirals")
    linear, coupled = torch.nn.Linear(2, 1), torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    assert choose_strategy(plain.method, linear, plain.trainer) == "joint"
    assert choose_strategy(mask.method, linear, mask.trainer) == "vmap"
    assert choose_strategy(mask.method, coupled, mask.trainer) == "joint"
    for rows, expected in ((8, "vmap"), (16, "joint")):
        penalty = small_config("iga", "spirals", trainer__batch_size=rows)
        assert choose_strategy(penalty.method, torch.nn.Conv2d(1, 1, 3), penalty.trainer) == expected
        assert choose_strategy(penalty.method, linear, penalty.trainer) == "vmap"


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_batch_normalisation_needs_the_joint_graph(strategy: str) -> None:
    config = small_config("and_mask", "spirals", trainer__strategy=strategy, backbone__batch_norm=True)
    with pytest.raises(UserError, match="use trainer.strategy=joint or a backbone without batch normalisation"):
        choose_strategy(config.method, torch.nn.BatchNorm1d(3), config.trainer)


def test_batch_normalisation_sees_all_environments_together() -> None:
    """The running mean after one joint step is that of the pooled batch, as in the authors' code."""
    config = small_config("and_mask", "spirals", backbone__batch_norm=True)
    objective, parameters, batch, state = objective_of(config, "joint")
    objective.step(parameters, batch, state)
    linear, norm = objective.model.features[1], objective.model.features[2]
    pooled = linear(batch.x.flatten(0, 1)).mean(0)
    assert torch.allclose(norm.running_mean, 0.1 * pooled, atol=1e-12)


def test_bfloat16_forward_keeps_full_precision_gradients() -> None:
    objective, parameters, batch, state = objective_of(small_config("erm", "spirals"), "joint", torch.float32)
    exact = objective.step(parameters, batch, state)
    rounded = Objective(objective.method, objective.task, objective.model, "joint", autocast=True)
    step = rounded.step(parameters, batch, state)
    assert step.objective.dtype == torch.float32
    assert torch.allclose(step.objective, exact.objective, rtol=0.05)
    assert not torch.equal(step.objective, exact.objective)
