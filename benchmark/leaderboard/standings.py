"""Standings of methods on a problem, from its rows: means of fresh seeds, and how they differ from ERM's."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from invbench.choices import Select
from invbench.errors import UserError
from invbench.leaderboard.build import SEARCH
from invbench.results.columns import as_text
from invbench.results.layout import Entry, Layout
from invbench.results.rounding import rounded
from invbench.results.selection import at_best_validation
from invbench.results.statistics import LEVEL, half_width, holm, paired_p_value
from invbench.results.table import higher_is_better

BASELINE = "erm"
BETTER, WORSE, SAME = "better than ERM", "worse than ERM", "cannot be told from ERM"


def standings(rows: pd.DataFrame, rule: Select) -> pd.DataFrame:
    """Rank the methods of a problem by a rule of selection.

    Columns: method, metric, n (fresh seeds that are done), failed (trials), mean, half_width (95 % over seeds),
    difference, difference_half_width, p_value (from ERM, paired by seed, Holm-corrected over the methods), verdict,
    promise (mean score in validation of the selected settings in the search, less that of the fresh runs; positive
    where selection flatters), seconds (median of a fresh run), rank (1 is the best mean).

    Args:
        rows: of one problem, as `build` returns them.
        rule: of which the fresh runs are taken.
    """
    fresh = rows[(rows["stage"] == rule.value) & (rows["status"] == "done")]
    if not len(fresh):
        raise UserError(f"{rows['problem'].iloc[0]}: nothing was selected by {rule.value} in this edition")
    if rule is Select.best_validation:
        fresh = at_best_validation(fresh)
    run = fresh.iloc[0]
    metric = str(run["data.metric"])
    higher = bool(higher_is_better(metric, run["data.primary"], run["data.higher_is_better"]))
    scores = {str(name): runs.set_index("seed")[metric] for name, runs in fresh.groupby("method")}
    search = rows[rows["stage"] == SEARCH]
    table = pd.DataFrame(
        [
            {
                "method": name,
                "metric": metric,
                "n": len(values),
                "failed": int((search.loc[search["method"] == name, "status"] == "failed").sum()),
                "mean": values.mean(),
                "half_width": half_width(values),
                **_from_baseline(values, scores.get(BASELINE)),
                "promise": _promise(rows, fresh, name, rule),
                "seconds": fresh.loc[fresh["method"] == name, "cost.wall_seconds"].median(),
            }
            for name, values in scores.items()
        ]
    )
    p_values = dict(zip(table["method"], table["p_value"], strict=True))
    p_values.pop(BASELINE, None)
    table["p_value"] = table["method"].map(holm(p_values))
    table["verdict"] = [_verdict(row, higher) for _, row in table.iterrows()]
    table["rank"] = table["mean"].rank(ascending=not higher)
    return table.sort_values(["rank", "method"], ignore_index=True)


def _from_baseline(values: pd.Series, baseline: pd.Series | None) -> dict[str, float]:
    if baseline is None:
        return {"difference": math.nan, "difference_half_width": math.nan, "p_value": math.nan}
    differences = (values - baseline).dropna()
    p_value = paired_p_value(values, baseline)
    return {"difference": differences.mean(), "difference_half_width": half_width(differences), "p_value": p_value}


def _verdict(row: "pd.Series[Any]", higher_is_better: bool) -> str:
    if row["method"] == BASELINE:
        return ""
    if not row["p_value"] < 1 - LEVEL:
        return SAME
    return BETTER if (row["difference"] > 0) == higher_is_better else WORSE


def _promise(rows: pd.DataFrame, fresh: pd.DataFrame, method: str, rule: Select) -> float:
    """Return the selected settings' score in validation in the search, less that of the fresh runs, oriented."""
    score = f"validation_{fresh['data.primary'].iloc[0]}"
    column = f"best_validation.{score}" if rule is Select.best_validation else score
    if column not in rows:
        return math.nan
    ours = fresh[fresh["method"] == method]
    settings = [name for name in map(str, rows) if name.startswith(("method.", "trainer."))]
    search = rows[(rows["stage"] == SEARCH) & (rows["method"] == method)]
    same = (as_text(search, settings)[settings] == as_text(ours, settings)[settings].iloc[0]).all(axis=1)
    difference = float(search.loc[same, column].mean() - ours[column].mean())
    return difference if bool(fresh["data.higher_is_better"].iloc[0]) else -difference


def read_rows(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of the problems that are built, with their names.

    Raises:
        UserError: none is.
    """
    paths = {name: folder / f"{name}.parquet" for name in names}
    if not any(path.is_file() for path in paths.values()):
        raise UserError(f"there are no rows in {folder}; `bench leaderboard build` makes them")
    for name, path in paths.items():
        if path.is_file():
            yield name, pd.read_parquet(path)


def laid_out(name: str, table: pd.DataFrame) -> tuple[Layout, list[str]]:
    """Lay standings out for people, with the remarks below them."""
    rows: list[tuple[list[str], list[Entry | None]]] = []
    for _, row in table.iterrows():
        mean = f"{rounded(row['mean'], row['half_width'])} ({row['n']})"
        difference = (
            "" if row["method"] == BASELINE else rounded(row["difference"], row["difference_half_width"], sign="+")
        )
        promise = "" if math.isnan(row["promise"]) else f"{row['promise']:+.2g}"
        rows.append(([row["method"], mean, difference, row["verdict"], promise, f"{row['seconds']:.2g}"], []))
    title = f"{name}: {table['metric'].iloc[0]}"
    names = ["method", title, "less ERM's", "verdict", "promise", "seconds"]
    remarks = [
        "means over fresh seeds (their number) with 95 % intervals; differences are paired by seed, Holm-corrected",
        "promise: what the selected settings scored in validation in the search, more than with fresh seeds",
    ]
    return Layout(names, [], rows), remarks
