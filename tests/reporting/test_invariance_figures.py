"""Residuals by environment and p-values of invariance can be drawn; what has none says so."""

from pathlib import Path

import numpy as np
import pytest
from cells import small_config
from conftest import Bench

from invbench.errors import UserError
from invbench.reporting.invariance_figures import LEAST_P, p_values, residuals
from invbench.results.load import load_results
from invbench.runs.options import Options
from invbench.training.runner import run_one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    for method, dataset, settings in (
        ("erm", "irm_regression", {}),
        ("icp", "irm_regression", {}),
        ("erm", "linear_unit_tests", {"dataset__example": "example2"}),
    ):
        run_one(small_config(method, dataset, **settings), Options(out=path))
    return path


def test_residuals_by_environment(folder: Path) -> None:
    figure = residuals([folder])
    assert len(figure.axes) == 3
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["ERM on IRM regression", "ERM on Linear unit tests", "ICP on IRM regression"]
    first = figure.axes[0]
    assert len(first.containers) == 2, "a line per environment"
    x, y = first.containers[0].lines[0].get_data()
    assert (np.diff(x) >= 0).all()
    assert np.isfinite(y).all()


def test_p_values(folder: Path) -> None:
    results = load_results([folder])
    (ax,) = p_values(results).axes
    drawn = ax.lines[0].get_xdata()
    expected = results["test_invariance_p"].dropna().clip(lower=LEAST_P)
    assert sorted(drawn) == pytest.approx(sorted(expected))
    assert next(iter(ax.get_yticklabels())).get_text() == "ERM on IRM regression"


def test_what_has_no_environments(tmp_path: Path) -> None:
    run_one(small_config("erm", "sixes"), Options(out=tmp_path))
    with pytest.raises(UserError, match="need runs whose test split has 2 to 32 environments"):
        residuals([tmp_path])
    with pytest.raises(UserError, match="no finished run has the metric test_invariance_p"):
        p_values(load_results([tmp_path]))


def test_the_commands(folder: Path, bench: Bench, tmp_path: Path) -> None:
    for kind in ("invariance", "residuals"):
        status, _, said = bench("plot", kind, str(folder), "--out", str(tmp_path / f"{kind}.png"))
        assert status == 0, said
        assert (tmp_path / f"{kind}.png").stat().st_size > 5000
