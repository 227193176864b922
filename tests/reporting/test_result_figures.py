"""Figures of tables of runs: that they show the numbers, and refuse what cannot be drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import small_config

import invbench
from invbench.errors import UserError
from invbench.reporting import result_figures
from invbench.reporting.style import labels_of
from invbench.results.load import finished
from invbench.results.statistics import critical_difference
from invbench.runs.options import Options
from invbench.training.runner import run_one


def means(values: dict[str, list[float]], **columns: object) -> pd.DataFrame:
    """Return runs with one seed: methods by datasets d0, d1 and so on."""
    rows = [
        {
            "run_id": f"{method}{i}{columns}", "status": "done", "method": method, "dataset": f"d{i}",
            "backbone": "mlp", "protocol": "last", "seed": 0, "data.metric": "test_accuracy", "test_accuracy": value,
            "cost.seconds_per_step": 0.001 * (i + 1), "cost.peak_memory_bytes": 2.0**20,
        }
        for method, scores in values.items()
        for i, value in enumerate(scores)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


THREE = {"best": [0.9, 0.9, 0.9], "middle": [0.8, 0.7, 0.8], "worst": [0.1, 0.75, 0.2]}


def test_curves_are_means_over_seeds_with_their_range(tmp_path: Path) -> None:
    for seed in (0, 1):
        run_one(small_config("erm", "spirals", seed), Options(out=tmp_path))
    runs = invbench.load_results(tmp_path)
    (ax,) = result_figures.curves(invbench.table(runs), runs).axes
    curves = invbench.load_curves(tmp_path).pivot_table(index="step", columns="seed", values="test_accuracy")
    line, level = ax.lines
    constants = [record.data["constant"]["test_accuracy"] for _, record in finished([tmp_path])]
    assert level.get_ydata() == pytest.approx([np.mean(constants)] * 2)
    np.testing.assert_allclose(line.get_xdata(), curves.index)
    np.testing.assert_allclose(line.get_ydata(), curves.mean(axis=1))
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert (low, high) == pytest.approx((curves.min().min(), curves.max().max()))
    with pytest.raises(UserError, match="no curve has 'test_acuracy'"):
        result_figures.curves(invbench.table(runs), runs, "test_acuracy")


def test_a_heat_map_of_ranks() -> None:
    ax = result_figures.ranks(invbench.table(means(THREE))).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["best", "middle", "worst"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 1, 1, 1], [2, 3, 2, 7 / 3], [3, 2, 3, 8 / 3]], rtol=1e-6)


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
    ax = result_figures.ranks(invbench.table(means({**THREE, "rare": [1.0]}))).axes[0]
    assert "rare" not in [text.get_text() for text in ax.get_yticklabels()]


def test_performance_against_cost() -> None:
    left, right = result_figures.cost(invbench.table(means({"a": [0.9], "b": [0.8]}))).axes
    assert {tuple(line.get_xydata()[0]) for line in left.lines if len(line.get_xydata())} == {(1.0, 0.9), (1.0, 0.8)}
    assert {line.get_xdata()[0] for line in right.lines if len(line.get_xdata())} == {1.0}
    assert right.get_xlim() == pytest.approx((0, 1.05)), "from nothing to a little more than all"


def test_the_time_of_runs_that_were_trained_together_is_a_share() -> None:
    """It does not stand for the time of a run alone, has no interval, and is drawn as what it is."""
    seeds = [means({"a": [0.9], "b": [0.8]}).assign(seed=seed) for seed in range(4)]
    frame = pd.concat(seeds, ignore_index=True).assign(run_id=list(map(str, range(8))))
    frame["cost.seconds_per_step"] = [0.001, 0.002] * 2 + [0.003, 0.002] * 2
    frame["fused"] = pd.array([1, 2] * 2 + [2, 2] * 2, "Int64")
    averages = invbench.table(frame).set_index("method")
    assert averages["fused"].to_dict() == {"a": 1, "b": 2}
    assert averages["seconds_per_step"].to_dict() == pytest.approx({"a": 0.001, "b": 0.002})
    assert averages.loc["a", "seconds_per_step_half_width"] == pytest.approx(0)
    assert np.isnan(averages.loc["b", "seconds_per_step_half_width"])
    left, _ = result_figures.cost(invbench.table(frame)).axes
    drawn = {line.get_xdata()[0]: line for line in left.lines if len(line.get_xdata()) and line.get_marker() == "o"}
    assert drawn[2.0].get_markerfacecolor() == "none"
    assert drawn[1.0].get_markerfacecolor() != "none"
    assert "hollow" in left.get_xlabel()
    assert left.get_xlim()[0] == 0
    alone = result_figures.cost(invbench.table(frame[frame["fused"] == 1])).axes[0]
    assert "hollow" not in alone.get_xlabel()


def test_the_time_of_a_step_has_its_interval() -> None:
    seeds = [means({"a": [0.9]}).assign(seed=seed, run_id=str(seed)) for seed in range(3)]
    frame = pd.concat(seeds, ignore_index=True).assign(**{"cost.seconds_per_step": [0.010, 0.011, 0.012]})
    left, _ = result_figures.cost(invbench.table(frame)).axes
    ends = [x for bars in left.collections for x in bars.get_datalim(left.transData).intervalx]
    half = 4.302653 * 1.0 / 3**0.5
    assert (min(ends), max(ends)) == pytest.approx((11 - half, 11 + half), rel=1e-5)


def test_a_method_has_one_colour_in_all_figures() -> None:
    """Whether or not other methods have settings that differ; many settings share an entry of the legend."""
    few = several({"learning_rate": 0.1}, {"learning_rate": 0.2}).assign(method="vrex")
    frame = pd.concat([means({"coral": [0.4], "erm": [0.5]}), few], ignore_index=True)
    frame["run_id"] = [str(i) for i in range(len(frame))]
    averages = invbench.table(frame)
    looks = result_figures._looks(averages)
    (sensitivity,) = result_figures.sensitivity(averages).axes
    handles = dict(zip(*reversed(sensitivity.get_legend_handles_labels()), strict=True))
    of_vrex = [looks[row] for row in averages.index[averages["method"] == "vrex"]]
    assert {look.style["color"] for look in of_vrex} == {handles["V-REx"].get_color()}
    assert len({look.style["linestyle"] for look in of_vrex}) == 2
    assert not any(look.shared for look in looks.values())
    assert len({looks[row].style["color"] for row in averages.drop_duplicates("method").index}) == 3
    rates = [{"learning_rate": 0.01 * i} for i in range(1, 7)]
    many = pd.concat([means({"erm": [0.5]}), several(*rates).assign(method="vrex")], ignore_index=True)
    many["run_id"] = [str(i) for i in range(len(many))]
    (legend,) = result_figures.cost(invbench.table(many)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["ERM", "V-REx, each setting"]


def test_labels_tell_settings_apart() -> None:
    """By more digits where four are alike, and by the whole name where two settings end alike."""
    near = several(*({"learning_rate": rate} for rate in (0.123412, 0.123434, 0.3))).assign(run_id=["a", "b", "c"])
    texts = [text.get_text() for text in result_figures.cost(invbench.table(near)).legends[0].get_texts()]
    assert texts == ["a, learning_rate=0.123412", "a, learning_rate=0.123434", "a, learning_rate=0.3"]
    rows = pd.DataFrame(
        {"method": ["erm", "erm"], "dataset": ["spirals"] * 2, "method.rate": [1.0, 2.0], "trainer.rate": [2.0, 1.0]}
    )
    assert labels_of(rows) == ["ERM, method.rate=1, trainer.rate=2", "ERM, method.rate=2, trainer.rate=1"]


def test_nine_methods_are_told_apart_in_all_figures() -> None:
    frame = pd.concat(
        [means({f"m{i}": [0.1 * i] for i in range(9)}, **{"method.weight": weight}) for weight in (1.0, 2.0)],
        ignore_index=True,
    )
    ax = result_figures.sensitivity(invbench.table(frame)).axes[0]
    handles, _ = ax.get_legend_handles_labels()
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 9


def test_a_cost_that_nobody_knows_is_drawn_as_nothing() -> None:
    frame = means({"a": [0.9], "b": [0.8]}).assign(**{"cost.peak_memory_bytes": np.nan})
    assert result_figures.cost(invbench.table(frame)).axes[1].get_xlim() == (0, 1)


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


def joined(frame: pd.DataFrame) -> list[int]:
    """Count the points that each line of the figure joins."""
    axes = result_figures.sensitivity(invbench.table(frame)).axes
    return [len(line.get_xdata()) for ax in axes for line in ax.lines if line.get_linestyle() == "-"]


def several(*settings: dict[str, object]) -> pd.DataFrame:
    return pd.concat([means({"a": [0.5]}, **{f"trainer.{k}": v for k, v in values.items()}) for values in settings])


def test_only_values_of_a_grid_are_joined() -> None:
    """Those that several settings share, or of a single setting; the draws of a search lie anywhere."""
    rates = [0.001, 0.0316, 0.1]
    grid = several(*({"learning_rate": rate, "weight_decay": decay} for rate in rates for decay in (0.0, 0.1)))
    assert [count for count in joined(grid) if count] == [3, 2]
    assert [count for count in joined(several(*({"learning_rate": rate} for rate in rates))) if count] == [3]
    draws = np.random.default_rng(0).uniform(size=(5, 2))
    search = several(*({"learning_rate": rate, "weight_decay": decay} for rate, decay in draws))
    assert not any(joined(search))
    assert not any(joined(several(*({"learning_rate": rate} for rate, _ in draws))))


def test_intervals_of_shares_end_where_shares_do() -> None:
    seeds = [means({"a": [value], "b": [1 - value]}).assign(seed=seed) for seed, value in enumerate((0.9, 1.0, 0.98))]
    frame = pd.concat(seeds, ignore_index=True).assign(run_id=range(6))
    averages = invbench.table(frame)
    assert (averages["mean"] + averages["half_width"]).max() > 1
    ends = [
        end
        for ax in result_figures.cost(averages).axes
        for bars in ax.collections
        for end in bars.get_datalim(ax.transData).intervaly
    ]
    assert ends
    assert min(ends) == pytest.approx(0)
    assert max(ends) == pytest.approx(1)
    losses = frame.rename(columns={"test_accuracy": "test_loss"}).assign(**{"data.metric": "test_loss"})
    ax = result_figures.cost(invbench.table(losses)).axes[0]
    assert max(bars.get_datalim(ax.transData).y1 for bars in ax.collections) > 1


def test_names_are_those_of_papers() -> None:
    figure = result_figures.cost(invbench.table(means({"and_mask": [0.9], "vrex": [0.8]})))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["AND-mask", "V-REx"]
    assert figure.axes[0].get_ylabel() == "d0\ntest accuracy"
