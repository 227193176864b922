"""Tables of means: which runs may be averaged, how sure the means are, which of them can be told from the best."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from invbench.core.metric import metric_of, parse_column
from invbench.errors import UserError, did_you_mean
from invbench.results.columns import as_text, keys_of, missing, problem_of
from invbench.results.selection import Select, at_best_validation, select_settings, shown
from invbench.results.statistics import COST, LEVEL, against_best, all_best, half_width, is_share_of_cost

PRIMARY = ("primary", "higher_is_better")
"""What a record says of its data: the metric that the task is judged by, and which way."""


class TableOfMeans(pd.DataFrame):
    """What `table` returns: a DataFrame that a notebook shows as `bench table` lays it out; parts of it are plain."""

    def _repr_html_(self) -> str:
        from invbench.results.formats import PAPER, Format, laid_out, notes, written

        try:
            return written(laid_out(self, style=PAPER), notes(self, {}, PAPER), Format.html)
        except Exception:  # somebody has changed the rows or columns: then it is a table like any other
            return pd.DataFrame(self).to_html()


def table(results: pd.DataFrame, metric: str | None = None, select: str = "last") -> TableOfMeans:
    """One row per method, problem and settings: the metric's mean over seeds with its 95 % t-interval.

    Only finished runs count. Runs that differ in any setting, in protocol or in the data's variant are never averaged;
    in which of these the rows of one dataset differ are columns. On each problem methods are compared with the best by
    paired t-tests over the seeds that both have, Holm-corrected.

    Columns: method, dataset, what differs, metric, at (the step: last or best_validation), n (runs that count),
    runs (with those that are not finished), mean, half_width (NaN for n = 1), higher_is_better (None: not known),
    best, p_value (against the best; NaN where no test can be made), tied (p_value above 0.05), selection,
    candidates (settings that it had), equal_candidates (as good as the chosen ones, which are the first),
    settings_chosen_by (on other seeds: the runs' protocol), constant (what a constant prediction scores; NaN where
    that is not known), inactive (why a penalty never acted with its weight, or nothing), seconds_per_step and
    seconds_per_step_half_width (of runs trained alone, if there are any), fused (1, or how many runs that were
    trained together share that time), peak_memory_bytes, seeds (values by seed), run_ids (of those that count).

    Args:
        results: as `load_results` returns it.
        metric: a column such as `test_accuracy`; default of each dataset the one that its task names.
        select: last, best_validation, leave_one_env_out or oracle; see `Select`.

    Raises:
        UserError: no finished run, or none with that metric (the message lists those that exist); the same dataset and
            seed had different data; no such selection, or the runs lack what it needs.
    """
    selection = Select.of(select)
    runs, left_out = shown(each_once(results))
    done = runs[runs["status"] == "done"] if len(runs) else runs
    if not len(done):
        others = ", ".join(f"{count} {status}" for status, count in omitted(results).items())
        raise UserError(f"no finished run in these results ({others or 'they are empty'}); `bench run` makes one")
    if selection is Select.best_validation:
        runs = at_best_validation(runs)
    if metric is not None and (metric not in done or not pd.api.types.is_numeric_dtype(done[metric])):
        raise UserError(f"no run has the metric '{metric}'{did_you_mean(metric, _metrics(done))}")
    _check_same_data(done)
    groups = list(_groups(runs, metric))
    if not groups:
        raise UserError(f"no finished run has the metric of its task; there are {', '.join(_metrics(done))}")
    keys = keys_of(runs)
    found = pd.DataFrame(groups).sort_values(keys, key=_order, ignore_index=True)
    found = found.assign(selection=select, candidates=1, equal_candidates=1)
    if selection is not Select.last:
        found = select_settings(found, selection, runs, left_out)
    found = _compared(found.drop(columns="members"), keys)
    return TableOfMeans(found.drop(columns=[name for name in keys[2:] if not _differs(found, name)]))


def higher_is_better(metric: str, primary: Any = None, primary_higher_is_better: Any = None) -> bool | None:
    """Whether a metric grows with quality; None where neither its record nor `invbench.core.metric` knows.

    Args:
        metric: a column, such as `test_accuracy_worst`.
        primary: the metric that the task is judged by, without its split, as the record says it; or what is missing.
        primary_higher_is_better: whether that one does.
    """
    known = isinstance(primary, str) and not missing(primary_higher_is_better)
    name = parse_column(metric, primary if known else "").metric
    return bool(primary_higher_is_better) if known and name == primary else metric_of(name).higher_is_better


def omitted(results: pd.DataFrame) -> dict[str, int]:
    """How many runs are in no mean: of each status other than done, failed ones by kind; and with an environment left
    out."""
    if not len(results):
        return {}
    results, left_out = shown(each_once(results))
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
    """How many runs are done, failed and not finished, as a sweep says it at its end; nothing where all are done."""
    status = each_once(results)["status"]
    counts = {name: int((status == name).sum()) for name in ("done", "failed", "unreadable")}
    parts = [f"{counts.pop('done')} of {len(status)} runs done"]
    counts["not finished"] = int((status != "done").sum()) - sum(counts.values())
    parts += [f"{count} {name}" for name, count in counts.items() if count]
    return [", ".join(parts)] if len(parts) > 1 else []


def each_once(results: pd.DataFrame) -> pd.DataFrame:
    """A run that is in several folders counts once: a finished one, and of these the last."""
    if not len(results) or "run_id" not in results:
        return results
    order = pd.DataFrame(
        {"run": results["run_id"], "done": results["status"] == "done", "when": results.get("finished", "")}
    )
    ordered = order.sort_values(["done", "when"], kind="stable", na_position="first")
    kept = ordered.drop_duplicates("run", keep="last")
    return results.loc[sorted(kept.index)]


def _check_same_data(done: pd.DataFrame) -> None:
    """Raises UserError where one problem and seed had data with different fingerprints."""
    if "data.fingerprint" not in done:
        return
    problem = [*problem_of(done), "seed"]
    text = as_text(done, problem)
    for _, index in text.groupby(problem, sort=False).groups.items():
        group = done.loc[index].drop_duplicates("data.fingerprint")
        if len(group) > 1:
            first, second = group.iloc[0], group.iloc[1]
            raise UserError(
                f"{first['dataset']} seed {first['seed']} had other data in run {first['run_id']} than in "
                f"{second['run_id']}, so they cannot be compared; `bench sweep --rerun stale` makes old ones anew"
            )


def _groups(runs: pd.DataFrame, metric: str | None) -> Iterable[dict[str, Any]]:
    """A row for each group of runs that differ in their seeds only."""
    keys = keys_of(runs)
    text = as_text(runs, keys)
    if "data.variant" in keys:  # runs that are not finished know none; they count with those that are
        others = keys[:-1]
        known = text["data.variant"].where(text["data.variant"] != "")
        text["data.variant"] = (
            known.groupby([text[name] for name in others]).transform("first").fillna("").where(known.isna(), known)
        )
    finished = (runs["status"] == "done").to_numpy()
    inactive = "inactive" in runs
    facts = ("seed", "run_id", "data.metric", "inactive", *(f"data.{name}" for name in PRIMARY))
    columns = {name: runs[name].tolist() for name in (*keys, *facts) if name in runs}
    numbers = {
        str(name): runs[name].to_numpy(float, na_value=math.nan)
        for name in runs
        if pd.api.types.is_numeric_dtype(runs[name])
    }
    unknown = np.full(len(runs), math.nan)
    for places in text.groupby(keys, sort=False).indices.values():
        members = _of_each_seed(np.asarray(places), finished, columns.get("seed"))
        done = members[finished[members]]
        name = metric or (str(columns["data.metric"][done[0]]) if len(done) else "")
        done = done[~np.isnan(numbers.get(name, unknown)[done])]
        if not len(done):
            continue
        timed, fused = _timed(numbers, done)
        if name.startswith(COST):
            done = timed
        seconds = pd.Series(numbers.get("cost.seconds_per_step", unknown)[timed]).dropna()
        primary = [columns[f"data.{own}"][done[0]] for own in PRIMARY if f"data.{own}" in columns]
        values = pd.Series(numbers[name][done], index=[columns["seed"][i] for i in done] if "seed" in columns else None)
        yield {key: columns[key][done[0]] for key in keys} | {
            "metric": name,
            "at": "last",
            "n": len(values),
            "runs": len(members),
            "mean": float(values.mean()),
            "half_width": math.nan if is_share_of_cost(name, fused) else half_width(values),
            "higher_is_better": higher_is_better(name, *primary),
            "settings_chosen_by": columns["protocol"][done[0]],
            "constant": _mean(numbers.get(f"data.constant.{name}", unknown)[done]),
            "inactive": next((why for i in done if not missing(why := columns["inactive"][i])), "") if inactive else "",
            "seconds_per_step": float(seconds.mean()),
            "seconds_per_step_half_width": half_width(seconds) if fused == 1 else math.nan,
            "fused": fused,
            "peak_memory_bytes": float(numbers.get("cost.peak_memory_bytes", unknown)[done].max()),
            "seeds": values.to_dict(),
            "run_ids": [columns["run_id"][i] for i in done] if "run_id" in columns else [],
            "members": done,
        }


def _order(column: pd.Series) -> pd.Series:
    """What rows are sorted by: numbers as such, anything else as text."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().equals(column.notna()):
        return numbers.astype(float)
    return column.map(lambda value: "" if missing(value) else str(value))


def _timed(numbers: dict[str, NDArray[np.float64]], done: NDArray[np.intp]) -> tuple[NDArray[np.intp], int]:
    """Choose the runs whose times count: those trained alone, if there are any, and 1; else all, and how many were
    trained together, of whose time each has an equal share."""
    counts = numbers["fused"][done] if "fused" in numbers else np.ones(len(done))
    if (counts == 1).any() or np.isnan(counts).all():
        return (done[counts == 1] if (counts == 1).any() else done), 1
    return done, int(np.nanmax(counts))


def _mean(values: NDArray[np.float64]) -> float:
    """Of the numbers that there are; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _of_each_seed(
    places: NDArray[np.intp], finished: NDArray[np.bool_], seeds: Sequence[Any] | None
) -> NDArray[np.intp]:
    """One of the runs of each seed, a finished one where there is: what else there is are copies of its folder."""
    if seeds is None:
        return places
    of_seed = {seeds[place]: place for place in sorted(places, key=finished.__getitem__)}
    return np.array([of_seed[seed] for seed in sorted(of_seed, key=_seed_order)])


def _seed_order(seed: Any) -> tuple[bool, int]:
    return (True, 0) if missing(seed) else (False, int(seed))


def _compared(found: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """With `best`, `p_value` and `tied`, among the rows of each problem."""
    seeds = {place: pd.Series(own) for place, own in found["seeds"].items()}
    best, p_values = set(), dict.fromkeys(seeds, math.nan)
    problem = [*problem_of(keys), "metric"]
    for _, index in as_text(found, problem).groupby(problem, sort=False).groups.items():
        own = [place for place in index if not is_share_of_cost(found["metric"][place], found["fused"][place])]
        higher = found["higher_is_better"][own[0]] if own else None
        if higher is not None and len(own) > 1:
            values = {place: seeds[place] for place in own}
            best |= all_best(values, higher)
            p_values |= against_best(values, higher)
    found = found.assign(best=[place in best for place in seeds], p_value=list(p_values.values()))
    return found.assign(tied=(found["p_value"] > 1 - LEVEL) & ~found["best"])


def _metrics(results: pd.DataFrame) -> list[str]:
    numeric = [str(name) for name in results.columns if pd.api.types.is_numeric_dtype(results[name])]
    known = [name for name in numeric if name != "seed" and "." not in name]
    return [name for name in known if not parse_column(name).environment.startswith("env")] or known  # too many to list


def _differs(rows: pd.DataFrame, name: str) -> bool:
    """Whether rows of one dataset differ in a setting.

    Those that do not have it differ from those that do where they ought to have it too: for another method or backbone
    it means nothing.
    """
    section = name.partition(".")[0]
    owners = ["dataset", *(owner for owner in ("method", "backbone") if owner == section)]
    text = as_text(rows, list(dict.fromkeys([*owners, name])))
    there = text[~rows[name].map(missing)]
    return any((part.groupby(by)[name].nunique() > 1).any() for part, by in ((there, ["dataset"]), (text, owners)))
