"""Learned distributions of transformations against the ones that problems are known to have."""

import math
from pathlib import Path

import pytest
import torch
from cells import small_config
from scipy.linalg import subspace_angles
from torch import Tensor, nn

import invbench
from invbench.components.symmetry import LearnedSymmetry
from invbench.datasets.sixes import Sixes
from invbench.errors import UserError
from invbench.evaluation.symmetry import principal_angles, symmetry_metrics
from invbench.runs.options import Options
from invbench.seeding import stream
from invbench.training.runner import run_one


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


def test_angles_count_ranks() -> None:
    first, second = torch.zeros(2, 2, 2)
    first[0, 0] = second[0, 1] = 1
    twice, both = torch.stack([first, first]), torch.stack([first, second])
    assert principal_angles(twice, both).tolist() == pytest.approx([0, 90], abs=1e-5)
    assert principal_angles(torch.zeros(1, 2, 2), first[None]).tolist() == pytest.approx([90])
    assert principal_angles(torch.stack([first, 2 * first, second]), second[None]).tolist() == pytest.approx([0, 90])


class Range(LearnedSymmetry):
    """A part of a model that has learned a range of rotations."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"rotation": (x.new_full((1,), self.low), x.new_full((1,), self.high))}


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([Range(-0.5, 0.5)], 0.0),
        ([Range(0.0, 1.0)], 0.5),
        ([Range(0.0, 0.5), Range(-0.5, 0.1)], 0.0),
        ([Range(-0.25, 0.5)], 0.125),
    ],
)
def test_both_ends_of_ranges_count(parts: list[nn.Module], error: float) -> None:
    problem = Sixes(max_rotation=0.5).load(stream(0, "data"))
    assert problem.symmetry is not None
    metrics = symmetry_metrics(nn.Sequential(*parts), problem, problem.symmetry)
    assert metrics == {"symmetry_error": pytest.approx(error)}


def test_methods_that_learn_one_quantity_are_refused(tmp_path: Path) -> None:
    settings = {"trainer.epochs": None, "trainer.steps": 1}
    with pytest.raises(UserError, match="two of these methods learn a 'width'"):
        invbench.run("marginal_likelihood+augerino", "sixes", settings=settings, out=tmp_path)


def test_two_classes_have_profiles(tmp_path: Path) -> None:
    record = run_one(small_config("erm", "sixes", trainer__measure_invariance=8), Options(out=tmp_path))
    assert record.invariance is not None
    assert set(record.invariance["generators"]["rotation"]["by_class"]) == {"0", "1"}
