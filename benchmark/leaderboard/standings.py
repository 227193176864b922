"""Standings of methods on a problem, from its rows: means of fresh seeds, and how they differ from ERM's."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from invbench.choices import Select
from invbench.errors import UserError
from invbench.leaderboard.build import LEFT_OUT, SEARCH
from invbench.leaderboard.edition import BASELINE
from invbench.leaderboard.methods import ORACLE
from invbench.results.columns import joined
from invbench.results.layout import Entry, Layout
from invbench.results.rounding import rounded
from invbench.results.selection import BEST, at_best_step
from invbench.results.statistics import LEVEL, ROUNDING, alike, half_width, holm, paired_p_value
from invbench.results.table import higher_is_better
from invbench.results.table import table as mean_table

BETTER, WORSE, SAME = "better than ERM", "worse than ERM", "cannot be told from ERM"
SMALLEST = 0.01
"""Smallest difference that is called one, as a share of ERM's value: what is smaller matters to nobody."""
ALONE = "ERM has no rows here"
FAILED = "failed in {} of {} runs"
"""Verdict of a method of whose fresh runs some failed; it is ranked behind all others."""
DEPENDENCE = "distance_correlation"
TEST_DEPENDENCE = re.compile(rf"test_{DEPENDENCE}(_\d+)?")
"""Columns of the dependence on each nuisance."""
MINUS_DEPENDENCE = f"_minus_half_{DEPENDENCE}"
"""End of the name of a metric that half the dependence on a nuisance is taken off."""
INVARIANCE = "invariance."
"""Beginning of the columns of mean changes of predictions under transformations."""
ADDED = "added"
"""Column of rows, and of standings: whether they are other than the edition's own."""


def fresh_runs(rows: pd.DataFrame, rule: Select) -> pd.DataFrame:
    """Return the finished fresh runs of the settings that a rule selected, at the step that it shows.

    Args:
        rows: of one problem, as `build` returns them.

    Raises:
        UserError: nothing was selected by this rule.
    """
    fresh = rows[(rows["stage"] == rule.value) & (rows["status"] == "done")]
    if not len(fresh):
        raise UserError(f"{rows['problem'].iloc[0]}: nothing was selected by {rule.value} in this edition")
    return at_best_step(fresh) if rule is Select.best_validation else fresh


def metric_of_rows(rows: pd.DataFrame) -> tuple[str, bool]:
    """Return the metric that a problem is judged by, and whether a high one is good. Raises UserError without a run."""
    is_done = (rows["status"] == "done").to_numpy()
    if not is_done.any():
        raise UserError(f"{rows['problem'].iloc[0]}: no run is done, so nothing can be compared")
    first = int(is_done.argmax())
    metric, primary, higher = (rows[f"data.{name}"].iloc[first] for name in ("metric", "primary", "higher_is_better"))
    return str(metric), bool(higher_is_better(str(metric), primary, higher))


def scores(rows: pd.DataFrame, rule: Select) -> pd.DataFrame:
    """Return the metric of each method (column) with each fresh seed (row), of which a high one is good.

    A run that failed, or whose metric is not finite, has minus infinity: it is worse than all others. So has a method
    of which every trial failed, and of which nothing could be selected.
    """
    metric, higher = metric_of_rows(rows)
    used = ["problem", "method", "stage", "status", "seed", "run_id", metric, BEST + metric, f"{BEST}step"]
    fresh = rows.loc[rows["stage"] == rule.value, [name for name in used if name in rows]]
    table = fresh_runs(fresh, rule).pivot_table(index="seed", columns="method", values=metric, dropna=False)
    methods = sorted({*fresh["method"], *_hopeless(rows)})
    table = table.reindex(index=sorted(fresh["seed"].unique()), columns=methods)
    oriented = table if higher else -table
    return oriented.where(np.isfinite(oriented), -np.inf)


def _hopeless(rows: pd.DataFrame) -> set[str]:
    """Return the methods of which every trial failed."""
    is_done = (rows["status"] == "done") & (rows["stage"] == SEARCH)
    return set(rows.loc[rows["stage"] == SEARCH, "method"]) - set(rows.loc[is_done, "method"])


def standings(rows: pd.DataFrame, rule: Select) -> pd.DataFrame:
    """Rank the methods of a problem by a rule of selection.

    Columns: method, added (whether its rows are other than the edition's own), knows (what it is told beyond inputs and
    labels), metric, constant (what a constant prediction scores), n (fresh seeds that are done), failed (trials),
    inactive (fresh runs whose method had not acted by the step that is shown), mean, half_width (95 % over seeds),
    difference, difference_half_width, p_value (from ERM, paired by seed, Holm-corrected over the edition's methods and
    this one), verdict, optimism (mean score in validation of the selected settings in the search, less that of the
    fresh runs; positive where selection flatters), seed_deviation (standard deviation over fresh seeds),
    search_deviation (that which comes from searching, see `search_deviation`), tied (settings that were equally good in
    validation, of which the first was taken; 0 where there was but one), dependence (distance correlation of the score
    and the nuisance; NaN without one), performance (the mean before the dependence was taken off; NaN where none was),
    changes (mean change of predictions on transformed images, in units of the task; NaN without images), seconds
    (median of a fresh run), tuning_seconds (of all runs of the problem), rank (1 is the best mean; methods of whose
    fresh runs some failed are last; NaN of those that are told the answer).

    Args:
        rows: of one problem, as `build` returns them.
        rule: of which the fresh runs are taken.

    Raises:
        UserError: nothing was selected by this rule.
    """
    rows = _with_trials(rows)
    fresh = fresh_runs(rows, rule)
    metric, higher = metric_of_rows(rows)
    ordered = scores(rows, rule)
    columns = ["seed", metric, "cost.wall_seconds", *(name for name in map(str, fresh) if _is_optional(name))]
    each = {str(name): fresh.loc[fresh["method"] == name, columns] for name in ordered}
    values = {name: runs.set_index("seed")[metric] for name, runs in each.items()}
    values = {name: numbers[np.isfinite(numbers)] for name, numbers in values.items()}
    criterion = f"{BEST if rule is Select.best_validation else ''}validation_{fresh['data.primary'].iloc[0]}"
    optimism = _optimism(rows, fresh, criterion) if criterion in rows else {}
    trials = finished_trials(rows) if rule is Select.best_validation else {}
    primary_higher = bool(fresh["data.higher_is_better"].iloc[0])
    failed = rows.loc[(rows["stage"] == SEARCH) & (rows["status"] == "failed"), "method"].value_counts()
    tuning = tuning_seconds(rows)
    known = rows.set_index("method")["knows"].to_dict()
    added = set(rows.loc[rows[ADDED], "method"]) if ADDED in rows else set()
    constant = constant_score(rows, rule)
    table = pd.DataFrame(
        [
            {
                "method": name,
                ADDED: name in added,
                "knows": known[name],
                "metric": metric,
                "constant": constant,
                "n": len(values[name]),
                "failed": int(failed.get(name, 0)),
                "inactive": int(runs["inactive"].notna().sum()) if "inactive" in runs else 0,
                "mean": values[name].mean(),
                "half_width": half_width(values[name]),
                **_from_baseline(values[name], values.get(BASELINE)),
                "optimism": optimism.get(name, math.nan),
                "seed_deviation": values[name].std(ddof=1),
                "search_deviation": search_deviation(trials[name], primary_higher) if name in trials else math.nan,
                "tied": _tied(trials[name], primary_higher) if name in trials else 0,
                "dependence": (
                    dependence := _mean_of(
                        runs, [str(column) for column in runs if TEST_DEPENDENCE.fullmatch(str(column))]
                    )
                ),
                "performance": values[name].mean() + dependence / 2 if metric.endswith(MINUS_DEPENDENCE) else math.nan,
                "changes": _mean_of(runs, [column for column in map(str, runs) if column.startswith(INVARIANCE)]),
                "seconds": runs["cost.wall_seconds"].median(),
                "tuning_seconds": tuning[name],
            }
            for name, runs in each.items()
        ]
    )
    p_values = dict(zip(table["method"], table["p_value"], strict=True))
    p_values.pop(BASELINE, None)
    table["p_value"] = table["method"].map(_corrected(p_values, added))
    table["verdict"] = [_verdict(row, higher, len(ordered)) for _, row in table.iterrows()]
    means = alike(ordered.mean())[table["method"]].reset_index(drop=True)
    table["rank"] = means.where(~table["knows"].str.contains(ORACLE)).rank(ascending=False)
    order = table.assign(mean_of_scores=means).sort_values(["mean_of_scores", "method"], ascending=[False, True])
    return table.loc[order.index].reset_index(drop=True)


def _corrected(p_values: Mapping[str, float], added: set[str]) -> dict[str, float]:
    """Correct p-values after Holm; no method that is added changes what is said of the edition's, or of another."""
    of_edition = {method: value for method, value in p_values.items() if method not in added}
    each = {method: holm(of_edition | {method: p_values[method]})[method] for method in added & set(p_values)}
    return holm(of_edition) | each


def constant_score(rows: pd.DataFrame, rule: Select) -> float:
    """Return what a constant prediction scores on the data of the fresh runs; NaN where it is not known.

    It is the one that fits the training labels best; it does not depend on a nuisance.
    """
    column = f"data.constant.{metric_of_rows(rows)[0].removesuffix(MINUS_DEPENDENCE)}"
    fresh = rows[(rows["stage"] == rule.value) & (rows["status"] == "done")]
    of_baseline = fresh[fresh["method"] == BASELINE]  # as of all others, and no matter what is added
    return float(of_baseline[column].mean()) if column in of_baseline else math.nan


def _is_optional(column: str) -> bool:
    """Tell whether a column of fresh runs is one that standings show where it is there."""
    return column == "inactive" or column.startswith(INVARIANCE) or TEST_DEPENDENCE.fullmatch(column) is not None


def tuning_seconds(rows: pd.DataFrame) -> pd.Series:
    """Sum the seconds of all runs of each method on a problem; runs that were trained together have equal shares."""
    return rows.groupby("method")["cost.wall_seconds"].sum()


def selected_trial(rows: pd.DataFrame, rule: Select) -> "pd.Series[Any]":
    """Select settings of a method from its trials, as `build` does. Returns the row of a run that has them.

    Args:
        rows: of one method on one problem.
        rule: of selection.

    Raises:
        UserError: nothing can be selected.
    """
    trials = rows[rows["stage"].isin([SEARCH, LEFT_OUT])]
    means = mean_table(trials.assign(dataset=trials["problem"], backbone="", protocol="last"), None, rule.value)
    row: pd.Series[Any] = trials[trials["run_id"] == means["run_ids"].iloc[0][0]].iloc[0]
    return row


def finished_trials(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the finished runs of each method's search: trial, validation (which selects) and shown (the metric).

    A score that is not in the rows is NaN.
    """
    rows = _with_trials(rows)
    is_finished = (rows["stage"] == SEARCH) & (rows["status"] == "done")
    primary = rows["data.primary"].dropna().iloc[0]
    names = {f"{BEST}validation_{primary}": "validation", f"{BEST}{metric_of_rows(rows)[0]}": "shown"}
    trials = rows.reindex(columns=["method", "trial", *names])[is_finished].rename(columns=names)
    return {str(method): of_method for method, of_method in trials.groupby("method")}


def _tied(trials: pd.DataFrame, higher_is_better: bool) -> int:
    """Count the settings of a method that are equally good in validation; 0 where one is better than all others."""
    scores = trials.groupby("trial")["validation"].agg(["mean", "count"])
    means = alike(scores.loc[scores["count"] == scores["count"].max(), "mean"])
    count = int((means == (means.max() if higher_is_better else means.min())).sum())
    return count if count > 1 else 0


def search_deviation(trials: pd.DataFrame, higher_is_better: bool) -> float:
    """Return the standard deviation of the shown metric that comes from searching, with the search's own seeds.

    A search of as many trials, drawn again from those that were tried (with replacement), selects the one of them that
    is best in validation. The k-th best of n is selected with probability ((n - k + 1)^n - (n - k)^n) / n^n.

    Args:
        trials: of one method, as `finished_trials` returns them.
        higher_is_better: in validation.
    """
    means = trials.groupby("trial")[["validation", "shown"]].mean()
    means = means.loc[np.isfinite(means.to_numpy()).all(axis=1)]
    n = len(means)
    if not n:
        return math.nan
    means = means.assign(validation=alike(means["validation"])).sort_values(
        "validation", ascending=not higher_is_better
    )
    left = np.arange(n, -1, -1) / n
    # Of equally good trials any may be selected: each has an equal part of what they have together.
    each = pd.Series(left[:-1] ** n - left[1:] ** n)
    shares = each.groupby(means["validation"].to_numpy()).transform("mean").to_numpy()
    values = means["shown"].to_numpy()
    mean = float(shares @ values)
    return math.sqrt(float(shares @ (values - mean) ** 2))


def _with_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """Add a column `trial`, equal for runs with the same settings of method and training, where there is none."""
    return rows if "trial" in rows else rows.assign(trial=pd.factorize(joined(rows, _searched(rows)))[0])


def _mean_of(runs: pd.DataFrame, columns: list[str]) -> float:
    """Average columns over runs; NaN where there is none."""
    known = [column for column in columns if column in runs]
    return float(runs[known].to_numpy(float).mean()) if known else math.nan


def _searched(rows: pd.DataFrame) -> list[str]:
    """Return the columns of settings of methods and of training."""
    return [name for name in map(str, rows) if name.startswith(("method.", "trainer."))]


def _from_baseline(values: pd.Series, baseline: pd.Series | None) -> dict[str, float]:
    if baseline is None:
        return {"difference": math.nan, "difference_half_width": math.nan, "p_value": math.nan}
    differences = (values - baseline).dropna()
    differences = differences.where(differences.abs() > ROUNDING * baseline[differences.index].abs(), 0.0)
    p_value = paired_p_value(values, baseline)
    return {"difference": differences.mean(), "difference_half_width": half_width(differences), "p_value": p_value}


def _verdict(row: "pd.Series[Any]", higher_is_better: bool, seeds: int) -> str:
    if row["n"] < seeds:
        return FAILED.format(seeds - row["n"], seeds)
    if row["method"] == BASELINE:
        return ""
    if math.isnan(row["difference"]):
        return ALONE
    baseline = row["mean"] - row["difference"]
    if not row["p_value"] < 1 - LEVEL or abs(row["difference"]) < SMALLEST * abs(baseline):
        return SAME
    return BETTER if (row["difference"] > 0) == higher_is_better else WORSE


def _optimism(rows: pd.DataFrame, fresh: pd.DataFrame, criterion: str) -> dict[str, float]:
    """Return what each method's selected settings scored better in validation in the search than in fresh runs."""
    sign = 1 if fresh["data.higher_is_better"].iloc[0] else -1
    of_search = rows.loc[rows["stage"] == SEARCH, ["method", "trial", criterion]]
    searched = {key: scores.mean() for key, scores in of_search.groupby(["method", "trial"])[criterion]}
    return {
        str(method): sign * (searched.get((method, runs["trial"].iloc[0]), math.nan) - runs[criterion].mean())
        for method, runs in fresh[["method", "trial", criterion]].groupby("method")
    }


OPTIONAL = {
    "tied": "tied: settings that were equally good in validation; of these, the one with the smallest values is taken",
    "performance": "performance: before the dependence is taken off",
    "dependence": "dependence: distance correlation of the score and the nuisance",
    "changes": "changes: mean change of predictions on transformed inputs",
    "failed": "failed: trials that failed",
    "inactive": "inactive: fresh runs whose penalty had not its weight yet at the step that is shown, or moves nothing",
}
"""Columns that are shown where they say something, and what they are."""


def shown_name(row: "pd.Series[Any]") -> str:
    """Return the name of a method for people, marked where it is not of the edition."""
    return f"{row['method']} ({ADDED})" if row[ADDED] else str(row["method"])


def added_remark(table: pd.DataFrame) -> list[str]:
    """Return what a reader of methods that are not of the edition must know; nothing where there are none."""
    return [f"{ADDED}: not of the edition; its rows are shown as they are given"] if table[ADDED].any() else []


def laid_out(name: str, table: pd.DataFrame) -> tuple[Layout, list[str]]:
    """Lay standings out for people, with the remarks below them."""
    optional = [column for column in OPTIONAL if table[column].fillna(0).any()]
    rows: list[tuple[list[str], list[Entry | None]]] = []
    for _, row in table.iterrows():
        mean = f"{rounded(row['mean'], row['half_width'])} ({row['n']})" if row["n"] else ""
        spread, baseline = row["difference_half_width"], row["method"] == BASELINE
        difference = "" if baseline or math.isnan(row["difference"]) else rounded(row["difference"], spread, sign="+")
        numbers = [row["optimism"], row["seed_deviation"], row["search_deviation"], *(row[name] for name in optional)]
        texts = ["" if math.isnan(number) else f"{number:.2g}" for number in numbers]
        seconds = "" if math.isnan(row["seconds"]) else f"{row['seconds']:.2g}"
        rank = "" if math.isnan(row["rank"]) else f"{row['rank']:g}"
        rows.append(([rank, shown_name(row), mean, difference, row["verdict"], *texts, seconds], []))
    title = f"{name}: {table['metric'].iloc[0]}"
    names = ["rank", "method", title, "vs ERM", "verdict", "optimism", "seed SD", "search SD", *optional, "seconds"]
    constant = table["constant"].iloc[0]
    remarks = [
        *([] if math.isnan(constant) else [f"a constant prediction scores {constant:.3g}"]),
        "means over fresh seeds (their number) with 95 % intervals; differences are paired by seed",
        "verdicts are Holm-corrected over the methods, intervals are not: one that leaves out 0 can be chance",
        f"a difference below {SMALLEST:.0%} of ERM's value is none",
        "optimism: what the selected settings scored in validation in the search, more than with fresh seeds",
        "seed SD, search SD: standard deviation over fresh seeds, and that which comes from searching",
        *(OPTIONAL[column] for column in optional),
        "seconds: of a fresh run, median; runs that were trained together have equal shares",
        *added_remark(table),
    ]
    return Layout(names, [], rows), remarks
