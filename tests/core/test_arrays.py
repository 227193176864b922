"""Problems from arrays hold what the arrays hold, whatever their types, and odd arrays are refused in one line."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import invbench
from invbench.core.task import BinaryClassification, Classification, Regression
from invbench.errors import UserError
from invbench.testing import temporary_registrations

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
CITIES = np.repeat(["Oslo", "Bern", "Rome", "Kyiv"], 10)
ANIMALS = np.tile(["dog", "cat"], 20)


def test_numbers_texts_and_columns_of_a_frame_make_the_same_problem() -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(animal=ANIMALS, city=CITIES)
    problem = invbench.Problem.from_arrays(X, ANIMALS, environment=CITIES)
    codes = [sorted(set(CITIES)).index(city) for city in CITIES]
    others = [
        invbench.Problem.from_arrays(frame[["a", "b", "c"]], frame["animal"], environment=frame["city"]),
        invbench.Problem.from_arrays(torch.from_numpy(X), list(ANIMALS), environment=torch.tensor(codes)),
        invbench.Problem.from_arrays(X.tolist(), pd.Categorical(ANIMALS), environment=codes),
    ]
    assert {other.fingerprint for other in others} == {problem.fingerprint}
    assert problem.task == BinaryClassification()
    assert problem.classes == ("cat", "dog")
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 32, "test": 8}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), min_size=12, max_size=60), st.integers(0, 9))
def test_every_example_is_in_one_split_with_its_own_target_and_environment(
    examples: list[tuple[str, int]], seed: int
) -> None:
    labels, env = (list(values) for values in zip(*examples, strict=True))
    labels[:6], env[:6] = list("abcabc"), [0] * 6
    split = ["train"] * 6 + ["test" if i % 3 == seed % 3 else "train" for i in range(len(labels) - 6)]
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    problem = invbench.Problem.from_arrays(x, labels, environment=env, split=split, nuisance=labels)
    trained = sorted({e for e, name in zip(env, split, strict=True) if name == "train"})
    order = trained + sorted(set(env) - set(trained))
    seen = []
    for name, part in problem.splits.items():
        assert part.env is not None
        assert part.nuisance is not None
        for row, y, e, z in zip(
            part.x[:, 0].int().tolist(), part.y.tolist(), part.env.tolist(), part.nuisance, strict=True
        ):
            seen.append(row)
            assert (split[row], "abc"[int(y)], order[e], "abc"[int(z)]) == (name, labels[row], env[row], labels[row])
    assert sorted(seen) == list(range(len(labels)))
    assert problem.environments == len(trained)


def test_the_draw_takes_a_share_of_each_environment_and_follows_the_seed() -> None:
    problems = [invbench.Problem.from_arrays(X, ANIMALS, environment=CITIES, test_share=0.3, seed=s) for s in (0, 0, 1)]
    assert problems[0].splits["test"].env.bincount().tolist() == [3, 3, 3, 3]
    assert problems[0].fingerprint == problems[1].fingerprint != problems[2].fingerprint


def test_real_targets_images_and_several_nuisances() -> None:
    images = RNG.integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    problem = invbench.Problem.from_arrays(images, X[:, 0], nuisance=X[:, 1:])
    train = problem.splits["train"]
    assert isinstance(problem.task, Regression)
    assert (problem.kind, problem.environments) == ("image", 1)
    deviation, mean = (value.item() for value in torch.std_mean(train.y, correction=0))
    assert (problem.task.mean, problem.task.std) == pytest.approx((mean, deviation), rel=1e-5)
    assert train.nuisance is not None
    assert train.nuisance.shape == (32, 2)
    assert 0 <= train.x.min() < train.x.max() <= 1
    assert isinstance(invbench.Problem.from_arrays(X, np.arange(40) % 3).task, Classification)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"x": X[:, 0]}, "x has the shape (40,); give vectors (N, features) or images (N, channels, height, width)"),
        ({"x": X[:0], "y": []}, "x has no examples"),
        ({"x": np.full((40, 1), "red")}, "x has texts, such as 'red'; encode them as numbers"),
        ({"x": np.where(np.arange(40)[:, None] == 7, np.nan, X)}, "x has a missing or infinite value in row 7"),
        ({"y": ANIMALS[:39]}, "x has 40 examples, but y has 39 values"),
        ({"y": ["cat"] * 40}, "y has the class cat only; a classification needs two or more"),
        ({"y": [1.5] * 40}, "y is the same number in all training examples; there is nothing to learn"),
        ({"y": [*ANIMALS[:39], None]}, "y has a missing value at position 39"),
        ({"y": np.array([*ANIMALS.tolist()[:39], 3], object)}, "y has values of several types: int, str"),
        ({"y": X}, "y has the shape (40, 3); give one value of each example (N,)"),
        ({"environment": X}, "environment has the shape (40, 3)"),
        ({"split": ["train"] * 40}, "split names train; it must name train and test"),
        (
            {"y": [*["a", "b"] * 19, "c", "c"], "split": ["train"] * 38 + ["test"] * 2},
            "no training example has the class c",
        ),
        ({"test_share": 1.0}, "test_share is 1.0; it must lie between 0 and 1"),
        ({"test_share": 0.001}, "40 examples leave nothing to train or to test on with test_share 0.001"),
        ({"weight": [1.0] * 39}, "x has 40 examples, but weight has 39 values"),
        ({"weight": X}, "weight has the shape (40, 3); give one value of each example (N,)"),
        ({"weight": ANIMALS}, "weight holds no numbers; give one of each example, 0 or more"),
        ({"weight": X[:, 0] > 0}, "weight holds no numbers"),
        ({"weight": [*[1.0] * 39, np.nan]}, "weight has a missing or infinite value in row 39"),
        ({"weight": [*[1.0] * 39, np.inf]}, "weight has a missing or infinite value in row 39"),
        ({"weight": [*[1] * 39, -2]}, "weight has the negative value -2; a weight is 0 or more"),
        ({"weight": [*[1.0] * 39, 1e31]}, "weight has the value 1e+31; a weight is 0, or from 1e-30 to 1e+30"),
        ({"weight": [*[1.0] * 39, 1e-50]}, "weight has the value 1e-50; a weight is 0, or from 1e-30 to 1e+30"),
        ({"weight": [0] * 40}, "weight is 0 in all training examples; one at least needs a weight above 0"),
        (
            {"weight": (CITIES != "Rome").astype(float), "environment": CITIES},
            "weight is 0 in all training examples of environment Rome; one at least",
        ),
        ({"nuisance": np.array([1j] * 40)}, "nuisance has values of type complex128; give numbers or texts"),
    ],
)
def test_odd_arrays_are_refused_in_one_line(arguments: dict[str, Any], line: str) -> None:
    x, y, *_ = ({"x": X, "y": ANIMALS} | arguments).values()
    further = {name: value for name, value in arguments.items() if name not in ("x", "y")}
    with pytest.raises(UserError) as error:
        invbench.Problem.from_arrays(x, y, **further)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_weights_follow_their_examples(dtype: type[np.generic]) -> None:
    """Into splits, a validation set, and what is left of them without an environment."""
    number = np.arange(1, 41)
    x = np.stack([number, -number], 1)
    given = invbench.Problem.from_arrays(x, ANIMALS, environment=CITIES, weight=number.astype(dtype))
    carved = given.with_validation(0.25, np.random.SeedSequence(0))
    for problem in (given, carved, carved.without_environment(1), carved.to(torch.device("cpu"), torch.float64)):
        for name, split in problem.splits.items():
            assert split.weights is not None, name
            assert split.weights.dtype == split.inputs().dtype
            assert torch.equal(split.weights, split.inputs()[:, 0]), name
    plain = invbench.Problem.from_arrays(x, ANIMALS, environment=CITIES)
    assert plain.splits["train"].weights is None
    assert plain.fingerprint != given.fingerprint
    other = invbench.Problem.from_arrays(x, ANIMALS, environment=CITIES, weight=number[::-1].astype(dtype))
    assert other.fingerprint != given.fingerprint
    assert other.identity() != given.identity()


def test_a_dataset_is_a_few_lines(tmp_path: Path) -> None:
    with temporary_registrations():

        @invbench.register_dataset("two_cities")
        class TwoCities(invbench.Dataset):
            """Dataset of cats and dogs, with the city as environment."""

            provides: ClassVar[tuple[str, ...]] = ("vector", "environments", "classification")

            def load(self, seed: np.random.SeedSequence) -> invbench.Problem:
                return invbench.Problem.from_arrays(X, ANIMALS, environment=CITIES)

        settings = {"trainer.epochs": None, "trainer.steps": 3, "trainer.batch_size": 4, "backbone.width": 4}
        record = invbench.run("irmv1", "two_cities", settings=settings, out=tmp_path)
    assert record.status == "done"
    assert {"test_accuracy_worst", "test_accuracy_env3"} <= record.metrics.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X + 1.7e9 * np.array([0, 1, 0])}, "column 1 of x has values near 1.7e.09 that differ by .* subtract"),
        ({"x": X * 1e300}, "column 0 of x has values beyond 1e.30"),
        ({"y": 1.7e9 + X[:, 0]}, "y has values near 1.7e.09"),
        ({"y": np.ma.masked_array([0, 1] * 20, [0, 0, 0, 1] * 10)}, "y has masked values"),
        ({"y": pd.array(["a", pd.NA] * 20, dtype="string")}, "y has a missing value"),
        ({"y": 3}, "y is a int; give one value of each example"),
        ({"x": torch.zeros(40, 2, dtype=torch.bfloat16)}, "x cannot be turned into an array"),
        ({"x": np.zeros((40, 0))}, "no numbers: its shape is .40, 0."),
        ({"split": ["train"] * 30 + ["held_out"] * 10}, "split names 'held_out'; use lower-case"),
        ({"split": ["train"] * 30 + ["a.b/c d"] * 10}, "split names 'a.b/c d'; use lower-case"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        invbench.Problem.from_arrays(**{"x": X, "y": ANIMALS} | change)
