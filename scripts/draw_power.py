"""Draw the sweep `power`: who finds the causes, over the number of environments and the strength of interventions.

python scripts/draw_power.py results/power --out docs/power.png
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from invbench.core.registry import METHODS
from invbench.datasets.linear_scm import LinearSCM, random_graph
from invbench.reporting.drawing import save
from invbench.reporting.style import PANEL, finish, styles_of
from invbench.results.load import load_results
from invbench.results.statistics import half_width
from invbench.seeding import children, stream

ENVIRONMENTS, STRENGTH = "dataset.environments", "dataset.strength"
AT = {ENVIRONMENTS: 10, STRENGTH: 1.0}
"""Value of each setting where the other one is changed."""
LEVEL = 0.05
LIMIT = "anchor, γ → ∞"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("power.png"))
    options = parser.parse_args()
    runs = load_results([options.results])
    runs = runs[runs["status"] == "done"]
    is_limit = (runs["method"] == "anchor") & runs["method.gamma"].isna()
    names = runs["method"].map(lambda name: METHODS.literal(name, "display_name", "") or name)
    runs = runs.assign(label=names.where(~is_limit, LIMIT), error=error_of(runs))
    save(power(runs), options.out)
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        for confounders, part in runs.groupby("dataset.confounders"):
            print(f"{confounders:g} confounders: mean error; then the share of p-values of invariance below {LEVEL}")
            print(table_of(part, "error").to_string())
            print(table_of(part.assign(rejected=part["test_invariance_p"] < LEVEL), "rejected").to_string())
        print(causes_of_icp(runs).to_string())


def causes_of(seed: int) -> NDArray[np.bool_]:
    """Return which inputs are causes in the data of a seed, which neither settings nor interventions change."""
    structure, *_ = children(stream(seed, "data"), 5)
    graph = random_graph(LinearSCM(), np.random.default_rng(structure))
    return np.asarray(graph.edges[graph.inputs, graph.target] != 0)


def error_of(runs: pd.DataFrame) -> pd.Series:
    """Return the root mean squared error of all coefficients, of causes and of other inputs."""
    share = runs["seed"].map(lambda seed: causes_of(seed).mean())
    squares = runs["coefficient_error_causal"] * share + runs["coefficient_error_noncausal"] * (1 - share)
    return squares**0.5


def table_of(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Average a column over seeds: a row per method, a column per number of environments, then per strength."""
    parts = []
    for name, other in ((ENVIRONMENTS, STRENGTH), (STRENGTH, ENVIRONMENTS)):
        means = runs[runs[other] == AT[other]].pivot_table(column, "label", name)
        parts.append(means.rename(columns=lambda value, name=name: f"{name.partition('.')[2]}={value:g}"))
    return pd.concat(parts, axis=1).round(2)


def causes_of_icp(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how often ICP's answer has an input that is no cause, and the share of the causes that it finds."""
    icp = runs[runs["method"] == "icp"]
    names = sorted((name for name in icp if name.startswith("coefficient.")), key=lambda name: int(name.split(".")[1]))
    chosen = icp[names].to_numpy() != 0
    causes = np.stack([causes_of(seed) for seed in icp["seed"]])
    counts = {"wrong": (chosen & ~causes).any(1), "share_found": (chosen & causes).sum(1) / causes.sum(1)}
    keys = ["dataset.confounders", ENVIRONMENTS, STRENGTH]
    return icp.assign(**counts).groupby(keys)[list(counts)].mean().round(2)


def power(runs: pd.DataFrame) -> Figure:
    """Draw errors over both settings, without and with confounders, and below the share of rejected invariance."""
    figure = Figure(figsize=(6.2 * PANEL, 3.6 * PANEL), layout="constrained")
    panels = [(confounders, name) for confounders in sorted(runs["dataset.confounders"].unique()) for name in AT]
    axes = figure.subplots(2, len(panels), sharey="row")
    styles = styles_of(sorted(runs["label"].unique()))
    for column, (confounders, name) in enumerate(panels):
        other = next(setting for setting in AT if setting != name)
        part = runs[(runs["dataset.confounders"] == confounders) & (runs[other] == AT[other])]
        for row, values in enumerate((part["error"], (part["test_invariance_p"] < LEVEL).astype(float))):
            lines(axes[row, column], part.assign(value=values), name, styles, with_intervals=row == 0)
        what = "environments" if name == ENVIRONMENTS else "strength of interventions"
        axes[0, column].set_title(
            f"{what}, {'no' if not confounders else f'{confounders:g} hidden'} confounders", fontsize=9
        )
        axes[0, column].set_yscale("log")
        axes[1, column].axhline(LEVEL, color="#808080", linewidth=0.8)
        axes[1, column].set_xlabel(what, fontsize=9)
    axes[0, 0].set_ylabel("error of coefficients", fontsize=9)
    axes[1, 0].set_ylabel("share of runs told not invariant", fontsize=9)
    return finish(figure, [axes[0, 0]])


def lines(ax: Axes, runs: pd.DataFrame, setting: str, styles: dict[str, dict[str, str]], with_intervals: bool) -> None:
    """Draw means over seeds, a line per method, with 95 % t-intervals where they are asked for."""
    for label, part in runs.groupby("label"):
        groups = part.groupby(setting)["value"]
        mean, spread = groups.mean(), groups.apply(half_width)
        low = np.maximum(mean - spread, mean / 3)
        ax.plot(mean.index, mean, **styles[str(label)], marker="o", markersize=3, linewidth=1.2, label=str(label))
        if with_intervals:
            ax.fill_between(mean.index, low, mean + spread, color=styles[str(label)]["color"], alpha=0.08)
    ax.set_xscale("log")
    ax.set_xticks(sorted(runs[setting].unique()), [f"{value:g}" for value in sorted(runs[setting].unique())])
    ax.minorticks_off()


if __name__ == "__main__":
    main()
