"""Compare two lots of runs: what changed beyond noise."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from invbench.errors import UserError
from invbench.results.columns import SECTIONS, as_text, differing, joined, keys_of
from invbench.results.layout import Entry, Layout
from invbench.results.rounding import rounded
from invbench.results.statistics import LEVEL, half_width, holm, paired_p_value
from invbench.results.table import PRIMARY, each_once, higher_is_better

SAME = "the same numbers"
NOISE = "within noise"
ONE_SEED = "cannot be told from one seed"
OTHER_DATA = "other data"
SUFFIXES = ("\n1", "\n2")
"""Ends of the columns of the first and the second lot; no other column ends like this."""


def compare(first: pd.DataFrame, second: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """Compare two lots of runs, paired by seed: a row per method, problem and settings that both have.

    Settings that only one of the lots knows, since other code made it, do not count unless they vary there.

    Columns: method, dataset, settings (those in which its method's rows differ), metric, n (seeds that both have done),
    first, second (means over these), difference (second less first), half_width (of the difference, 95 %), p_value
    (paired t-test, Holm-corrected over the rows), verdict (the same numbers, within noise, better, worse, changed where
    no direction is known, other data, cannot be told from one seed), time (how many times longer a step takes).

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> for out in ("before", "after"):
    ...     records = invbench.run("erm", "spirals", seeds="0-1", settings=settings, out=out)
    >>> comparison = invbench.compare(invbench.load_results("before"), invbench.load_results("after"))
    >>> comparison[["method", "dataset", "n", "verdict"]].values.tolist()
    [['erm', 'spirals', 2, 'the same numbers']]

    Args:
        first, second: as `load_results` returns them.
        metric: a column; each dataset's own where it is None.

    Raises:
        UserError: one of them has no finished run, they have none in common, or none in common has the metric.
    """
    for which, runs in (("first", first), ("second", second)):
        if not len(runs) or not (runs["status"] == "done").any():
            raise UserError(f"the {which} of the two has no finished run")
    keys = _keys(first, second)
    each = [_done(runs, keys) for runs in (first, second)]
    both = each[0].merge(each[1], on=["_key", "seed"], suffixes=SUFFIXES)
    if not len(both):
        raise UserError(
            "the two have no finished run in common: the same method, dataset, settings and seed; "
            "`bench table` puts runs of different settings beside one another"
        )
    rows = [_row(pairs, metric) for _, pairs in both.groupby("_key", sort=True)]
    comparison = pd.DataFrame([row for row in rows if row]).reset_index(drop=True)
    if not len(comparison):
        raise UserError(f"none of the runs that both have has the metric '{metric}'")
    comparison["p_value"] = list(holm(dict(enumerate(comparison["p_value"]))).values())
    comparison["verdict"] = [_verdict(row) for _, row in comparison.iterrows()]
    of_key = each[0].drop_duplicates("_key").set_index("_key").loc[comparison["_key"], keys]
    settings = [", ".join(f"{name}={value}" for name, value in differs.items()) for differs in differing(of_key)]
    comparison.insert(2, "settings", settings)
    return comparison.drop(columns=["_key", "differences", "other_data", "higher_is_better"])


def remarks(first: pd.DataFrame, second: pd.DataFrame, comparison: pd.DataFrame) -> list[str]:
    """Return the lines below the table of `compare`: verdicts, runs that only one lot has, what the columns mean."""
    keys = _keys(first, second)
    lots = [_identified(runs, keys) for runs in (first, second)]
    done = [set(lot.loc[lot["status"] == "done", "_id"]) for lot in lots]
    known = [set(lot["_id"]) for lot in lots]
    lines = [", ".join(f"{count} {verdict}" for verdict, count in comparison["verdict"].value_counts().items())]
    for name, count in (
        ("done in the first and not in the second", len((done[0] & known[1]) - done[1])),
        ("done in the second and not in the first", len((done[1] & known[0]) - done[0])),
        ("only in the first", len(known[0] - known[1])),
        ("only in the second", len(known[1] - known[0])),
    ):
        lines += [f"{count} runs {name}"] if count else []
    alone = [sorted(set(map(str, one)) - set(map(str, other))) for one, other in ((first, second), (second, first))]
    for which, names in zip(("first", "second"), alone, strict=True):
        new = [name for name in names if name.startswith(SECTIONS) and name not in keys]
        lines += [f"only the {which} knows the settings {', '.join(new)}"] if new else []
    return [
        *lines,
        "difference: second less first, mean ± 95 % t-interval over common seeds; verdicts at 5 %, Holm-corrected",
        "time: how many times longer a step of the second takes (medians)",
    ]


def laid_out(comparison: pd.DataFrame) -> Layout:
    """Lay the table of `compare` out for people."""
    rows: list[tuple[list[str], list[Entry | None]]] = []
    for _, row in comparison.iterrows():
        difference = rounded(row["difference"], row["half_width"], sign="+")
        texts = [f"{row['first']:.4g}", f"{row['second']:.4g}", difference, str(row["n"])]
        head = [row["method"], row["dataset"], row["settings"], row["metric"]]
        rows.append(([*head, *texts, row["verdict"], f"{row['time']:.2f}"], []))
    names = ["method", "dataset", "settings", "metric", "first", "second", "difference", "seeds", "verdict", "time"]
    return Layout(names, [], rows)


def _keys(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """Return the columns in which pairs must agree: those that both lots have, and those of one lot that vary there."""
    known = [keys_of(first), keys_of(second)]
    shared = [name for name in known[0] if name in known[1]]
    lone = [
        name
        for runs, keys in zip((first, second), known, strict=True)
        for name in keys
        if name not in shared and as_text(runs, [name])[name].nunique() > 1
    ]
    return [name for name in (*shared, *lone) if name != "data.variant"]


def _identified(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Add `_key`, the settings as text, and `_id`, the same with the seed."""
    runs = each_once(runs)
    known = runs.reindex(columns=[*keys, "seed"])
    return runs.assign(_key=joined(known, keys), _id=joined(known, [*keys, "seed"]))


def _done(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the finished runs with `_key` and `_id`, one for each of these."""
    runs = _identified(runs, keys)
    return runs[runs["status"] == "done"].drop_duplicates(["_key", "seed"], keep="last")


def _row(pairs: pd.DataFrame, metric: str | None) -> dict[str, Any] | None:
    """Compare pairs of runs that agree in all but the seed; None where none of them has the metric."""
    run, (one, two) = pairs.iloc[0], SUFFIXES
    name = metric or str(run.get(f"data.metric{two}", run.get(f"data.metric{one}")))
    columns = [f"{name}{suffix}" for suffix in SUFFIXES]
    if not all(column in pairs and pd.api.types.is_numeric_dtype(pairs[column]) for column in columns):
        return None
    pairs = pairs.dropna(subset=columns)
    if not len(pairs):
        return None
    before, after = (pd.Series(pairs[column].to_numpy(float), index=pairs["seed"].tolist()) for column in columns)
    fingerprints = [pairs.get(f"data.fingerprint{suffix}", pd.Series("", index=pairs.index)) for suffix in SUFFIXES]
    steps = [pairs[f"cost.seconds_per_step{suffix}"].to_numpy(float) for suffix in SUFFIXES]
    return {
        "_key": run["_key"], "method": run[f"method{one}"], "dataset": run[f"dataset{one}"], "metric": name,
        "n": len(pairs), "first": before.mean(), "second": after.mean(), "difference": (after - before).mean(),
        "half_width": half_width(after - before), "p_value": paired_p_value(before, after), "verdict": "",
        "time": _typical_ratio(steps[1], steps[0]), "differences": bool((after != before).any()),
        "other_data": bool((fingerprints[0] != fingerprints[1]).any()),
        "higher_is_better": higher_is_better(name, *(run.get(f"data.{entry}{two}") for entry in PRIMARY)),
    }  # fmt: skip


def _typical_ratio(numbers: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the median of the ratios of finite numbers; NaN where there is none."""
    known = np.isfinite(numbers) & np.isfinite(others) & (others != 0)
    return float(np.median(numbers[known] / others[known])) if known.any() else math.nan


def _verdict(row: pd.Series) -> str:
    """Return what a row of `compare` says of the change."""
    if row["other_data"]:
        return OTHER_DATA
    if not row["differences"]:
        return SAME
    if math.isnan(row["p_value"]):
        return ONE_SEED
    if row["p_value"] > 1 - LEVEL:
        return NOISE
    higher = row["higher_is_better"]
    if higher is None:
        return "changed"
    return "better" if (row["difference"] > 0) == higher else "worse"
