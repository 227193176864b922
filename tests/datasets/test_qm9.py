"""QM9: parsing, division, units, point clouds."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from standins import METHANE, add_text, write_qm9

from invbench.components.point_clouds import charge_features, points
from invbench.core.data import Problem
from invbench.core.task import Regression
from invbench.datasets.qm9 import COLUMNS, FREE_ATOMS, QM9, divided, parse_xyz
from invbench.errors import UserError
from invbench.runs.resolve import resolve
from invbench.seeding import stream
from invbench.training.build import build_model

SEED = stream(0, "data")
CHARGE = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path))
    return tmp_path


def whole(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    splits = problem.splits.values()
    return torch.cat([split.x for split in splits]), torch.cat([split.y for split in splits])


def test_methane_is_parsed() -> None:
    index, properties, molecule = parse_xyz(METHANE, "first")
    assert index == 1
    assert dict(zip(COLUMNS, properties, strict=True))["homo"] == -0.3877
    assert molecule[:, 0].tolist() == [6, 1, 1, 1, 1]
    assert molecule[0, 1:].tolist() == [-0.0126981359, 1.0858041578, 0.0080009958]
    assert molecule[2, 3] == pytest.approx(2.765748e-4), "numbers with *^"


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "x",
        METHANE[:40],
        METHANE.replace("-0.3877\t", ""),
        METHANE.replace("C\t-0.0", "Xe\t-0.0"),
        "6" + METHANE[1:],
    ],
)
def test_damaged_files(damaged: str) -> None:
    with pytest.raises(UserError, match=r"7\.xyz in the QM9 archive cannot be parsed .*fetch it again"):
        parse_xyz(damaged, "7.xyz")


def test_division() -> None:
    assert [len(rows) for rows in divided(130_831)] == [100_000, 17_748, 13_083]
    assert [len(rows) for rows in divided(3_000)] == [2293, 407, 300]
    order = np.random.RandomState(0).permutation(130_831)
    np.testing.assert_array_equal(np.concatenate(divided(130_831)), order)


@given(st.integers(10, 5000))
def test_any_number_is_divided_whole(count: int) -> None:
    assert sorted(np.concatenate(divided(count)).tolist()) == list(range(count))


def test_problem(folder: Path) -> None:
    write_qm9(folder, 30)
    problem = QM9().load(SEED)
    x, y = whole(problem)
    assert problem.variant == "partial"
    assert x.shape == (30, 12, 4)
    (methane,) = ((x[..., 3] > 0).sum(1) == 5).nonzero().flatten().tolist()
    assert y[methane].item() == pytest.approx(-0.3877 * 27.2114)
    cloud = points(x[methane])
    assert cloud.mask.tolist() == [True] * 5 + [False] * 7
    assert cloud.positions[5:].abs().max() == 0
    train = problem.splits["train"].y.double()
    task = problem.task
    assert isinstance(task, Regression)
    assert (task.mean, task.std) == pytest.approx((train.mean().item(), train.std().item()))
    assert task.units == "meV"
    perfect = ((train - task.mean) / task.std)[:, None]
    assert task.scores(perfect + 0.001 / task.std, train)["mean_absolute_error"].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("target", ["mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv"])
def test_targets_and_units(target: str, folder: Path) -> None:
    """Methane's value of each, converted by hand."""
    write_qm9(folder, 12)
    values = dict(zip(COLUMNS, parse_xyz(METHANE, "")[1], strict=True))
    free = FREE_ATOMS.get(target, {1: 0.0, 6: 0.0})
    factor = 1.0 if target in ("mu", "alpha", "r2", "Cv") else 27.2114
    for subtract in (True, False):
        x, y = whole(QM9(target=target, free_atoms=subtract).load(SEED))  # type: ignore[arg-type]
        (methane,) = ((x[..., 3] > 0).sum(1) == 5).nonzero().flatten().tolist()
        expected = values[target] - (free[6] + 4 * free[1]) * subtract
        assert y[methane].item() == pytest.approx(factor * expected, rel=1e-5)


def test_uncharacterized_molecules_are_left_out(folder: Path) -> None:
    write_qm9(folder, 20, excluded=(3, 7))
    assert len(whole(QM9().load(SEED))[0]) == 18


def test_sizes_are_environments(folder: Path) -> None:
    write_qm9(folder, 41)
    problem = QM9(environments="size", smallest_size=7).load(SEED)
    for split in problem.splits.values():
        heavy = (split.x[..., 3] > 1).sum(1)
        assert split.env is not None
        assert split.env.tolist() == [max(size - 7, 0) for size in heavy.tolist()]
    assert problem.environments == 3


def test_parsed_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_qm9(folder, 10)
    first = QM9().load(SEED).fingerprint
    assert "parsing" in capfd.readouterr().err
    assert QM9().load(SEED).fingerprint == first
    assert capfd.readouterr().err == ""
    write_qm9(folder, 11)
    assert QM9().load(SEED).fingerprint != first


def test_bad_archives(folder: Path) -> None:
    path = write_qm9(folder, 10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged .* delete it and fetch it again"):
        QM9().load(SEED)
    with tarfile.open(path, "w:bz2") as archive:
        add_text(archive, "dsgdb9nsd_000001.xyz", " " * 100_000)
    with pytest.raises(UserError, match="has 100000 bytes; it is not the official one"):
        QM9().load(SEED)
    with tarfile.open(path, "w:bz2") as archive:
        add_text(archive, "readme.txt", "nothing")
    with pytest.raises(UserError, match="holds no molecules"):
        QM9().load(SEED)


@pytest.mark.usefixtures("standins")
def test_deep_sets_sees_molecules_not_padding() -> None:
    """Order and number of padded places change nothing, shifts neither; a rotation does."""
    cell = resolve("erm", "qm9", 0, {"backbone.width": 16})
    problem = cell.dataset.load(SEED).to(torch.device("cpu"), torch.float64)
    model = build_model(cell, problem).double()
    x = problem.splits["train"].x[:5]
    plain = model(x).prediction
    padded = torch.cat([x, torch.zeros(5, 3, 4).double()], dim=1)[:, torch.randperm(x.shape[1] + 3)]
    assert torch.allclose(model(padded).prediction, plain, atol=1e-10)
    shifted = torch.cat([x[..., :3] + points(x).mask[..., None] * 2.5, x[..., 3:]], dim=-1)
    assert torch.allclose(model(shifted).prediction, plain, atol=1e-10)
    turned = torch.cat([x[..., [1, 0, 2]], x[..., 3:]], dim=-1)
    assert not torch.allclose(model(turned).prediction, plain, rtol=1e-3)


def test_charge_features() -> None:
    features = charge_features(torch.tensor([6.0, 0.0, 9.0]))
    assert features.shape == (3, 15)
    assert features[0].nonzero().flatten().tolist() == [3, 4, 5]
    assert features[0, 3:6].tolist() == pytest.approx([1, 6 / 9, 36 / 81])
    assert features[1].abs().sum() == 0
    assert features[2, 12:].tolist() == [1, 1, 1]


@pytest.mark.realdata
def test_real_molecules() -> None:
    problem = QM9().load(SEED)
    x, y = whole(problem)
    count = len(x)
    assert [len(split) for split in problem.splits.values()] == [len(rows) for rows in divided(count)]
    (methane,) = (x[..., 3].sum(1) == 10).logical_and((x[..., 3] > 0).sum(1) == 5).nonzero().flatten().tolist()
    assert y[methane].item() == pytest.approx(-0.3877 * 27.2114, abs=1e-4)
    cloud = points(x)
    distances = torch.cdist(cloud.positions, cloud.positions)
    both = cloud.mask[:, :, None] & cloud.mask[:, None, :] & ~torch.eye(x.shape[1], dtype=torch.bool)
    assert distances[both].min() > 0.9, "no two atoms lie on each other"
    gap = QM9(target="gap").load(SEED).splits["train"].y
    difference = QM9(target="lumo").load(SEED).splits["train"].y - problem.splits["train"].y
    assert torch.allclose(gap, difference, atol=0.01)
    energy = QM9(target="U0").load(SEED).splits["train"].y
    assert -130 < energy.min() < energy.max() < -10, "atomisation energies in eV"
