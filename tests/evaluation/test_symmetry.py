"""Learned distributions of transformations against the ones that problems are known to have."""

import math
from pathlib import Path

import pytest
import torch
from scipy.linalg import subspace_angles

import invbench
from invbench.evaluation.symmetry import principal_angles


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (6, 6), (3, 1)])
def test_principal_angles_are_those_of_scipy(first: int, second: int) -> None:
    torch.manual_seed(first)
    a, b = (torch.randn(count, 4, 4, dtype=torch.float64) for count in (first, second))
    angles = principal_angles(a, b)
    expected = subspace_angles(a.flatten(1).T.numpy(), b.flatten(1).T.numpy())[::-1] * 180 / math.pi
    fewer = min(first, second)
    torch.testing.assert_close(angles[:fewer], torch.from_numpy(expected.copy()), rtol=1e-8, atol=1e-6)
    assert (angles[fewer:] == 90).all(), "a span of fewer dimensions misses some"


def test_principal_angles_do_not_depend_on_the_basis() -> None:
    torch.manual_seed(0)
    a = torch.randn(3, 3, 3, dtype=torch.float64)
    mixed = torch.einsum("kl,lij->kij", torch.randn(3, 3, dtype=torch.float64), a)
    assert principal_angles(a, mixed).max() < 1e-5


def test_runs_report_the_error_of_widths(tmp_path: Path) -> None:
    sizes = {"dataset.train_examples": 8, "dataset.test_examples": 8, "backbone.width": 2, "trainer.steps": 1}
    width = {"method.initial_widths": {"rotation": 1.0}, "method.learning_rate": 1e-9}
    options = {"trainer.epochs": None, "trainer.batch_size": None, "method.test_copies": 1}
    record = invbench.run("augerino", "mario_iggy", settings=sizes | width | options, out=tmp_path)
    expected = abs(math.log1p(math.e) / 2 - math.pi / 4)
    assert record.metrics["symmetry_error"] == pytest.approx(expected, abs=1e-5)
    record = invbench.run(
        "erm", "mario_iggy", settings=sizes | {"trainer.epochs": None, "trainer.batch_size": None}, out=tmp_path
    )
    assert not [name for name in record.metrics if "symmetry" in name]
