"""The linear problems against their published laws and closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from invbench.core.data import Problem, Split
from invbench.core.trainer import TrainerConfig
from invbench.datasets.and_mask_regression import AndMaskRegression
from invbench.datasets.chain_sem import SETUPS, ChainSEM
from invbench.datasets.irm_regression import IRMRegression
from invbench.datasets.linear_unit_tests import LinearUnitTests
from invbench.errors import UserError
from invbench.runs.resolve import resolve
from invbench.seeding import stream
from invbench.training.build import build_model
from invbench.training.runner import run

SEED = stream(0, "data")
MANY = 100_000
Array = NDArray[np.float64]


def arrays(split: Split, e: int | None = None) -> tuple[Array, Array]:
    """Return the inputs and targets of a split, or of one of its environments."""
    if e is not None:
        assert split.env is not None
        split = split.rows(split.env == e)
    return split.x.double().numpy(), split.y.double().numpy()


def least_squares(x: Array, y: Array) -> Array:
    return np.linalg.lstsq(x, y, rcond=None)[0]


# --- irm_regression: the closed forms of its documentation -----------------------------------------------------------


def test_population_values() -> None:
    """Optima and risks of the two-coefficient problem within 2 %."""
    problem = IRMRegression(examples=MANY, test_examples=MANY).load(SEED)
    train, test = problem.splits["train"], problem.splits["test"]
    for e, sigma in enumerate((0.1, 1.5)):
        a, b = least_squares(*arrays(train, e))
        assert (a, b) == pytest.approx((1 / (1 + sigma**2), sigma**2 / (1 + sigma**2)), abs=0.01)
        x, y = arrays(train, e)
        assert np.mean((y - x @ [1, 0]) ** 2) == pytest.approx(sigma**2, rel=0.02)
        for a, b in ((0.3, 0.4), (-1.0, 2.0)):
            closed = (1 - a - b) ** 2 * sigma**2 + (1 - b) ** 2 * sigma**2 + b**2
            assert np.mean((y - x @ [a, b]) ** 2) == pytest.approx(closed, rel=0.02)
    pooled = least_squares(*arrays(train))
    assert pooled == pytest.approx([0.469, 0.531], rel=0.02)
    x, y = arrays(test)
    assert np.mean((y - x @ pooled) ** 2) == pytest.approx(2.365, rel=0.02)
    assert np.mean((y - x @ [1, 0]) ** 2) == pytest.approx(1.13, rel=0.02)
    assert np.mean(y**2) == pytest.approx(2.26, rel=0.02)


def test_the_oracle_trains_on_permuted_inputs() -> None:
    plain, oracle = (IRMRegression(examples=MANY, oracle=o).load(SEED) for o in (False, True))
    assert least_squares(*arrays(oracle.splits["train"])) == pytest.approx([1, 0], abs=0.02)
    (x, y), (permuted, same) = arrays(plain.splits["train"], 1), arrays(oracle.splits["train"], 1)
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(x[:, 0], permuted[:, 0])
    np.testing.assert_array_equal(np.sort(x[:, 1]), np.sort(permuted[:, 1]))
    for name in ("validation", "test"):
        assert torch.equal(plain.splits[name].x, oracle.splits[name].x)
        for e in range(2):
            x, _ = arrays(plain.splits[name], e)
            assert abs(np.corrcoef(x.T)[0, 1]) < 0.1, f"{name} is permuted"


def test_relatives_of_irm_regression() -> None:
    for problem in ("cows_camels", "small_margin"):
        dataset = IRMRegression(problem=problem, environments=3)  # type: ignore[arg-type]
        assert "classification" in dataset.capabilities()
        assert set(dataset.load(SEED).splits["train"].y.tolist()) == {0, 1}
    scrambled = IRMRegression(scramble=True).load(SEED)
    assert scrambled.law is not None
    assert scrambled.law.mixing is not None
    with pytest.raises(UserError, match="make both numbers of dimensions equal"):
        IRMRegression(invariant_dimensions=2).load(SEED)
    assert IRMRegression(problem="random", invariant_dimensions=2).load(SEED).input_shape == (3,)


# --- linear_unit_tests -----------------------------------------------------------------------------------------------


def test_example1_obeys_its_equations() -> None:
    problem = LinearUnitTests(examples=MANY).load(SEED)
    train, test, law = problem.splits["train"], problem.splits["test"], problem.law
    assert law is not None
    weights = law.coefficients[:5].numpy()
    assert law.causal.tolist() == [True] * 5 + [False] * 5
    for e, sigma in enumerate((0.1, 1.5, 2.0)):
        x, y = arrays(train, e)
        assert x[:, :5].std(0) == pytest.approx([sigma] * 5, rel=0.02)
        assert least_squares(x[:, :5], y) == pytest.approx(weights, abs=0.05)
        assert np.var(y - x[:, :5] @ weights) == pytest.approx(5 * sigma**2, rel=0.02)
        assert e == 0 or max(abs(np.corrcoef(x[:, 5:].T, y)[-1, :5])) > 0.1
        x, y = arrays(test, e)
        assert max(abs(np.corrcoef(x[:, 5:].T, y)[-1, :5])) < 0.02, "permuted"


@pytest.mark.parametrize("e", range(3))
def test_example2_mixture(e: int) -> None:
    p, s = ((0.95, 0.3), (0.97, 0.5), (0.99, 0.7))[e]
    problem = LinearUnitTests(example="example2", examples=MANY).load(SEED)
    x, y = arrays(problem.splits["train"], e)
    animal, ground = x[:, :5].mean(1) > 0, x[:, 5:].mean(1) > 0
    assert np.mean(animal) == pytest.approx(s, abs=0.01)
    assert np.mean(animal == ground) == pytest.approx(p, abs=0.01)
    np.testing.assert_array_equal(y, animal)
    assert np.abs(x[:, :5]).mean() == pytest.approx(0.01, rel=0.02)
    assert np.abs(x[:, 5:]).mean() == pytest.approx(1, rel=0.02)
    x, y = arrays(problem.splits["test"], e)
    assert abs(np.corrcoef(x[:, 5:].mean(1), y)[0, 1]) < 0.02


def test_example3_margins() -> None:
    problem = LinearUnitTests(example="example3", examples=MANY, environments=4).load(SEED)
    means = []
    for e in range(4):
        x, y = arrays(problem.splits["train"], e)
        assert y.mean() == 0.5
        assert x[y == 0, :5].mean(0) == pytest.approx([0.1] * 5, abs=0.01)
        assert x[y == 1, :5].mean(0) == pytest.approx([-0.1] * 5, abs=0.01)
        assert x[y == 0].std(0) == pytest.approx([0.1] * 10, rel=0.02)
        assert x[y == 0, 5:].mean(0) == pytest.approx(-x[y == 1, 5:].mean(0), abs=0.01)
        means.append(x[y == 0, 5:].mean(0))
    assert np.linalg.norm(means[0] - means[1]) > 0.5
    x, y = arrays(problem.splits["test"], 0)
    assert x[y == 0, 5:].mean(0) == pytest.approx([0] * 5, abs=0.02)


@pytest.mark.parametrize("example", ["example1", "example2", "example3"])
def test_scrambled_examples_are_rotations(example: str) -> None:
    plain, scrambled = (
        LinearUnitTests(example=f"{example}{s}", examples=50).load(SEED)  # type: ignore[arg-type]
        for s in ("", "s")
    )
    for name, split in plain.splits.items():
        x, turned = split.x, scrambled.splits[name].x
        rotation = torch.linalg.lstsq(x, turned).solution
        assert torch.allclose(rotation @ rotation.T, torch.eye(10, dtype=x.dtype), atol=1e-9)
        assert torch.allclose(x @ rotation, turned, atol=1e-9)
        assert torch.equal(split.y, scrambled.splits[name].y)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_any_number_of_environments_and_dimensions(environments: int, invariant: int, spurious: int) -> None:
    for example in ("example1", "example2s", "example3"):
        problem = LinearUnitTests(
            example=example,  # type: ignore[arg-type]
            environments=environments,
            invariant_dimensions=invariant,
            spurious_dimensions=spurious,
            examples=4,
        ).load(SEED)
        assert problem.environments == environments
        assert problem.input_shape == (invariant + spurious,)
        assert {name: len(split) for name, split in problem.splits.items()} == dict.fromkeys(
            ("train", "validation", "test"), 4 * environments
        )


def test_more_examples_do_not_change_the_other_splits() -> None:
    few, many = (IRMRegression(examples=n).load(SEED) for n in (10, 20))
    assert torch.equal(few.splits["test"].x, many.splits["test"].x)


# --- chain_sem -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [setup for setup in SETUPS if setup[0] == "f"])
def test_chain_noises(setup: str) -> None:
    """The variance of what is left of z once y is taken out tells where the environment's noise is."""
    problem = ChainSEM(setup=setup, examples=20_000, dimensions=1).load(SEED)  # type: ignore[arg-type]
    law = problem.law
    assert law is not None
    for e, scale in enumerate((0.2, 2.0, 5.0)):
        x, y = arrays(problem.splits["train"], e)
        u = x if law.mixing is None else x @ law.mixing.numpy().T
        assert u[:, 0].std() == pytest.approx(scale * np.sqrt(2), rel=0.03)
        assert np.std(y - u[:, 0]) == pytest.approx(1.0 if setup[1] == "o" else scale, rel=0.03)
        assert np.std(u[:, 1] - y) == pytest.approx(scale if setup[1] == "o" else 1.0, rel=0.03)


def test_a_hidden_confounder_spoils_the_regression_on_the_causes() -> None:
    """Least squares on the causes alone finds their effects where all is observed, and does not where it is not."""
    error = {}
    for setup in ("fou", "pou"):
        problem = ChainSEM(setup=setup, examples=100_000).load(SEED)  # type: ignore[arg-type]
        assert problem.law is not None
        x, y = arrays(problem.splits["train"])
        error[setup] = np.abs(least_squares(x[:, :5], y) - problem.law.coefficients[:5].numpy()).max()
    assert error["fou"] < 0.02 < 0.04 < error["pou"]


@pytest.mark.parametrize(("setup", "published"), [("fou", 0.0091), ("feu", 0.821), ("fes", 0.823)])
def test_chain_least_squares_errors_are_the_published_ones(setup: str, published: float) -> None:
    """Pooled least squares without intercept over ten seeds; published means over 200."""
    errors = []
    for seed in range(10):
        problem = ChainSEM(setup=setup).load(stream(seed, "data"))  # type: ignore[arg-type]
        law = problem.law
        assert law is not None
        estimate = torch.from_numpy(least_squares(*arrays(problem.splits["train"])))
        estimate = estimate if law.mixing is None else law.mixing @ estimate
        errors.append((estimate - law.coefficients)[law.causal].square().mean().item())
    assert np.mean(errors) == pytest.approx(published, rel=0.1)


def test_chain_is_measured_by_its_coefficients() -> None:
    problem = ChainSEM().load(SEED)
    assert problem.provenance["metric"] == "coefficient_error_causal"
    assert {name: len(split) for name, split in problem.splits.items()} == {
        "train": 3000,
        "test": 3000,
        "validation": 1000,
    }


# --- coefficients ----------------------------------------------------------------------------------------------------


def test_runs_report_coefficient_errors(tmp_path: Any) -> None:
    record = run("erm", "chain_sem", settings={"trainer.steps": 5, "dataset.examples": 20}, out=tmp_path)
    assert record.metrics["coefficient_error_causal"] > 0
    assert record.data["metric"] == "coefficient_error_causal"


# --- and_mask_regression ---------------------------------------------------------------------------------------------


def test_the_four_points() -> None:
    problem = AndMaskRegression().load(SEED)
    expected = 3 * torch.cat([torch.eye(4), torch.full((4, 1), 0.1)], dim=1).double()
    assert torch.allclose(problem.splits["train"].x, expected)
    assert problem.splits["train"].y.tolist() == [1] * 4
    assert problem.environments == 4
    assert problem.law is not None
    assert torch.allclose(expected @ problem.law.coefficients, torch.ones(4).double())
    for train, rows in (("first", [0, 1]), ("last", [2, 3])):
        part = AndMaskRegression(train=train, noise=0.001).load(SEED)  # type: ignore[arg-type]
        assert part.environments == 2
        assert torch.allclose(part.splits["train"].x, expected[rows], atol=0.0031)
        assert not torch.equal(part.splits["train"].x, expected[rows])
        assert torch.allclose(part.splits["test"].x, expected[[e for e in range(4) if e not in rows]], atol=0.0031)


def notebook(method: str, steps: int) -> list[float]:
    """Return the coefficients that the notebook's loop reaches from our initial weights."""
    cell = resolve(method, "and_mask_regression")
    problem = cell.dataset.load(SEED)
    model = build_model(cell, problem).double()
    theta = next(model.parameters()).detach()[0].clone()
    x, y = problem.splits["train"].x, problem.splits["train"].y
    rate = 0.3
    for _ in range(steps):
        gradients = (x @ theta - y)[:, None] * x
        agree = gradients.sign().mean(0).abs() == 1 if method == "and_mask" else torch.ones(5, dtype=torch.bool)
        theta = (theta - rate * torch.where(agree, gradients.mean(0), 0)) * (1 - 0.01 * rate)
        rate *= 0.9995
    return theta.tolist()


@pytest.mark.parametrize(("method", "published"), [("erm", [0.319] * 4 + [0.126]), ("and_mask", [0, 0, 0, 0, 3.032])])
def test_the_recipe_is_the_notebook(method: str, published: list[float], tmp_path: Any) -> None:
    """Our recipe on the whole squared error takes the notebook's steps on half of it, and ends where it ended.

    The mask makes the late steps chaotic, so that only the early ones can be compared closely.
    """
    assert notebook(method, 1000) == pytest.approx(published, abs=0.3)
    record = run(method, "and_mask_regression", settings={"trainer.steps": 40}, out=tmp_path)
    coefficients = notebook(method, 40)
    errors = (coefficients[4] - 10 / 3) ** 2, np.mean(np.square(coefficients[:4]))
    assert record.metrics["coefficient_error_causal"] == pytest.approx(errors[0], rel=1e-6)
    assert record.metrics["coefficient_error_noncausal"] == pytest.approx(errors[1], rel=1e-6)
    last = run(method, "and_mask_regression", out=tmp_path).metrics
    assert last["coefficient_error_causal"] == pytest.approx((published[4] - 10 / 3) ** 2, abs=0.35)
    assert last["coefficient_error_noncausal"] == pytest.approx(np.mean(np.square(published[:4])), abs=0.01)


def test_exponential_schedule() -> None:
    trainer = TrainerConfig(steps=10, schedule="exponential", decay=0.9)
    assert [trainer.rate_factor(step, 1) for step in (0, 1, 5)] == pytest.approx([1, 0.9, 0.9**5])


def test_linear_problems_carry_double_precision() -> None:
    problem: Problem = IRMRegression(examples=2).load(SEED)
    assert problem.splits["train"].x.dtype == torch.float64
