"""Tables of means with honest intervals."""

import math
from typing import Any

import pandas as pd
from scipy import stats

from invbench.errors import UserError

LEVEL = 0.95
SECTIONS = ("method.", "dataset.", "backbone.", "trainer.")


def table(results: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """One row per method, dataset and settings: the metric's mean over seeds with its 95 % t-interval.

    Only finished runs count. Runs that differ in any setting are never averaged; the settings in which the rows of
    one dataset differ are columns. Columns: method, dataset, settings that differ, metric, n, mean, half_width (NaN
    for n = 1), seconds_per_step.

    Args:
        results: as `load_results` returns it.
        metric: a column such as `test_accuracy`; default the one that the first run's task names.

    Raises:
        UserError: no finished run, or none with that metric; the message lists those that exist.
    """
    done = results[results["status"] == "done"] if len(results) else results
    if not len(done):
        others = ", ".join(f"{count} {status}" for status, count in unfinished(results).items())
        raise UserError(f"no finished run in these results ({others or 'they are empty'}); `bench run` makes one")
    metric = metric or str(done["data.metric"].iloc[0])
    if metric not in done or not pd.api.types.is_numeric_dtype(done[metric]):
        raise UserError(f"no run has the metric '{metric}'; there are {', '.join(_metrics(done))}")
    done = done[done[metric].notna()]
    names = [str(name) for name in done.columns]
    keys = ["method", "dataset", "backbone", "protocol", *(name for name in names if name.startswith(SECTIONS))]
    rows = []
    text = done[keys].map(lambda value: "" if _missing(value) else str(value))
    for _, index in text.groupby(keys, sort=True).groups.items():
        group = done.loc[index]
        values = group[metric]
        rows.append(
            {name: group.iloc[0][name] for name in keys}
            | {"metric": metric, "n": len(values), "mean": values.mean(), "half_width": half_width(values)}
            | {"seconds_per_step": group["cost.seconds_per_step"].mean()}
        )
    found = pd.DataFrame(rows)
    return found.drop(columns=[name for name in keys[2:] if not _differs(found, name)])


def half_width(values: pd.Series) -> float:
    """Half the width of the 95 % t-interval of the mean (ddof = 1); NaN for a single value."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))


def unfinished(results: pd.DataFrame) -> dict[str, int]:
    """How many runs of each status other than done there are."""
    if not len(results):
        return {}
    counts = results.loc[results["status"] != "done", "status"].value_counts()
    return {str(status): int(count) for status, count in counts.items()}


def _metrics(results: pd.DataFrame) -> list[str]:
    known = ("run_id", "status", "kind", "method", "dataset", "backbone", "seed", "protocol", "path")
    return [name for name in map(str, results.columns) if name not in known and "." not in name]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _differs(rows: pd.DataFrame, name: str) -> bool:
    """Whether the rows of some dataset that have this setting differ in it."""
    shown = pd.Series([None if _missing(value) else str(value) for value in rows[name]])
    return bool((shown.groupby(rows["dataset"]).nunique() > 1).any())
