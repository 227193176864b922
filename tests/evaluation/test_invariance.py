"""Measured invariance, and the figures that show it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import load, small_config, small_settings
from torch import Tensor, nn

import invbench
from invbench.cli import app
from invbench.components.affine import action, basis, exponential, generators
from invbench.core.data import Problem
from invbench.errors import UserError
from invbench.evaluation.invariance import EXAMPLES, FEWEST, POINTS, measure
from invbench.reporting import run_figures as figures
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training import attempt
from invbench.training.attempt import examples_to_measure
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.restored import load_run
from invbench.training.runner import run, run_one

pytestmark = pytest.mark.usefixtures("standins")


class TotalInk(nn.Module):
    """Does not care for turns by quarters, does for size."""

    def forward(self, x: Tensor) -> Tensor:
        ink = (x + 2).mean((1, 2, 3))
        return torch.stack([ink, torch.zeros_like(ink)], dim=1)


def digits() -> Problem:
    return load(small_config("erm", "digits"), torch.float64)


def test_a_profile_is_zero_in_the_middle_and_where_the_model_is_invariant() -> None:
    problem = digits()
    measured = measure(TotalInk(), problem, 0, 5)
    assert measured["examples"] == 128
    assert set(measured["generators"]) == set(generators(problem))
    assert measured["quarter_turns"] < 1e-12
    assert measured["reflection_error"] < 1e-12
    for name, profile in measured["generators"].items():
        assert len(profile["magnitudes"]) == len(profile["changes"]) == POINTS
        assert profile["changes"][POINTS // 2] == pytest.approx(0, abs=1e-12)
        assert profile["magnitudes"][0] == -profile["magnitudes"][-1], name
    rotation, scale = measured["generators"]["rotation"], measured["generators"]["scale"]
    assert rotation["magnitudes"][-1] == pytest.approx(math.pi)
    assert rotation["changes"][-1] == pytest.approx(0, abs=1e-6)  # half a turn
    assert min(scale["changes"][0], scale["changes"][-1]) > 5 * max(rotation["changes"])


def test_the_mean_change_against_a_loop() -> None:
    problem = digits()
    model = build_model(small_config("erm", "digits"), problem).double().eval()
    measured = measure(model, problem, 0, 0)
    x = problem.splits["test"].x
    x = x[torch.linspace(0, len(x) - 1, 128).long()]
    with torch.no_grad():
        before = model(x).prediction.softmax(-1)
        changes = []
        for k in (1, 2, 3):
            after = torch.stack([model(torch.rot90(one, k, (1, 2))[None]).prediction[0] for one in x]).softmax(-1)
            changes.append((after - before).abs().sum(1).mean().item() / 2)
    assert measured["quarter_turns"] == pytest.approx(np.mean(changes), rel=1e-6)


def test_changes_by_class_and_of_the_representation() -> None:
    problem = digits()
    model = build_model(small_config("erm", "digits"), problem).double().eval()
    profile = measure(model, problem, 0, 0)["generators"]["scale"]
    split = problem.splits["test"]
    rows = torch.linspace(0, len(split) - 1, 128).long()
    counts = split.y[rows].bincount(minlength=10)
    weighted = sum(int(counts[int(k)]) * value for k, value in profile["by_class"].items()) / 128
    assert weighted == pytest.approx(np.mean(profile["changes"]), rel=1e-6)
    matrix = exponential(torch.tensor([[profile["magnitudes"][0]]]).double(), basis(problem, ["scale"]).double())
    with torch.no_grad():
        first = model(split.x[rows]).representation
        second = model(action(problem)(split.x[rows], matrix.expand(128, -1, -1))).representation
    expected = ((second - first).norm(dim=1) / first.norm(dim=1)).mean().item()
    assert profile["representation"][0] == pytest.approx(expected, rel=1e-6)
    assert profile["representation"][POINTS // 2] == pytest.approx(0, abs=1e-9)


def test_a_random_model_is_compared_with_itself() -> None:
    """Under the same random numbers: what is left at magnitude 0 is nothing."""
    config = small_config("augerino", "digits")
    problem = load(config, torch.float64)
    profile = measure(build_model(config, problem).double(), problem, 0, 0)["generators"]["rotation"]
    assert profile["changes"][POINTS // 2] == pytest.approx(0, abs=1e-9)
    assert profile["changes"][0] > 1e-6


def test_molecules_under_rigid_motions() -> None:
    invariant, other = (small_config("erm", "qm9", backbone__name=name) for name in ("egnn", "point_resnet"))
    problem = load(invariant, torch.float64)
    measured = measure(build_model(invariant, problem).double(), problem, 0, 0)
    assert set(measured["generators"]) == set(generators(problem))
    assert measured["rigid_motions"] < 1e-6
    assert max(measured["generators"]["rotation_y"]["changes"]) < 1e-6
    assert max(measured["generators"]["scale"]["changes"]) > 1e-3
    assert measure(build_model(other, problem).double(), problem, 0, 0)["rigid_motions"] > 1e-3


def test_vectors_have_no_profile(tmp_path: Path) -> None:
    record = run("erm", "pivot", settings={"trainer.steps": 2}, out=tmp_path)
    assert record.invariance == {}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two seeds of augerino and one of erm."""
    out = tmp_path_factory.mktemp("results")
    for method, seed in (("augerino", 0), ("augerino", 1), ("erm", 0)):
        run(method, "digits", seed=seed, settings={"trainer.steps": 6, "backbone.width": 2}, out=out)
    return out


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    """Copy the results, so that a test may damage them."""
    return shutil.copytree(made, tmp_path / "results")


def bench(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def test_records_and_tables_have_it(results: Path) -> None:
    rows = invbench.load_results(results)
    records = [json.loads(path.read_text()) for path in results.glob("*/record.json")]
    means = {r["run_id"]: np.mean(r["invariance"]["generators"]["rotation"]["changes"]) for r in records}
    assert dict(zip(rows["run_id"], rows["invariance.rotation"], strict=True)) == pytest.approx(means)
    assert rows["invariance.quarter_turns"].notna().all()
    averages = invbench.table(rows, "invariance.rotation")
    assert dict(zip(averages["method"], averages["n"], strict=True)) == {"augerino": 2, "erm": 1}


@pytest.mark.parametrize("arguments", [("profile",), ("widths", "--mark", "0.785"), ("angle", "--example", "3")])
@pytest.mark.parametrize("suffix", ["png", pytest.param("svg", marks=pytest.mark.slow)])
def test_figures_are_drawn(results: Path, tmp_path: Path, arguments: tuple[str, ...], suffix: str) -> None:
    picture = tmp_path / f"figure.{suffix}"
    kind, *options = arguments
    bench("plot", kind, str(results), "--out", str(picture), *options)
    assert picture.stat().st_size > 5000


def test_mistakes_in_plotting_are_one_line(results: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("profile", str(tmp_path / "none")), "no results folder"),
        (("profile", str(results), "--out", "figure.txt"), "must end in .png, .pdf or .svg"),
        (
            ("angle", str(results), "--out", str(tmp_path / "a.png"), "--example", "9999"),
            "test examples 0 to",
        ),
        (("widths", str(only(results, "erm")), "--out", str(tmp_path / "a.png")), "learned a distribution"),
    ):
        with pytest.raises(UserError, match=message):
            bench("plot", *arguments)


def only(results: Path, method: str) -> Path:
    rows = invbench.load_results(results)
    return Path(rows.loc[rows["method"] == method, "path"].iloc[0])


def test_a_trained_model_comes_back(results: Path) -> None:
    path = only(results, "erm")
    back = load_run(path)
    assert not back.model.training
    record = json.loads((path / "record.json").read_text())
    split = back.problem.splits["test"]
    with torch.no_grad():
        accuracy = (back.model(split.x).prediction.argmax(1) == split.y).double().mean().item()
    assert accuracy == pytest.approx(record["metrics"]["test_accuracy"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "checkpoint.safetensors").unlink(), "holds no finished run"),
        (lambda path: edit(path, "data", "fingerprint"), "are not what they were"),
    ],
)
def test_what_cannot_come_back_says_so(results: Path, damage: Any, message: str) -> None:
    path = only(results, "erm")
    damage(path)
    with pytest.raises(UserError, match=message):
        load_run(path)


def edit(path: Path, *keys: str) -> None:
    record = json.loads((path / "record.json").read_text())
    record[keys[0]][keys[1]] = "other"
    (path / "record.json").write_text(json.dumps(record))


def test_runs_of_other_settings_are_other_curves(results: Path, tmp_path: Path) -> None:
    """A figure never averages over anything but seeds."""
    run("erm", "digits", settings={"trainer.steps": 6, "backbone.width": 3}, out=results)
    figure = figures.profile([results])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["Augerino (n = 2)", "ERM, width=2 (n = 1)", "ERM, width=3 (n = 1)"]


def test_twelve_widths_can_be_told_apart(tmp_path: Path) -> None:
    settings = small_settings("augerino", "qm9") | {"trainer.steps": 3}
    run("augerino", "qm9", settings=settings, out=tmp_path)
    lines = figures.widths([tmp_path], []).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 12


def test_precisions_are_not_drawn_on_the_axes_of_widths(tmp_path: Path) -> None:
    settings = small_settings("marginal_likelihood", "digits") | {"trainer.steps": 3}
    run("marginal_likelihood", "digits", settings=settings, out=tmp_path)
    labels = [ax.get_ylabel().partition("\n")[2] for ax in figures.widths([tmp_path], []).axes[::2]]
    assert labels == ["width", "precision"]


@pytest.mark.parametrize(
    ("settings", "examples"),
    [
        ({"trainer__steps": 4}, FEWEST),
        ({"trainer__steps": 1}, FEWEST),
        ({"trainer__steps": 40, "trainer__batch_size": 400}, round(0.3 * 40 * 400 / (6 * POINTS + 5) - 0.5)),
        ({"trainer__steps": 4, "trainer__measure_invariance": 20}, 20),
        ({"trainer__steps": 4, "trainer__measure_invariance": 10**6}, 400),
    ],
)
def test_measuring_costs_a_tenth_of_the_training_at_most(
    settings: dict[str, int], examples: int, tmp_path: Path
) -> None:
    """By numbers of passes: 8 examples at least, the test set at most, or as many as somebody says."""
    record = run_one(small_config("erm", "digits", **settings), Options(out=tmp_path))
    assert record.invariance["examples"] == examples


def test_long_runs_measure_as_many_as_they_always_did() -> None:
    config = resolve("erm", "digits")
    training = TrainingLoop(config, load(config), build_model(config, load(config)), RunFolder(Path()), "", 0)
    assert examples_to_measure(training, training.total) == EXAMPLES


def test_nothing_is_measured_where_it_is_off(tmp_path: Path) -> None:
    record = run_one(small_config("erm", "digits", trainer__measure_invariance="off"), Options(out=tmp_path))
    assert record.invariance == {}
    with pytest.raises(UserError, match="measure_invariance is auto, off, or a number of examples from 1"):
        resolve("erm", "digits", 0, {"trainer.measure_invariance": 0})


def test_a_long_measurement_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "SILENT_SECONDS", 0)
    record = run_one(small_config("erm", "digits"), Options(out=tmp_path))
    lines = RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8").splitlines()
    total = 6 * POINTS + 5
    assert [line for line in lines if line.endswith(f"measuring invariance: {total} of {total} transformations")]
