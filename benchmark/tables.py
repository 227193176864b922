"""Tables of means: which runs may be averaged, how sure the means are, which of them can be told from the best."""

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from invbench.errors import UserError, did_you_mean
from invbench.statistics import LEVEL, against_best, best_of, half_width

SECTIONS = ("method.", "dataset.", "backbone.", "trainer.")
PROBLEM = ("dataset.", "data.variant")
"""Besides the dataset's name, what makes it another problem; only on one problem are methods compared."""
HIGHER = ("accuracy", "roc_auc", "background_rejection", "invariant_solution")
LOWER = (
    "loss", "error", "mutual_information", "distance_correlation", "energy_distance", "jensen_shannon", "null_solution",
    "cost.", "invariance.",
)  # fmt: skip
"""Words in names of metrics, by whether they grow with quality."""


class Select(StrEnum):
    """How the settings of a method are chosen where several were run."""

    last = "last"
    """Not at all: all are shown, at their last step."""
    best_validation = "best_validation"
    """The best mean over seeds of the same metric on the validation set."""
    oracle = "oracle"
    """The best mean of the metric itself, which no honest experiment knows."""


def table(results: pd.DataFrame, metric: str | None = None, select: str = "last") -> pd.DataFrame:
    """One row per method, problem and settings: the metric's mean over seeds with its 95 % t-interval.

    Only finished runs count. Runs that differ in any setting, in protocol or in the data's variant are never averaged;
    in which of these the rows of one dataset differ are columns. On each problem methods are compared with the best by
    paired t-tests over the seeds that both have, Holm-corrected.

    Columns: method, dataset, what differs, metric, n (runs that count), runs (with those that are not finished), mean,
    half_width (NaN for n = 1), best, p_value (against the best; NaN where no test can be made), tied (p_value above
    0.05), selection, candidates (settings that it had), seconds_per_step, peak_memory_bytes, seeds (values by seed).

    Args:
        results: as `load_results` returns it.
        metric: a column such as `test_accuracy`; default of each dataset the one that its task names.
        select: last, best_validation or oracle; see `Select`.

    Raises:
        UserError: no finished run, or none with that metric (the message lists those that exist); the same dataset and
            seed had different data; no such selection.
    """
    if select not in list(Select):
        raise UserError(f"no selection '{select}'{did_you_mean(select, list(Select))}")
    runs = _each_once(results)
    done = runs[runs["status"] == "done"] if len(runs) else runs
    if not len(done):
        others = ", ".join(f"{count} {status}" for status, count in unfinished(results).items())
        raise UserError(f"no finished run in these results ({others or 'they are empty'}); `bench run` makes one")
    if metric is not None and (metric not in done or not pd.api.types.is_numeric_dtype(done[metric])):
        raise UserError(f"no run has the metric '{metric}'; there are {', '.join(_metrics(done))}")
    _check_same_data(done)
    groups = list(_groups(runs, metric))
    if not groups:
        raise UserError(f"no finished run has the metric of its task; there are {', '.join(_metrics(done))}")
    found = pd.DataFrame(groups)
    keys = _keys(runs)
    found = _selected(found, keys, Select(select), runs)
    found = _compared(found, keys)
    return found.drop(columns=[name for name in keys[2:] if not _differs(found, name)])


def higher_is_better(metric: str) -> bool | None:
    """Whether a metric grows with quality; None where that is not known."""
    if any(word in metric for word in HIGHER):
        return True
    return False if any(word in metric for word in LOWER) else None


def unfinished(results: pd.DataFrame) -> dict[str, int]:
    """How many runs of each status other than done there are, failed ones by kind."""
    if not len(results):
        return {}
    others = results[results["status"] != "done"]
    kinds = others["kind"] if "kind" in others else pd.Series(None, index=others.index)
    named = [
        f"{status} ({kind})" if status == "failed" and not _missing(kind) else str(status)
        for status, kind in zip(others["status"], kinds, strict=True)
    ]
    return {str(name): int(count) for name, count in pd.Series(named, dtype=object).value_counts().items()}


def _each_once(results: pd.DataFrame) -> pd.DataFrame:
    """A run that is in several folders counts once: a finished one, and of these the last."""
    if not len(results) or "run_id" not in results:
        return results
    order = results.assign(_done=results["status"] == "done", _when=results.get("finished", ""))
    kept = order.sort_values(["_done", "_when"], kind="stable", na_position="first")["run_id"].drop_duplicates(
        keep="last"
    )
    return results.loc[sorted(kept.index)]


def _keys(runs: pd.DataFrame) -> list[str]:
    """Columns in which runs must agree to be averaged."""
    settings = [str(name) for name in runs.columns if str(name).startswith(SECTIONS)]
    variant = ["data.variant"] if "data.variant" in runs else []
    return ["method", "dataset", "backbone", "protocol", *settings, *variant]


def _check_same_data(done: pd.DataFrame) -> None:
    """Raises UserError where one problem and seed had data with different fingerprints."""
    if "data.fingerprint" not in done:
        return
    problem = ["dataset", "seed", *(name for name in map(str, done.columns) if name.startswith(PROBLEM))]
    text = _as_text(done, problem)
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
    keys = _keys(runs)
    text = _as_text(runs, keys)
    if "data.variant" in keys:  # runs that are not finished know none; they count with those that are
        others = keys[:-1]
        known = text["data.variant"].where(text["data.variant"] != "")
        text["data.variant"] = (
            known.groupby([text[name] for name in others]).transform("first").fillna("").where(known.isna(), known)
        )
    finished = (runs["status"] == "done").to_numpy()
    columns = {name: runs[name].tolist() for name in [*keys, "seed", "data.metric"] if name in runs}
    numbers = {
        str(name): runs[name].to_numpy(float, na_value=math.nan)
        for name in runs
        if pd.api.types.is_numeric_dtype(runs[name])
    }
    unknown = np.full(len(runs), math.nan)
    for places in text.groupby(keys, sort=True).indices.values():
        members = np.asarray(places)
        done = members[finished[members]]
        name = metric or (str(columns["data.metric"][done[0]]) if len(done) else "")
        done = done[~np.isnan(numbers.get(name, unknown)[done])]
        if not len(done):
            continue
        values = pd.Series(numbers[name][done], index=[columns["seed"][i] for i in done] if "seed" in columns else None)
        yield {key: columns[key][done[0]] for key in keys} | {
            "metric": name,
            "n": len(values),
            "runs": len(members),
            "mean": float(values.mean()),
            "half_width": half_width(values),
            "seconds_per_step": float(np.nanmean(numbers["cost.seconds_per_step"][done])),
            "peak_memory_bytes": float(numbers.get("cost.peak_memory_bytes", unknown)[done].max()),
            "seeds": values.to_dict(),
            "members": done,
        }


def _selected(found: pd.DataFrame, keys: Sequence[str], select: Select, runs: pd.DataFrame) -> pd.DataFrame:
    """Of each method on each problem the settings that the selection chooses, among those with the most seeds."""
    found = found.assign(selection=str(select), candidates=1)
    if select is Select.last:
        return found.drop(columns="members")
    kept = []
    family = ["method", *_problem(keys), "metric"]
    for _, index in _as_text(found, family).groupby(family, sort=False).groups.items():
        group = found.loc[index]
        metric = str(group["metric"].iloc[0])
        criterion = metric if select is Select.oracle else _validation(metric, runs)
        higher = higher_is_better(criterion)
        if higher is None:
            raise UserError(f"whether a high {criterion} is good is not known, so nothing can be selected by it")
        most = group[group["n"] == group["n"].max()]
        values = {place: runs[criterion].iloc[members] for place, members in most["members"].items()}
        kept.append(found.loc[[best_of(values, higher)]].assign(candidates=len(group)))
    return pd.concat(kept, ignore_index=True).drop(columns="members")


def _validation(metric: str, runs: pd.DataFrame) -> str:
    """The same metric on the validation set."""
    name = f"validation_{metric.removeprefix('test_')}"
    if not metric.startswith("test_") or name not in runs or runs[name].isna().all():
        raise UserError(f"--select best_validation needs {name}, which these runs do not have; use --select last")
    return name


def _compared(found: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """With `best`, `p_value` and `tied`, among the rows of each problem."""
    seeds = {place: pd.Series(own) for place, own in found["seeds"].items()}
    best, p_values = set(), dict.fromkeys(seeds, math.nan)
    problem = [*_problem(keys), "metric"]
    for _, index in _as_text(found, problem).groupby(problem, sort=False).groups.items():
        higher = higher_is_better(str(found["metric"][index[0]]))
        if higher is not None and len(index) > 1:
            values = {place: seeds[place] for place in index}
            best.add(best_of(values, higher))
            p_values |= against_best(values, higher)
    found = found.assign(best=[place in best for place in seeds], p_value=list(p_values.values()))
    return found.assign(tied=(found["p_value"] > 1 - LEVEL) & ~found["best"])


def _problem(keys: Sequence[str]) -> list[str]:
    return ["dataset", *(name for name in keys if name.startswith(PROBLEM))]


def _as_text(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Columns as text, so that lists and gaps can be grouped by."""
    return pd.DataFrame(
        {name: ["" if _missing(value) else str(value) for value in rows[name]] for name in names}, index=rows.index
    )


def _metrics(results: pd.DataFrame) -> list[str]:
    numeric = [str(name) for name in results.columns if pd.api.types.is_numeric_dtype(results[name])]
    return [name for name in numeric if name != "seed" and "." not in name]


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _differs(rows: pd.DataFrame, name: str) -> bool:
    """Whether the rows of some dataset that have this setting differ in it."""
    shown = pd.Series([None if _missing(value) else str(value) for value in rows[name]])
    return bool((shown.groupby(rows["dataset"].to_numpy()).nunique() > 1).any())
