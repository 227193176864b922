"""Make tables of means: average runs, give intervals, and compare methods with the best one."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from invbench.core.metric import metric_of, parse_column
from invbench.errors import UserError, did_you_mean
from invbench.results.columns import TRAINING, as_text, keys_of, missing, problem_of
from invbench.results.selection import PREFIXES, Select, at_best_step, select_settings, split_left_out
from invbench.results.statistics import (
    COST,
    LEVEL,
    against_best,
    all_best,
    combined_p_value,
    half_width,
    holm,
    is_p_value,
    is_share_of_cost,
)

PRIMARY = ("primary", "higher_is_better")
"""Entries of a record's data: the metric by which the task is judged, and its direction."""

COUNTERS = ("seed", "fused")
"""Columns of numbers that are no metrics."""


class TableOfMeans(pd.DataFrame):
    """The DataFrame that `table` returns; a notebook shows it as `bench table` does, but shows parts of it as usual."""

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        from invbench.results.formats import Format, written
        from invbench.results.layout import PAPER, laid_out, notes

        try:
            return written(laid_out(self, style=PAPER), notes(self, {}, PAPER), Format.html)
        except Exception:  # its rows or columns were changed, so it is shown as any DataFrame
            return pd.DataFrame(self).to_html()


def table(results: pd.DataFrame, metric: str | None = None, select: str = "last") -> TableOfMeans:
    """Average a metric over seeds: a row per method, problem and settings, with its 95 % t-interval.

    p-values of runs, such as `test_invariance_p`, are not averaged: a row has twice their median, Holm-corrected over
    the rows of the table, and no interval.

    Only finished runs count. Runs that differ in any setting, in protocol or in the data's variant are never averaged;
    in which of these the rows of one dataset differ are columns. On each problem methods are compared with the best by
    paired t-tests over the seeds that both have, Holm-corrected.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> records = invbench.run("erm", "spirals", seeds="0-1", settings=settings, out="averaged")
    >>> means = invbench.table(invbench.load_results("averaged"))
    >>> means[["method", "dataset", "metric", "n"]].values.tolist()
    [['erm', 'spirals', 'test_accuracy', 2]]

    Columns: method, dataset, what differs, metric, at (the step: last or best_validation), n (runs that count), runs
    (with those that are not finished), mean, half_width (NaN for n = 1), higher_is_better (None: not known), best
    (whether no mean of the problem is better), p_value (against the best; NaN where no test can be made), tied (p_value
    above 0.05), selection (as `select`), candidates (number of settings that were compared to choose these),
    equal_candidates (number of settings with the best score; the first of them is shown), settings_chosen_by (rule by
    which `bench rerun-best` had chosen the settings on other seeds; `last`: none), constant (what a constant prediction
    scores; NaN where that is not known), inactive (why the method never acted as set, or nothing),
    seconds_per_step and seconds_per_step_half_width (of runs trained alone, if there are any), fused (1, or how many
    runs that were trained together share that time), peak_memory_bytes, seeds (values by seed), run_ids (of those that
    count).

    Args:
        results: as `load_results` returns it.
        metric: a column such as `test_accuracy`; default of each dataset the one that its task names.
        select: last, best_validation, worst_group and others; see `invbench.choices.Select`.

    Raises:
        UserError: no finished run, or none with that metric (the message lists those that exist); the same dataset and
            seed had different data; no such selection, or the runs lack what it needs.
    """
    selection = Select.of(select)
    runs, left_out = split_left_out(each_once(results))
    done = runs[runs["status"] == "done"] if len(runs) else runs
    if not len(done):
        others = ", ".join(f"{count} {status}" for status, count in omitted(results).items())
        raise UserError(f"no finished run in these results ({others or 'they are empty'}); `bench run` makes one")
    if selection in PREFIXES:
        runs = at_best_step(runs, selection)
    if metric is not None and (
        metric in COUNTERS or metric not in done or not pd.api.types.is_numeric_dtype(done[metric])
    ):
        raise UserError(f"no run has the metric '{metric}'{did_you_mean(metric, _metrics(done))}")
    _check_same_data(done)
    groups = list(_groups(runs, metric))
    if not groups:
        raise UserError(f"no finished run has the metric of its task; there are {', '.join(_metrics(done))}")
    keys = keys_of(runs)
    means = pd.DataFrame(groups).sort_values(keys, key=_sort_keys, ignore_index=True)
    means = means.assign(selection=select, candidates=1, equal_candidates=1)
    if selection is not Select.last:
        means = select_settings(means, selection, runs, left_out)
    means = _compared(_with_adjusted_p_values(means.drop(columns="members")), keys)
    return TableOfMeans(means.drop(columns=[name for name in keys[2:] if not _differs(means, name)]))


def higher_is_better(metric: str, primary: Any = None, primary_higher_is_better: Any = None) -> bool | None:
    """Tell whether a high metric is good; None where neither the record nor `invbench.core.metric` knows.

    Args:
        metric: a column, such as `test_accuracy_worst`.
        primary: the metric by which the task is judged, without its split, as in the record; None or NaN if unknown.
        primary_higher_is_better: whether a high primary metric is good.
    """
    known = isinstance(primary, str) and not missing(primary_higher_is_better)
    name = parse_column(metric, primary if known else "").metric
    return bool(primary_higher_is_better) if known and name == primary else metric_of(name).higher_is_better


def omitted(results: pd.DataFrame) -> dict[str, int]:
    """Count the runs that are in no mean: by status, failed ones by kind, and those that left an environment out."""
    if not len(results):
        return {}
    results, left_out = split_left_out(each_once(results))
    without = {"with an environment left out of training": len(left_out)} if len(left_out) else {}
    others = results[results["status"] != "done"]
    kinds = others["kind"] if "kind" in others else pd.Series(None, index=others.index)
    named = [
        f"{status} ({kind})" if status == "failed" and not missing(kind) else str(status)
        for status, kind in zip(others["status"], kinds, strict=True)
    ]
    counts = pd.Series(named, dtype=object).value_counts()
    return {str(name): int(count) for name, count in counts.items()} | without


def completeness(results: pd.DataFrame) -> list[str]:
    """Say in at most one line how many runs are done, failed and not finished; in none where all are done."""
    status = each_once(results)["status"]
    counts = {name: int((status == name).sum()) for name in ("done", "failed", "unreadable")}
    parts = [f"{counts.pop('done')} of {len(status)} runs done"]
    counts["not finished"] = int((status != "done").sum()) - sum(counts.values())
    parts += [f"{count} {name}" for name, count in counts.items() if count]
    return [", ".join(parts)] if len(parts) > 1 else []


def each_once(results: pd.DataFrame) -> pd.DataFrame:
    """Keep one row of a run that is in several folders: a finished one, and of these the last."""
    if not len(results) or "run_id" not in results:
        return results
    order = pd.DataFrame(
        {"run": results["run_id"], "done": results["status"] == "done", "when": results.get("finished", "")}
    )
    ordered = order.sort_values(["done", "when"], kind="stable", na_position="first")
    kept = ordered.drop_duplicates("run", keep="last")
    return results.loc[sorted(kept.index)]


def _check_same_data(done: pd.DataFrame) -> None:
    """Raise UserError where runs with one problem and seed had data with different fingerprints."""
    if "data.fingerprint" not in done:
        return
    problem = [*problem_of(done), *(name for name in TRAINING if name in done), "seed"]
    text = as_text(done, problem)
    for _, indices in text.groupby(problem, sort=False).groups.items():
        group = done.loc[indices].drop_duplicates("data.fingerprint")
        if len(group) > 1:
            first, second = group.iloc[0], group.iloc[1]
            raise UserError(
                f"{first['dataset']} seed {first['seed']} had other data in run {first['run_id']} than in "
                f"{second['run_id']}, so they cannot be compared; `bench sweep --rerun stale` makes old ones anew"
            )


def _groups(runs: pd.DataFrame, metric: str | None) -> Iterable[dict[str, Any]]:
    """Yield a row for each group of runs that differ in their seeds only."""
    keys = keys_of(runs)
    text = _with_variants(as_text(runs, keys))
    finished = (runs["status"] == "done").to_numpy()
    facts = ("seed", "run_id", "data.metric", "inactive", *(f"data.{name}" for name in PRIMARY))
    columns = {name: runs[name].tolist() for name in (*keys, *facts) if name in runs}
    numbers = {
        str(name): runs[name].to_numpy(float, na_value=math.nan)
        for name in runs
        if pd.api.types.is_numeric_dtype(runs[name])
    }
    unknown = np.full(len(runs), math.nan)
    for positions in text.groupby(keys, sort=False).indices.values():
        members = _of_each_seed(np.asarray(positions), finished, columns.get("seed"))
        done = members[finished[members]]
        name = metric or (str(columns["data.metric"][done[0]]) if len(done) else "")
        done = done[~np.isnan(numbers.get(name, unknown)[done])]
        if len(done):
            yield _row(keys, name, len(members), done, columns, numbers)


def _with_variants(text: pd.DataFrame) -> pd.DataFrame:
    """Give unfinished runs, which do not know the variant of their data, that of a finished run like them."""
    if "data.variant" not in text:
        return text
    known = text["data.variant"].where(text["data.variant"] != "")
    alike = known.groupby([text[name] for name in text if name != "data.variant"])
    return text.assign(**{"data.variant": alike.transform("first").fillna("").where(known.isna(), known)})


def _row(
    keys: Sequence[str],
    metric: str,
    count: int,
    done: NDArray[np.intp],
    columns: Mapping[str, Sequence[Any]],
    numbers: Mapping[str, NDArray[np.float64]],
) -> dict[str, Any]:
    """Average the metric over the finished runs of a group.

    Args:
        keys: columns in which the runs agree; the row begins with them.
        metric: a column of `numbers`.
        count: how many runs the group has, finished or not.
        done: positions of the finished ones.
        columns: text columns of all runs.
        numbers: numeric columns of all runs; NaN is a missing number.
    """
    timed, fused = _timed(numbers, done)
    counted = timed if metric.startswith(COST) else done
    unknown = np.full(int(done.max()) + 1, math.nan)
    seconds = pd.Series(numbers.get("cost.seconds_per_step", unknown)[timed]).dropna()
    primary = [columns[f"data.{name}"][counted[0]] for name in PRIMARY if f"data.{name}" in columns]
    seeds = [columns["seed"][i] for i in counted] if "seed" in columns else None
    values = pd.Series(numbers[metric][counted], index=seeds)
    of_tests = is_p_value(metric)
    reasons = [columns["inactive"][i] for i in counted] if "inactive" in columns else []
    return {key: columns[key][counted[0]] for key in keys} | {
        "metric": metric,
        "at": "last",
        "n": len(values),
        "runs": count,
        "mean": combined_p_value(values) if of_tests else float(values.mean()),
        "half_width": math.nan if of_tests or is_share_of_cost(metric, fused) else half_width(values),
        "higher_is_better": higher_is_better(metric, *primary),
        "settings_chosen_by": columns["protocol"][counted[0]],
        "constant": _mean(numbers.get(f"data.constant.{metric}", unknown)[counted]),
        "inactive": next((reason for reason in reasons if not missing(reason)), ""),
        "seconds_per_step": float(seconds.mean()),
        "seconds_per_step_half_width": half_width(seconds) if fused == 1 else math.nan,
        "fused": fused,
        "peak_memory_bytes": float(numbers.get("cost.peak_memory_bytes", unknown)[counted].max()),
        "seeds": values.to_dict(),
        "run_ids": [columns["run_id"][i] for i in counted] if "run_id" in columns else [],
        "members": counted,
    }


def _sort_keys(column: pd.Series) -> pd.Series:
    """Return what rows are sorted by: numbers as such, anything else as text."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().equals(column.notna()):
        return numbers.astype(float)
    return column.map(lambda value: "" if missing(value) else str(value))


def _timed(numbers: Mapping[str, NDArray[np.float64]], done: NDArray[np.intp]) -> tuple[NDArray[np.intp], int]:
    """Return the runs whose times count, and how many runs share one time.

    These are the runs that were trained alone, and 1, if there are any; else all runs, and the number of runs that were
    trained together, of whose time each has an equal share.
    """
    counts = numbers["fused"][done] if "fused" in numbers else np.ones(len(done))
    if (counts == 1).any() or np.isnan(counts).all():
        return (done[counts == 1] if (counts == 1).any() else done), 1
    return done, int(np.nanmax(counts))


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the numbers that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _of_each_seed(
    members: NDArray[np.intp], finished: NDArray[np.bool_], seeds: Sequence[Any] | None
) -> NDArray[np.intp]:
    """Return one run of each seed, a finished one if there is one: further runs are copies of its folder."""
    if seeds is None:
        return members
    of_seed = {seeds[member]: member for member in sorted(members, key=finished.__getitem__)}
    return np.array([of_seed[seed] for seed in sorted(of_seed, key=_seed_order)])


def _seed_order(seed: Any) -> tuple[bool, int]:
    """Return what seeds are sorted by; a missing one is last."""
    return (True, 0) if missing(seed) else (False, int(seed))


def _with_adjusted_p_values(means: pd.DataFrame) -> pd.DataFrame:
    """Adjust p-values of runs for the number of rows of the table that have one."""
    p_values = means["mean"][means["metric"].map(is_p_value)]
    return means.assign(mean=pd.Series(means["mean"].to_dict() | holm(p_values.to_dict())))


def _compared(means: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Add `best`, `p_value` and `tied`, which compare the rows of each problem."""
    seeds = {index: pd.Series(values) for index, values in means["seeds"].items()}
    best, p_values = set(), dict.fromkeys(seeds, math.nan)
    problem = [*problem_of(keys), "metric"]
    for _, indices in as_text(means, problem).groupby(problem, sort=False).groups.items():
        group = [index for index in indices if not is_share_of_cost(means["metric"][index], means["fused"][index])]
        higher = means["higher_is_better"][group[0]] if group else None
        if higher is not None and len(group) > 1:
            values = {index: seeds[index] for index in group}
            best |= all_best(values, higher)
            p_values |= against_best(values, higher)
    means = means.assign(best=[index in best for index in seeds], p_value=list(p_values.values()))
    return means.assign(tied=(means["p_value"] > 1 - LEVEL) & ~means["best"])


def _metrics(results: pd.DataFrame) -> list[str]:
    """Return the columns of metrics that a message lists: without those of single environments, which are many."""
    numeric = [str(name) for name in results.columns if pd.api.types.is_numeric_dtype(results[name])]
    known = [name for name in numeric if name not in COUNTERS and "." not in name]
    return [name for name in known if not re.search(r"\d", parse_column(name).environment)] or known


def _differs(rows: pd.DataFrame, name: str) -> bool:
    """Tell whether rows of one dataset differ in a setting.

    A row without the setting differs from a row with it only where both have the method or backbone that owns it.
    """
    section = name.partition(".")[0]
    owners = ["dataset", *(owner for owner in ("method", "backbone") if owner == section)]
    text = as_text(rows, list(dict.fromkeys([*owners, name])))
    there = text[~rows[name].map(missing)]
    return any((part.groupby(by)[name].nunique() > 1).any() for part, by in ((there, ["dataset"]), (text, owners)))
