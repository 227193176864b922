"""Methods that weigh, draw or change the losses of examples, against numpy, example by example."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from cells import small_config
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from invbench.components.group_weights import Rule, group_weights
from invbench.components.logits import add_to_logits, take_from_true_logit
from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch, PairedTargets, Problem, Split
from invbench.core.method import Method, Outputs
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError
from invbench.methods.balanced_softmax import BalancedSoftmax
from invbench.methods.cvar_dro import CVaRDRO
from invbench.methods.dfr import DFR
from invbench.methods.erm import ERM
from invbench.methods.focal import Focal
from invbench.methods.group_dro import GroupDRO
from invbench.methods.group_weights import GroupWeights
from invbench.methods.irmv1 import IRMv1
from invbench.methods.ldam import LDAM
from invbench.methods.lff import Beside, LfF
from invbench.methods.lisa import LISA, cutmix, partners
from invbench.methods.mixup import Mixup
from invbench.training.examples import counts_of
from invbench.training.gradients import Objective, Step, choose_strategy
from invbench.training.sampling import Sampler

E, B, D, ATTRIBUTES = 2, 9, 4, 3
TASKS: list[Task] = [BinaryClassification(), Classification(outputs=3)]
Array = NDArray[np.float64]


def problem_of(task: Task, seed: int = 0, known: bool = True) -> Problem:
    """Make a problem in which groups have very different sizes."""
    rng = np.random.default_rng(seed)
    labels = max(2, task.outputs)
    y = torch.from_numpy(rng.choice(labels, 60, p=[0.6, 0.4] if labels == 2 else [0.6, 0.3, 0.1]))
    attribute = torch.from_numpy(rng.choice(ATTRIBUTES, 60, p=[0.7, 0.2, 0.1]))
    target = y.double() if task.outputs == 1 else y
    train = Split(
        torch.from_numpy(rng.normal(size=(60, D))),
        target,
        torch.arange(60) % E,
        attribute=attribute if known else None,
    )
    test = Split(train.x, train.y, attribute=attribute)
    return Problem({"train": train, "test": test}, task, "vector", "synthetic", attribute_names=("a", "b", "c"))


def batch_of(problem: Problem) -> Batch:
    """Return the first batch of a problem."""
    sampler = Sampler.of(problem.splits["train"], TrainerConfig(steps=1, batch_size=B), 0)
    examples, env = sampler.epoch(0)
    return sampler.batch(examples[0], env[0])


def network(task: Task, seed: int = 1) -> FeaturesAndHead:
    torch.manual_seed(seed)
    return FeaturesAndHead(nn.Sequential(nn.Linear(D, 6), nn.Tanh()), nn.Linear(6, task.outputs)).double()


def step_of(method: Method, problem: Problem, model: nn.Module, seed: int = 0) -> Step:
    """Compute objective, penalty and gradients of the first batch."""
    composition = Composition({"method": method})
    parameters = dict(model.named_parameters())
    examples = composition.examples(problem, seed)
    state = composition.initial_state(parameters, E, counts=counts_of(examples, problem))
    return Objective(composition, problem.task, model, "joint").step(parameters, batch_of(problem), state)


def logits_of(model: nn.Module, batch: Batch) -> Array:
    """Compute logits (N, classes) of a batch; of two classes with one logit, that of class 0 is 0."""
    with torch.no_grad():
        logits: Array = model(batch.x.flatten(0, 1)).prediction.numpy()
    return np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits


def cross_entropy(logits: Array, y: Array) -> Array:
    """Compute the loss of each example (N,)."""
    pairs = zip(logits, y, strict=True)
    return np.array([np.log(np.exp(z - z.max()).sum()) + z.max() - z[int(label)] for z, label in pairs])


def labels_of(batch: Batch) -> Array:
    return batch.y.flatten().numpy().astype(int)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("by", ["group", "class"])
@pytest.mark.parametrize("rule", ["inverse", "square_root", "class_balanced"])
def test_losses_are_weighted_by_how_rare_their_group_is(task: Task, by: Any, rule: Rule) -> None:
    problem, model = problem_of(task), network(task)
    batch, train = batch_of(problem), problem.splits["train"]
    assert train.attribute is not None and batch.attribute is not None
    groups = [(int(y), int(a) if by == "group" else 0) for y, a in zip(train.y, train.attribute, strict=True)]
    count = {group: groups.count(group) for group in set(groups)}
    raw = {
        "inverse": lambda n: 1 / n,
        "square_root": lambda n: n**-0.5,
        "class_balanced": lambda n: (1 - 0.99) / (1 - 0.99**n),
    }[rule]
    total = sum(raw(n) for n in count.values())
    weights = {group: len(count) * raw(n) / total for group, n in count.items()}
    members = zip(labels_of(batch), batch.attribute.flatten().tolist(), strict=True)
    w = np.array([weights[(y, a if by == "group" else 0)] for y, a in members])
    expected = (w * cross_entropy(logits_of(model, batch), labels_of(batch))).mean()
    step = step_of(GroupWeights(rule=rule, by=by, beta=0.99), problem, model)
    assert step.objective.item() == pytest.approx(expected, rel=1e-12)


def test_weights_of_equal_groups_are_one() -> None:
    for rule in ("inverse", "square_root", "class_balanced"):
        weights = group_weights(torch.tensor([7.0, 7.0, 0.0, 7.0], dtype=torch.float64), rule)
        torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any))
def test_weights_fall_with_the_size_and_have_mean_one(sizes: list[int]) -> None:
    counts = torch.tensor(sizes, dtype=torch.float64)
    for rule in ("inverse", "square_root", "class_balanced"):
        weights = group_weights(counts, rule)
        assert weights[counts > 0].mean().item() == pytest.approx(1)
        assert not weights[counts == 0].any()
        order = counts[counts > 0].argsort()
        assert (weights[counts > 0][order].diff() <= 1e-9).all()


def test_where_the_attribute_is_not_known_groups_are_classes() -> None:
    task = Classification(outputs=3)
    by_class, unknown = problem_of(task), problem_of(task, known=False)
    model = network(task)
    one = step_of(GroupWeights(by="class"), by_class, model)
    other = step_of(GroupWeights(by="group"), unknown, model)
    assert one.objective == other.objective


@pytest.mark.parametrize("rule", ["inverse", "square_root"])
def test_examples_are_drawn_by_how_rare_their_group_is(rule: Any) -> None:
    """Chi-square over groups, of the examples of a thousand epochs."""
    problem = problem_of(Classification(outputs=3))
    whole = problem.splits["train"]
    train = Split(whole.x, whole.y, attribute=whole.attribute)  # of one environment
    problem = replace(problem, splits={"train": train, "test": train})
    examples = GroupWeights(rule=rule, apply="sampling").examples(train, problem, np.random.default_rng(0))
    sampler = Sampler.of(examples, TrainerConfig(steps=1, batch_size=50), 0)
    groups = problem.groups("train")
    assert groups is not None
    drawn = torch.cat([groups[sampler.epoch(number)[0].flatten()] for number in range(1000)])
    counts = torch.bincount(groups, minlength=9).numpy()
    share = counts ** (0.0 if rule == "inverse" else 0.5) * (counts > 0)
    expected = len(drawn) * share / share.sum()
    there = counts > 0
    assert scipy.stats.chisquare(torch.bincount(drawn, minlength=9).numpy()[there], expected[there]).pvalue > 1e-4


@pytest.mark.parametrize("by", ["group", "class"])
def test_subsampling_keeps_equally_many_of_each_group_once(by: Any) -> None:
    problem = problem_of(Classification(outputs=3))
    train = problem.splits["train"]
    method = GroupWeights(rule="subsample", by=by)
    kept = method.examples(problem.splits["train"], problem, np.random.default_rng(0))
    groups = problem.groups("train") if by == "group" else train.y
    assert groups is not None and kept.attribute is not None
    kept_groups = kept.y * ATTRIBUTES + kept.attribute if by == "group" else kept.y
    smallest = int(torch.bincount(groups)[torch.bincount(groups) > 0].min())
    assert set(torch.bincount(kept_groups)[torch.bincount(kept_groups) > 0].tolist()) == {smallest}
    assert len({row.numpy().tobytes() for row in kept.inputs()}) == len(kept), "each once"
    other = method.examples(train, problem, np.random.default_rng(1))
    assert not torch.equal(kept.inputs(), other.inputs()), "at random"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 1.0])
def test_the_worst_losses_count(task: Task, share: float) -> None:
    problem, model = problem_of(task), network(task)
    losses = np.sort(cross_entropy(logits_of(model, batch_of(problem)), labels_of(batch_of(problem))))[::-1]
    left, total = share * len(losses), 0.0
    for loss in losses:
        total += min(1.0, max(0.0, left)) * loss
        left -= 1
    step = step_of(CVaRDRO(share=share), problem, model)
    assert step.objective.item() == pytest.approx(total / (share * len(losses)), rel=1e-12)


def test_limits_are_empirical_risk_minimisation() -> None:
    """CVaR of all losses, focal losses with exponent 0, group DRO that does not move its weights, and the like."""
    problem, model = problem_of(TASKS[1]), network(TASKS[1])
    plain = step_of(ERM(), problem, model)
    limits: list[Method] = [CVaRDRO(share=1.0), Focal(gamma=0.0), GroupDRO(rate=0.0, adjustment=3.0)]
    for method in [*limits, LDAM(margin=0.0, scale=1.0), DFR(weight=0.0)]:
        step = step_of(method, problem, model)
        for name, gradient in plain.gradients.items():
            torch.testing.assert_close(step.gradients[name], gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("task", TASKS)
def test_focal_losses(task: Task) -> None:
    problem, model = problem_of(task), network(task)
    losses = cross_entropy(logits_of(model, batch_of(problem)), labels_of(batch_of(problem)))
    step = step_of(Focal(gamma=2.5), problem, model)
    assert step.objective.item() == pytest.approx(((1 - np.exp(-losses)) ** 2.5 * losses).mean(), rel=1e-10)


def test_a_focal_loss_of_a_certain_prediction_has_a_gradient() -> None:
    prediction = torch.tensor([[[800.0]]], requires_grad=True)
    batch = Batch(torch.zeros(1, 1, 1), torch.ones(1, 1), torch.zeros(1))
    losses = Focal(gamma=0.5).losses(BinaryClassification().losses, Outputs(prediction), batch, {})
    losses.sum().backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("task", TASKS)
def test_margins_and_frequencies_change_logits(task: Task) -> None:
    problem, model = problem_of(task), network(task)
    batch = batch_of(problem)
    n = np.bincount(problem.splits["train"].y.numpy().astype(int), minlength=max(2, task.outputs)).astype(float)
    logits, y = logits_of(model, batch), labels_of(batch)
    margins = 0.5 * n**-0.25 / (n**-0.25).max()
    moved = logits.copy()
    moved[np.arange(len(y)), y] -= margins[y]
    step = step_of(LDAM(), problem, model)
    assert step.objective.item() == pytest.approx(cross_entropy(30 * moved, y).mean(), rel=1e-10)
    step = step_of(BalancedSoftmax(), problem, model)
    assert step.objective.item() == pytest.approx(cross_entropy(logits + np.log(n), y).mean(), rel=1e-10)


def test_one_logit_says_the_same_as_two() -> None:
    z, y = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
    two, values = torch.cat([torch.zeros(5, 1), z], 1), torch.tensor([0.3, 1.1])
    for one, pair in (
        (add_to_logits(z, values), add_to_logits(two, values)),
        (take_from_true_logit(z, y, values), take_from_true_logit(two, y, values)),
    ):
        torch.testing.assert_close(one[:, 0], pair[:, 1] - pair[:, 0])


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_group_dro_expects_more_of_small_environments(adjustment: float) -> None:
    problem, model = problem_of(TASKS[1]), network(TASKS[1])
    train = problem.splits["train"]
    env = (torch.arange(60) >= 20).long()
    train = Split(train.x, train.y, env, attribute=train.attribute)
    problem = Problem({"train": train, "test": train}, problem.task, "vector", "synthetic")
    batch = batch_of(problem)
    losses = cross_entropy(logits_of(model, batch), labels_of(batch)).reshape(E, B).mean(1)
    q = np.exp(0.3 * (losses + adjustment / np.sqrt([20, 40])))
    step = step_of(GroupDRO(rate=0.3, adjustment=adjustment), problem, model)
    order = batch.env.numpy()
    assert step.objective.item() == pytest.approx((q / q.sum())[order] @ losses[order], rel=1e-10)


def test_penalties_see_the_changed_losses() -> None:
    """IRMv1's penalty of weighted losses is that of the weights' product, by finite differences of a scale."""
    task = TASKS[1]
    problem, model = problem_of(task), network(task)
    batch = batch_of(problem)
    composition = Composition(
        {"group_weights": GroupWeights(), "irmv1": IRMv1(weight=2.0, convention="plain", anneal_steps=0)}
    )
    parameters = dict(model.named_parameters())
    state = composition.initial_state(parameters, E, counts=counts_of(problem.splits["train"], problem))
    step = Objective(composition, task, model, "joint").step(parameters, batch, state)
    weights = group_weights(state["group_weights"]["counts"]["groups"].flatten(), "inverse").numpy()
    assert batch.attribute is not None
    w = weights[labels_of(batch) * ATTRIBUTES + batch.attribute.flatten().numpy()]
    logits, y, h = logits_of(model, batch), labels_of(batch), 1e-5
    risks = [(w * cross_entropy(s * logits, y)).reshape(E, B).mean(1) for s in (1 - h, 1 + h)]
    slopes = (risks[1] - risks[0]) / (2 * h)
    assert step.penalty.item() == pytest.approx(2.0 * (slopes**2).mean(), rel=1e-5)


def test_losses_that_depend_on_all_examples_need_one_pass() -> None:
    method, model = Composition({"cvar_dro": CVaRDRO()}), network(TASKS[0])
    assert choose_strategy(method, model, TrainerConfig(steps=1)) == "joint"
    with pytest.raises(UserError, match="changes losses by the examples of all; use trainer.strategy=joint"):
        choose_strategy(method, model, TrainerConfig(steps=1, strategy="vmap"))


def test_two_that_change_losses_clash() -> None:
    with pytest.raises(UserError, match="focal and ldam both replace the losses"):
        Composition({"focal": Focal(), "ldam": LDAM()})
    with pytest.raises(UserError, match="mixup gives each example two targets, and focal needs one"):
        Composition({"mixup": Mixup(), "focal": Focal()})
    Composition({"mixup": Mixup(), "group_weights": GroupWeights(apply="sampling")})
    Composition({"focal": Focal(), "group_weights": GroupWeights(rule="subsample")})


@pytest.mark.parametrize("same_label", [True, False])
def test_partners_share_the_label_or_the_attribute_but_not_both(same_label: bool) -> None:
    rng = np.random.default_rng(0)
    y, a = (torch.from_numpy(rng.integers(0, 3, 40)) for _ in range(2))
    drawn = [partners(y, a, torch.tensor(same_label)) for _ in range(200)]
    for i in range(40):
        allowed = {j for j in range(40) if (y[i] == y[j]) == same_label and (a[i] == a[j]) != same_label}
        assert {int(row[i]) for row in drawn} <= allowed
    assert len({int(row[0]) for row in drawn}) > 3, "at random"
    alone = partners(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), torch.tensor(same_label))
    assert alone.tolist() == [0, 1, 2], "who has none is mixed with itself"


def test_lisa_trains_on_both_targets() -> None:
    problem = problem_of(TASKS[1])
    batch = batch_of(problem)
    torch.manual_seed(0)
    mixed = LISA().mix(batch, {})
    assert isinstance(mixed.y, PairedTargets)
    share = mixed.y.share.flatten()[:, None]
    x = batch.x.flatten(0, 1)
    other = (mixed.x.flatten(0, 1) - share * x) / (1 - share)
    distances = torch.cdist(other, x)
    assert distances.min(1).values.max() < 1e-6, "the rest of each is another example"
    partner = distances.argmin(1)
    assert torch.equal(mixed.y.second.flatten(), batch.y.flatten()[partner])
    assert torch.equal(mixed.y.first, batch.y)


@pytest.mark.parametrize("same_label", [True, False])
def test_lisa_draws_each_possible_partner_alike(same_label: bool) -> None:
    torch.manual_seed(0)
    y, attribute = torch.tensor([2, 0, 0, 2, 0, 2, 0, 1]), torch.tensor([1, 0, 1, 0, 2, 1, 0, 3])
    draws = torch.stack([partners(y, attribute, torch.tensor(same_label)) for _ in range(4000)])
    for i, (label, a) in enumerate(zip(y, attribute, strict=True)):
        possible = (y == label) & (attribute != a) if same_label else (y != label) & (attribute == a)
        counts = draws[:, i].bincount(minlength=len(y)).numpy()
        if not possible.any():
            assert counts[i] == len(draws), "it stays as it is"
            continue
        assert counts[~possible.numpy()].sum() == 0
        expected = len(draws) / int(possible.sum())
        assert abs(counts[possible.numpy()] - expected).max() < 5 * expected**0.5, "five standard deviations"


def test_cutmix_reports_the_share_that_is_left() -> None:
    torch.manual_seed(0)
    x, other, share = torch.zeros(500, 2, 10, 12), torch.ones(500, 2, 10, 12), torch.full((500,), 0.75)
    mixed, left = cutmix(x, other, share)
    torch.testing.assert_close(left, 1 - mixed[:, 0].mean((1, 2)))
    assert 0.75 <= left.mean() < 0.9, "rectangles that reach over the edge are smaller"
    with pytest.raises(UserError, match="cutmix needs images"):
        cutmix(torch.zeros(2, 3), torch.zeros(2, 3), share[:2])


@pytest.mark.parametrize("task", TASKS)
def test_lff_trains_two_networks_with_their_own_losses(task: Task) -> None:
    problem = problem_of(task)
    batch, q = batch_of(problem), 0.7
    model = LfF().build_of_two(network(task, 1), network(task, 2), problem)
    assert isinstance(model, Beside)
    step = step_of(LfF(exponent=q), problem, model)
    y = labels_of(batch)
    biased, debiased = (cross_entropy(logits_of(part, batch), y) for part in (model.biased, model.network))
    w = biased / (biased + debiased + 1e-8)
    expected = (w * debiased).mean() + (q * np.exp(-q * biased) * biased).mean()
    assert step.objective.item() == pytest.approx(expected, rel=1e-10)
    # The biased network's gradient is that of the generalised cross-entropy (1 - p^q), by autograd.
    prediction = model.biased(batch.x.flatten(0, 1)).prediction
    p = torch.exp(-task.losses(prediction, batch.y.flatten()))
    parameters = dict(model.biased.named_parameters())
    gradients = torch.autograd.grad((1 - p**q).mean(), list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(step.gradients[f"biased.{name}"], gradient, rtol=1e-8, atol=1e-12)


def test_only_the_debiased_network_predicts() -> None:
    model = Beside(network(TASKS[0], 1), network(TASKS[0], 2)).eval()
    with torch.no_grad():
        assert "biased" not in model(torch.zeros(2, D, dtype=torch.float64)).further


def test_runs_of_group_methods_can_be_fused() -> None:
    for method in ("group_weights", "cvar_dro", "focal", "ldam", "balanced_softmax", "lff", "group_dro"):
        assert small_config(method, "grouped_digits").method.fuse_obstacle == ""
