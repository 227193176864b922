"""The AND-mask against a plain statement of its formulas, one element at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from invbench.methods.and_mask import ANDMask

Stack = NDArray[np.float64]
values = st.one_of(st.just(0.0), st.floats(-10, 10).filter(lambda v: abs(v) > 1e-3))
stacks = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)), elements=values)


def naive(stack: Stack, threshold: float, rule: str, scaled: bool) -> Stack:
    """Compute the published rule for gradients (E, rows, columns) with loops and numbers."""
    environments, rows, columns = stack.shape
    mask, size = np.zeros((rows, columns)), np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            g = [float(stack[e, i, j]) for e in range(environments)]
            agreement = abs(sum((value > 0) - (value < 0) for value in g)) / environments
            mask[i, j] = 1.0 if agreement >= threshold else 0.0
            mean = sum(g) / environments
            if rule == "mask":
                size[i, j] = mean
            else:
                magnitude = math.exp(sum(math.log(abs(value) + 1e-10) for value in g) / environments)
                size[i, j] = ((mean > 0) - (mean < 0)) * magnitude
    return mask * size / (1e-10 + mask.mean()) if scaled else mask * size


def combine(stack: Stack, threshold: float = 1.0, rule: str = "mask", scaled: bool = False) -> Stack:
    """Apply the method to one parameter tensor."""
    method = ANDMask(threshold=threshold, rule=rule, scale_by_inverse_sparsity=scaled)  # type: ignore[arg-type]
    gradient = torch.from_numpy(stack)
    combined, _ = method.combine({"w": gradient}, {"w": torch.zeros_like(gradient[0])}, torch.arange(len(gradient)), {})
    return combined["w"].numpy()


@given(stacks, st.integers(0, 6), st.sampled_from(["mask", "geometric_mean"]), st.booleans())
def test_formula(stack: Stack, agreeing: int, rule: str, scaled: bool) -> None:
    # On the lattice k/E, where a rounded comparison would go wrong.
    threshold = min(agreeing, len(stack)) / len(stack)
    np.testing.assert_allclose(
        combine(stack, threshold, rule, scaled), naive(stack, threshold, rule, scaled), rtol=1e-9, atol=1e-12
    )


@given(stacks)
def test_threshold_zero_is_the_mean(stack: Stack) -> None:
    expected = torch.from_numpy(stack).mean(0).numpy()
    np.testing.assert_array_equal(combine(stack, 0.0), expected)


@given(stacks, st.randoms(use_true_random=False))
def test_order_of_environments_does_not_matter(stack: Stack, rng: object) -> None:
    order = list(range(len(stack)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    for rule in ("mask", "geometric_mean"):
        np.testing.assert_allclose(combine(stack[order], 0.6, rule), combine(stack, 0.6, rule), rtol=1e-9, atol=1e-12)


@given(stacks)
def test_unanimity_survives_and_a_zero_counts_against(stack: Stack) -> None:
    survivors = combine(stack, 1.0) != 0
    signs = np.sign(stack)
    unanimous = (signs == signs[0]).all(0) & (signs[0] != 0)
    np.testing.assert_array_equal(survivors, unanimous & (stack.mean(0) != 0))


@pytest.mark.parametrize(("environments", "agreeing"), [(80, 48), (5, 3), (10, 6), (7, 5), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_comparison_on_the_lattice_is_exact(environments: int, agreeing: int, dtype: torch.dtype) -> None:
    """The threshold 2p - 1 admits a fraction p of agreeing environments, without rounding."""
    gradient = torch.ones(environments, 1, dtype=dtype)
    gradient[agreeing:] = -1
    threshold = (2 * agreeing - environments) / environments
    method = ANDMask(threshold=threshold, scale_by_inverse_sparsity=False)
    _, state = method.combine({"w": gradient}, {"w": torch.zeros(1, dtype=dtype)}, torch.arange(len(gradient)), {})
    assert state["surviving_fraction"] == 1


def test_nothing_survives() -> None:
    stack = np.array([[[1.0, 2.0]], [[-1.0, -2.0]]])
    np.testing.assert_array_equal(combine(stack, 1.0, scaled=True), np.zeros((1, 2)))


def test_scaling_is_per_tensor() -> None:
    method = ANDMask()
    agree, split = torch.ones(2, 4), torch.tensor([[1.0, 1, 1, 1], [1, -1, -1, -1]])
    zeros = {"a": torch.zeros(4), "b": torch.zeros(4)}
    combined, state = method.combine({"a": agree, "b": split}, zeros, torch.arange(len(agree)), {})
    assert torch.allclose(combined["a"], torch.ones(4))
    assert torch.allclose(combined["b"], torch.tensor([4.0, 0, 0, 0]))
    assert torch.isclose(state["surviving_fraction"], torch.tensor(5 / 8))


def test_a_penalty_is_added_after_the_mask() -> None:
    gradient = torch.tensor([[1.0], [-1.0]])
    combined, _ = ANDMask().combine({"w": gradient}, {"w": torch.tensor([7.0])}, torch.arange(len(gradient)), {})
    assert combined["w"] == 7


def test_linear_regression_of_the_paper() -> None:
    """Four environments of one example, a strong private and a weak shared feature: the mask finds the shared one."""
    x = torch.cat([3 * torch.eye(4), 0.3 * torch.ones(4, 1)], 1).double()
    results = {}
    for threshold in (0.0, 1.0):
        theta, rate = 0.1 * torch.randn(5, dtype=torch.float64), 0.3
        method = ANDMask(threshold=threshold, scale_by_inverse_sparsity=False)
        for _ in range(1001):
            gradient = (x @ theta - 1)[:, None] * x
            combined, _ = method.combine({"w": gradient}, {"w": torch.zeros(5)}, torch.arange(len(gradient)), {})
            theta = (theta - rate * combined["w"]) * (1 - 0.01 * rate)
            rate *= 0.9995
        results[threshold] = theta
    assert torch.allclose(results[0.0][:4], torch.full((4,), 0.32, dtype=torch.float64), atol=0.03)
    assert results[1.0][:4].abs().max() < 0.03
    assert abs(results[1.0][4] - 10 / 3) < 0.45  # the authors' notebook prints 3.03
