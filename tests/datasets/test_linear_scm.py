"""The random linear model against its equations, and against another package's samples of the same graph."""

import warnings

import numpy as np
import pytest
import torch

from invbench.core.data import Problem
from invbench.datasets.linear_scm import LinearSCM, random_graph
from invbench.seeding import stream


def problem_of(seed: int = 0, **settings: object) -> Problem:
    return LinearSCM(**settings).load(stream(seed, "data"))


def residuals(problem: Problem, split: str = "train") -> np.ndarray:
    """Return what the causes leave of the target."""
    part, law = problem.splits[split], problem.law
    assert law is not None
    return (part.y.double() - part.x.double() @ law.coefficients).numpy()


@pytest.mark.parametrize("intervention", ["mean", "noise"])
def test_the_causes_leave_noise_alone(intervention: str) -> None:
    problem = problem_of(examples=5000, test_examples=5000, intervention=intervention, strength=2.0, environments=3)
    for split in ("train", "test"):
        for rows in problem.splits[split].environment_rows:
            of_environment = residuals(problem, split)[rows]
            assert of_environment.mean() == pytest.approx(0, abs=0.1)
            assert of_environment.std() == pytest.approx(1, abs=0.05)


def test_interventions_have_their_place_and_strength() -> None:
    problem = problem_of(
        inputs=40, edge_probability=0.0, intervened=0.25, strength=10.0, examples=500, environments=4, test_strength=0.0
    )
    train = problem.splits["train"]
    means = torch.stack([train.x[rows].mean(0) for rows in train.environment_rows])
    moved = means.abs() > 0.4
    assert not moved[0].any(), "environment 0 is not intervened on"
    assert all(5 <= row.sum() <= 11 for row in moved[1:]), "a quarter of 40, and the target's effects"
    test = problem.splits["test"]
    assert torch.stack([test.x[rows].mean(0) for rows in test.environment_rows]).abs().max() < 0.4


def test_a_confounder_goes_into_the_residuals() -> None:
    plain, confounded = (residuals(problem_of(examples=5000, confounders=count)).std() for count in (0, 5))
    assert confounded > plain + 0.3


def test_anchors_are_the_nuisance() -> None:
    problem = problem_of(anchors=3, examples=2000, strength=3.0)
    train = problem.splits["train"]
    assert train.nuisance is not None
    assert train.nuisance.shape == (6000, 3)
    explained = torch.linalg.lstsq(train.nuisance, train.x).solution
    assert ((train.nuisance @ explained).var(0) / train.x.var(0) > 0.1).all()
    assert abs(np.corrcoef(residuals(problem), train.nuisance[:, 0])[0, 1]) < 0.05
    assert problem_of().splits["train"].nuisance is None


@pytest.mark.parametrize("edge_probability", [0.0, 0.3, 1.0])
def test_every_target_has_a_cause_and_an_effect(edge_probability: float) -> None:
    for seed in range(20):
        data = LinearSCM(inputs=3, edge_probability=edge_probability)
        graph = random_graph(data, np.random.default_rng(seed))
        assert graph.edges[:, graph.target].any()
        assert graph.edges[graph.target].any()
        assert not np.tril(graph.edges).any()
        assert sorted([*graph.inputs, graph.target]) == [0, 1, 2, 3]


def test_moments_of_sempler() -> None:
    """The same graph, with a shift of one input, has the same means and covariances there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about R, which it can use
        sempler = pytest.importorskip("sempler", reason="needs the extra causal")
    graph = random_graph(LinearSCM(inputs=4), np.random.default_rng(3))
    shifted = graph.inputs[0]
    model = sempler.LGANM(graph.edges, np.zeros(5), np.ones(5))
    theirs = model.sample(200_000, shift_interventions={shifted: (2.0, 0.0)}, random_state=0)
    noise = np.random.default_rng(0).normal(size=(200_000, 5))
    noise[:, shifted] += 2.0
    ours = graph.solved(noise)
    scale = ours.std(0)
    assert ours.mean(0) / scale == pytest.approx(theirs.mean(0) / scale, abs=0.02)
    assert np.corrcoef(ours.T) == pytest.approx(np.corrcoef(theirs.T), abs=0.02)
    assert theirs.std(0) / scale == pytest.approx(np.ones(5), abs=0.02)


def test_least_squares_finds_the_causes_of_shuffled_inputs() -> None:
    problem, plain = problem_of(examples=5000, oracle=True), problem_of(examples=5000)
    train, law = problem.splits["train"], problem.law
    assert law is not None
    estimated = torch.linalg.lstsq(train.x - train.x.mean(0), train.y - train.y.mean()).solution
    assert estimated.numpy() == pytest.approx(law.coefficients.numpy(), abs=0.1)
    assert torch.equal(train.x[:, law.causal], plain.splits["train"].x[:, law.causal])
    assert torch.equal(problem.splits["test"].x, plain.splits["test"].x)


def test_sizes_do_not_change_what_is_drawn() -> None:
    first, second = problem_of(test_examples=10), problem_of(test_examples=20)
    assert torch.equal(first.splits["train"].x, second.splits["train"].x)
    assert torch.equal(first.splits["validation"].x, second.splits["validation"].x)
