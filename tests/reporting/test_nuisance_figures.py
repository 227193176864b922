"""Figures about a nuisance, from small runs."""

from pathlib import Path

import pytest
from cells import small_config

from invbench.errors import UserError
from invbench.reporting.nuisance_figures import densities, tradeoff
from invbench.runs.options import Options
from invbench.training.runner import run_one


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two methods, one of them with two weights and two seeds."""
    out = tmp_path_factory.mktemp("results")
    large = {"dataset__test_examples": 8000, "trainer__steps": 3}
    configs = [small_config("erm", "mi_toy", **large)]
    configs += [
        small_config("adversary", "mi_toy", seed, method__weight=w, **large) for w in (10.0, 1.0) for seed in (0, 1)
    ]
    for config in configs:
        run_one(config, Options(out=out))
    return out


def test_a_line_through_the_weights(results: Path) -> None:
    figure = tradeoff([results], "test_roc_auc", "test_mutual_information")
    (ax,) = figure.axes
    lines = {str(line.get_label()): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert set(lines) == {"ERM (n = 1)", "Adversary (n = 2)"}
    assert len(lines["Adversary (n = 2)"].get_xdata()) == 2
    assert [text.get_text() for text in ax.texts] == ["1", "10"]
    with pytest.raises(UserError, match="no run has the metric 'test_auc'"):
        tradeoff([results], "test_auc", "test_mutual_information")


def test_densities_at_values_of_the_nuisance(results: Path) -> None:
    figure = densities([results], [-1.0, 0.0, 1.0])
    assert len(figure.axes) == 3, "a panel for each method and weight"
    assert [len(ax.lines) for ax in figure.axes] == [6, 6, 3]
    for line in figure.axes[0].lines:
        assert sum(line.get_ydata()) / 25 == pytest.approx(1)
    with pytest.raises(UserError, match="only 0 test examples"):
        densities([results], [50.0])
