"""The problems with a continuous nuisance, and tables that users bring."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from invbench.core.data import Split
from invbench.datasets.mi_toy import MutualInformationToy
from invbench.datasets.pivot import Pivot
from invbench.datasets.tabular_nuisance import TabularNuisance
from invbench.errors import UserError
from invbench.seeding import stream

SEED = stream(0, "data")


def nuisance(split: Split) -> Tensor:
    assert split.nuisance is not None
    return split.nuisance


def moments(x: Tensor) -> tuple[list[float], list[list[float]]]:
    return x.mean(0).tolist(), torch.cov(x.T).tolist()


def test_pivot_law() -> None:
    problem = Pivot(train_examples=100_000, validation_examples=0).load(SEED)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 100_000, "test": 50_000}
    train = problem.splits["train"]
    z = nuisance(train)
    assert train.y.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (z.mean().item(), z.std().item()) == pytest.approx((0, 1), abs=0.02)
    background, signal = train.y == 0, train.y == 1
    mean, covariance = moments(train.x[background])
    assert mean == pytest.approx([0, 0], abs=0.02)
    np.testing.assert_allclose(covariance, [[1, -0.5], [-0.5, 1]], atol=0.03)
    assert abs(torch.corrcoef(torch.stack([train.x[background, 1], z[background]]))[0, 1]) < 0.02
    shifted = train.x[signal] - torch.stack([torch.ones(signal.sum()), 1 + z[signal]], dim=1)
    mean, covariance = moments(shifted)
    assert mean == pytest.approx([0, 0], abs=0.02)
    np.testing.assert_allclose(covariance, [[1, 0], [0, 1]], atol=0.03)
    assert [len(split) for split in Pivot().load(SEED).splits.values()] == [75_000, 10_000, 50_000]


def test_mi_toy_law() -> None:
    latent, first = (MutualInformationToy(nuisance=n).load(SEED).splits["train"] for n in ("latent", "first_input"))  # type: ignore[arg-type]
    assert torch.equal(latent.x, first.x)
    assert torch.equal(nuisance(first), first.x[:, 0])
    zero, one = latent.y == 0, latent.y == 1
    shifted = latent.x[zero] - torch.stack([nuisance(latent)[zero], torch.zeros(zero.sum())], dim=1)
    mean, covariance = moments(shifted)
    assert mean == pytest.approx([0, 0], abs=0.02)
    np.testing.assert_allclose(covariance, [[1, 0.5], [0.5, 1]], atol=0.03)
    mean, covariance = moments(latent.x[one])
    assert mean == pytest.approx([0, 1.5], abs=0.02)
    np.testing.assert_allclose(covariance, [[1, 0], [0, 1]], atol=0.03)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_generated_table() -> None:
    problem = TabularNuisance().load(SEED)
    assert problem.variant == "synthetic"
    assert {name: len(split) for name, split in problem.splits.items()} == {
        "train": 30_000,
        "validation": 5_000,
        "test": 15_000,
    }
    train = problem.splits["train"]
    assert problem.input_shape == (20,)
    assert nuisance(train).shape == (30_000, 2)
    assert train.x.mean(0).abs().max() < 1e-5
    assert (train.x.std(0) - 1).abs().max() < 1e-4
    mass, energy = nuisance(train)[train.y == 1].T
    assert (mass.mean().item(), mass.std().item()) == pytest.approx((5.279, 0.003), rel=0.02)
    assert energy.std().item() == pytest.approx(0.03, rel=0.05)
    background = nuisance(train)[train.y == 0]
    assert background[:, 0].min() >= 5.2
    assert background[:, 0].max() <= 5.29
    near = (background[:, 0] - 5.279).abs() < 0.01
    kinematic = train.x[train.y == 0, 8:14].mean(1)
    assert kinematic[near].mean() > kinematic[~near].mean() + 0.5, "background near the peak looks like signal"
    assert train.x[train.y == 1, :8].mean() > 0.1
    assert train.x[:, 17:].T.corrcoef().fill_diagonal_(0).abs().max() < 0.03


def test_quantile_bins_are_environments() -> None:
    problem = TabularNuisance(environments="nuisance_bins", bins=4, examples=1000).load(SEED)
    together = torch.cat([split.env for split in problem.splits.values() if split.env is not None])
    assert together.bincount().tolist() == [250] * 4
    train = problem.splits["train"]
    assert train.env is not None
    edges = [(nuisance(train)[train.env == e, 0].min(), nuisance(train)[train.env == e, 0].max()) for e in range(4)]
    assert all(edges[e][1] <= edges[e + 1][0] for e in range(3))


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(100, 4)), columns=["mass", "a", "b", "_weight"])
    frame["_label"] = rng.integers(0, 2, 100)
    frame.loc[3, "a"] = np.nan
    return frame


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_of_ones_own(table: pd.DataFrame, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"events.{suffix}"
    getattr(table, f"to_{suffix}")(path, index=False)
    problem = TabularNuisance(table=str(path), nuisance=("mass",), standardise=False).load(SEED)
    assert problem.variant == "full"
    assert problem.input_shape == (2,)
    assert problem.facts["missing_values"] == 1
    x = torch.cat([split.x for split in problem.splits.values()])
    z = torch.cat([nuisance(split) for split in problem.splits.values()])
    assert z.shape == (100,)
    order, expected = z.argsort(), table.sort_values("mass")
    np.testing.assert_allclose(x[order], expected[["a", "b"]].fillna(0), rtol=1e-6)
    y = torch.cat([split.y for split in problem.splits.values()])
    np.testing.assert_array_equal(y[order], expected["_label"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="_label"), "has no column _label; it has mass, a, b, _weight"),
        (lambda t: t.assign(_label=2), "column _label must be 1 for signal and 0 for background"),
        (lambda t: t.assign(a="text"), "column a of the table is not numeric, but "),
        (lambda t: t.assign(a=np.inf), "infinite values among the features"),
        (lambda t: t.assign(mass=np.nan), "missing or infinite values in mass"),
        (lambda t: t[["_label", "mass", "_weight"]], "the table has no features"),
        (lambda t: t.rename(columns={"mass": "mas"}), "no column 'mass' to protect; did you mean 'mas'?"),
        (lambda t: t.head(1), "1 rows leave nothing to train or"),
    ],
)
def test_tables_that_do_not_fit(table: pd.DataFrame, change: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    change(table).to_parquet(path)  # type: ignore[operator]
    with pytest.raises(UserError) as error:
        TabularNuisance(table=str(path), nuisance=("mass",)).load(SEED)
    assert message in str(error.value)


def test_tables_that_are_none(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    table.to_csv(tmp_path / "good.csv", index=False)
    for name, message in (
        ("events.txt", "must end in .parquet or .csv"),
        ("nowhere.csv", "cannot be read"),
        ("broken.parquet", "cannot be read"),
        ("good.csv", "say which columns to protect: dataset.nuisance="),
    ):
        with pytest.raises(UserError, match=message):
            TabularNuisance(table=str(tmp_path / name)).load(SEED)
