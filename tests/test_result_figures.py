"""Figures of tables of runs: that they show the numbers, and refuse what cannot be drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import small_cell

import invbench
from invbench import result_figures
from invbench.errors import UserError
from invbench.runner import Options, run_cell
from invbench.statistics import critical_difference


def means(values: dict[str, list[float]], **columns: object) -> pd.DataFrame:
    """Runs with one seed: methods by datasets d0, d1 and so on."""
    rows = [
        {
            "run_id": f"{method}{i}{columns}", "status": "done", "method": method, "dataset": f"d{i}",
            "backbone": "mlp", "protocol": "last", "seed": 0, "data.metric": "test_accuracy", "test_accuracy": value,
            "cost.seconds_per_step": 0.001 * (i + 1), "cost.peak_memory_bytes": 2.0**20,
        }
        for method, own in values.items()
        for i, value in enumerate(own)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


THREE = {"best": [0.9, 0.9, 0.9], "middle": [0.8, 0.7, 0.8], "worst": [0.1, 0.75, 0.2]}


def test_curves_are_means_over_seeds_with_their_range(tmp_path: Path) -> None:
    for seed in (0, 1):
        run_cell(small_cell("erm", "spirals", seed), Options(out=tmp_path))
    runs = invbench.load_results(tmp_path)
    (place,) = result_figures.curves(invbench.table(runs), runs).axes
    curves = invbench.load_curves(tmp_path).pivot_table(index="step", columns="seed", values="test_accuracy")
    (line,) = place.lines
    np.testing.assert_allclose(line.get_xdata(), curves.index)
    np.testing.assert_allclose(line.get_ydata(), curves.mean(axis=1))
    low, high = place.collections[0].get_datalim(place.transData).intervaly
    assert (low, high) == pytest.approx((curves.min().min(), curves.max().max()))
    with pytest.raises(UserError, match="no curve has 'test_acuracy'"):
        result_figures.curves(invbench.table(runs), runs, "test_acuracy")


def test_a_heat_map_of_ranks() -> None:
    place = result_figures.ranks(invbench.table(means(THREE))).axes[0]
    assert [text.get_text() for text in place.get_yticklabels()] == ["best", "middle", "worst"]
    np.testing.assert_allclose(
        place.images[0].get_array(), [[1, 1, 1, 1], [2, 3, 2, 7 / 3], [3, 2, 3, 8 / 3]], rtol=1e-6
    )


def test_a_critical_difference_diagram() -> None:
    """Of three methods on three datasets only differences above 1.91 can be told."""
    figure = result_figures.critical(invbench.table(means(THREE)))
    texts = [text.get_text().strip() for text in figure.axes[0].texts]
    assert f"critical difference {critical_difference(3, 3):.2f} (3 datasets)" in texts
    assert {"best  1.00", "middle  2.33", "2.67  worst"} <= set(texts)
    assert list(result_figures._cliques(np.array([1.0, 1.5, 2.2, 4.0]), 1.0)) == [(1.0, 1.5), (1.5, 2.2)]
    assert list(result_figures._cliques(np.array([1.0, 3.0]), 1.0)) == []


def test_ranks_of_too_few() -> None:
    with pytest.raises(UserError, match="here are 2 methods on 3 such datasets"):
        result_figures.ranks(invbench.table(means({"a": [1, 2, 3], "b": [1, 2, 3]})))
    twice = pd.concat([means(THREE, **{"trainer.steps": steps}) for steps in (1, 2)], ignore_index=True)
    with pytest.raises(UserError, match="one row per method and dataset.*--select chooses settings"):
        result_figures.ranks(invbench.table(twice))


def test_methods_that_are_on_fewer_datasets_have_no_rank() -> None:
    place = result_figures.ranks(invbench.table(means({**THREE, "rare": [1.0]}))).axes[0]
    assert "rare" not in [text.get_text() for text in place.get_yticklabels()]


def test_performance_against_cost() -> None:
    left, right = result_figures.cost(invbench.table(means({"a": [0.9], "b": [0.8]}))).axes
    assert {tuple(line.get_xydata()[0]) for line in left.lines if len(line.get_xydata())} == {(1.0, 0.9), (1.0, 0.8)}
    assert {line.get_xdata()[0] for line in right.lines if len(line.get_xdata())} == {1.0}


def test_sensitivity_to_settings() -> None:
    """A point for each settings' mean, a line through the best at each value."""
    frame = pd.concat(
        [
            means({"a": [value]}, **{"trainer.learning_rate": rate, "trainer.steps": steps, "trainer.compile": False})
            for rate, steps, value in ((0.001, 1, 0.5), (0.001, 2, 0.7), (0.1, 1, 0.6), (0.1, 2, 0.4))
        ],
        ignore_index=True,
    )
    rates, steps = result_figures.sensitivity(invbench.table(frame)).axes
    assert (rates.get_xscale(), steps.get_xscale()) == ("log", "linear")
    lines = [
        line.get_xydata().tolist() for line in rates.lines if line.get_linestyle() == "-" and len(line.get_xydata())
    ]
    assert lines == [[[0.001, 0.7], [0.1, 0.6]]]
    with pytest.raises(UserError, match="no setting was run with several numbers"):
        result_figures.sensitivity(invbench.table(means(THREE)))
