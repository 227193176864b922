"""How the step and the settings that a table shows are chosen: pure functions of records, which train nothing."""

import re
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from invbench.choices import Select as Select  # also for those who import it from here
from invbench.errors import UserError
from invbench.results.columns import HELD_OUT, as_text, joined, keys_of, missing, problem_of
from invbench.results.statistics import all_best, best_of
from invbench.runs.spec import LATE_STARTS

BEST = "best_validation."
LATE_START = re.compile(rf"method(\..+)?\.({'|'.join(LATE_STARTS)})")
MOST_LISTED = 20
"""Environments that a message lists."""


class Criterion(NamedTuple):
    """What settings are chosen by: of each candidate, by its place in the table, a number per run."""

    values: dict[Any, pd.Series]
    higher_is_better: bool


def shown(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs that were trained on all environments, and those that left one out."""
    if HELD_OUT not in runs:
        return runs, runs.iloc[:0]
    without = runs[HELD_OUT].notna()
    return runs[~without], runs[without]


def at_best_validation(runs: pd.DataFrame) -> pd.DataFrame:
    """Finished runs with the metrics of the step that was best on the validation set, where they were measured then.

    Raises:
        UserError: a run has no such step.
    """
    name = f"{BEST}step"
    steps = runs[name] if name in runs else pd.Series(np.nan, index=runs.index)
    without = runs[(runs["status"] == "done") & steps.isna()]
    if len(without):
        run = without.iloc[0]
        raise UserError(
            f"--select best_validation: run {run.get('run_id', '')} ({run['method']} on {run['dataset']}) has no best "
            f"step: {_no_best_step(run)}; or use --select last"
        )
    measured = [str(name).removeprefix(BEST) for name in runs if str(name).startswith(BEST)]
    there = [name for name in measured if name in runs]
    shown_then = {name: runs[BEST + name].fillna(runs[name]) for name in there}
    return runs.assign(inactive=_reasons(runs, steps), **shown_then)


def _reasons(runs: pd.DataFrame, steps: pd.Series) -> pd.Series:
    """Why the penalty of each run had not acted by these steps, where it had not."""
    reasons = runs["inactive"] if "inactive" in runs else pd.Series(None, index=runs.index, dtype=object)
    for column in (str(name) for name in runs if LATE_START.fullmatch(str(name))):
        section, _, name = column.rpartition(".")
        weight, before = (
            pd.to_numeric(_column(runs, f"{section}.{one}"), errors="coerce") for one in LATE_STARTS[name]
        )
        early = pd.to_numeric(runs[column], errors="coerce") >= steps
        early &= weight.notna() & (weight != before.fillna(0.0))
        why = f"the best step in validation comes before {column} is over, so the penalty did not have its weight"
        reasons = reasons.mask(early, why)
    return reasons


def _column(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column, missing everywhere where there is none."""
    return runs[name] if name in runs else pd.Series(np.nan, index=runs.index)


def _no_best_step(run: pd.Series) -> str:
    """Why a finished run has no step that was best in validation."""
    if run.get("dataset.validation_share") == 0:
        return f"{run['dataset']} was made without a validation set, by dataset.validation_share=0"
    return (
        "trainer.evaluate_splits leaves the validation set out, its environments have too few examples for one, or an "
        "older version made the record (`--rerun stale` makes it anew)"
    )


def select_settings(found: pd.DataFrame, select: Select, runs: pd.DataFrame, left_out: pd.DataFrame) -> pd.DataFrame:
    """Of each method on each problem the row that the selection chooses, among those with the most seeds; of equal ones
    the first in the table, whose order is that of the settings.

    Args:
        found: rows of means, with `members`, the places of their runs, and `higher_is_better`, of the metric.
        runs: the runs that the rows are of.
        left_out: runs that left an environment out.

    Raises:
        UserError: what the selection needs was not run.
    """
    kept = []
    family = ["method", *problem_of(keys_of(runs)), "metric"]
    for _, index in as_text(found, family).groupby(family, sort=False).groups.items():
        group = found.loc[index]
        criterion = _criterion(group, select, runs, left_out)
        judged = group.loc[list(criterion.values)]
        most = judged.index[judged["n"] == judged["n"].max()]
        scores = {place: criterion.values[place] for place in most}
        best = best_of(scores, criterion.higher_is_better)
        equal = len(all_best(scores, criterion.higher_is_better))
        at = _at(group.loc[best], runs) if select is Select.best_validation else "last"
        kept.append(found.loc[[best]].assign(candidates=len(group), equal_candidates=equal, at=at))
    return pd.concat(kept, ignore_index=True)


def _at(row: pd.Series, runs: pd.DataFrame) -> str:
    """The step that a row's numbers are of: what is measured at the last one only has no other."""
    name = f"{BEST}{row['metric']}"
    return "best_validation" if name in runs and runs[name].iloc[row["members"]].notna().all() else "last"


def _criterion(group: pd.DataFrame, select: Select, runs: pd.DataFrame, left_out: pd.DataFrame) -> Criterion:
    if select is Select.leave_one_env_out:
        return _left_out_scores(group, runs, left_out)
    first = group.iloc[0]
    if select is Select.oracle:
        members = [member for own in group["members"] for member in own]
        name = _of_oracle(str(first["metric"]), runs.iloc[members])
        higher = first["higher_is_better"]
        if higher is None:
            raise UserError(f"whether a high {name} is good is not known, so nothing can be selected by it")
    else:
        run = runs.iloc[first["members"][0]]
        name, higher = _primary(run, "validation")
        if name not in runs:
            raise UserError(f"run {run['run_id']} has no {name}, which its settings would be selected by")
    return Criterion({place: runs[name].iloc[own["members"]] for place, own in group.iterrows()}, bool(higher))


def _of_oracle(metric: str, runs: pd.DataFrame) -> str:
    """What the oracle goes by: the part of the test data that is kept for it, where all runs have one."""
    name = f"test_out_{metric.removeprefix('test_')}"
    there = metric.startswith("test_") and name in runs and bool(runs[name].notna().all())
    return name if there else metric


def _primary(run: pd.Series, split: str) -> tuple[str, bool]:
    """The score that a run's task is judged by, on a split, and whether it grows with quality."""
    if missing(run.get("data.primary")):
        raise UserError(f"run {run['run_id']} was made by an older version; `--rerun stale` makes it anew")
    return f"{split}_{run['data.primary']}", bool(run["data.higher_is_better"])


def _left_out_scores(group: pd.DataFrame, runs: pd.DataFrame, left_out: pd.DataFrame) -> Criterion:
    """Of each candidate its mean score on each environment when that was left out, over seeds that have all of them.

    Environments count alike, whatever was run of each. Candidates with the most such seeds are judged.
    """
    first = runs.iloc[group.iloc[0]["members"][0]]
    name, higher = _primary(first, "held_out")
    keys = _settings(runs)
    finished = left_out[left_out["status"] == "done"]
    alike = joined(finished, keys)
    examples = runs.iloc[[members[0] for members in group["members"]]]
    known = examples.reindex(columns=["data.environments"])["data.environments"]
    counts = [0 if missing(count) else int(count) for count in known]
    tables = {
        place: _by_environment(finished[alike == settings], name, count)
        for place, settings, count in zip(group.index, joined(examples, keys), counts, strict=True)
    }
    seeds = sorted({seed for scores in tables.values() for seed in scores.index}, key=str)
    tables = {place: scores.reindex(index=seeds) for place, scores in tables.items()}
    gaps = [gap for gap in map(_gap, tables.values()) if gap]
    lacking = f"{len(gaps)} of {len(group)} settings lack runs, such as {gaps[0]}" if gaps else ""
    complete = {place: scores.dropna() for place, scores in tables.items()}
    most = max(map(len, complete.values()))
    if not most:
        count = counts[0]
        raise UserError(
            f"--select leave_one_env_out: of {first['method']} on {first['dataset']} no settings were run with each of "
            f"its {count} environments left out; a sweep does it by "
            f"grid: {{{HELD_OUT}: [null, {', '.join(map(str, range(min(count, MOST_LISTED))))}"
            f"{', ...' if count > MOST_LISTED else ''}]}}{'; ' * bool(lacking)}{lacking}"
        )
    if lacking:
        warnings.warn(
            f"--select leave_one_env_out: of {first['method']} on {first['dataset']} {lacking}; of each the seeds "
            "count that have every environment, and only settings with the most of these are judged",
            stacklevel=2,
        )
    judged = {place: scores for place, scores in complete.items() if len(scores) == most}
    common = [seed for seed in seeds if all(seed in scores.index for scores in judged.values())]
    return Criterion({place: scores.loc[common or scores.index].mean() for place, scores in judged.items()}, higher)


def _gap(scores: pd.DataFrame) -> str:
    """The first run that is missing, in words; empty where none is."""
    for seed, row in scores.iterrows():
        for environment, value in row.items():
            if missing(value):
                return f"seed {seed} without environment {environment}"
    return ""


def _by_environment(runs: pd.DataFrame, name: str, count: int) -> pd.DataFrame:
    """Scores of runs that left an environment out: a row a seed, a column an environment, NaN where there is no run."""
    if name not in runs or not count:
        return pd.DataFrame(columns=[0])
    environment = pd.to_numeric(runs[HELD_OUT], errors="coerce")
    table = runs.assign(environment=environment).pivot_table(index="seed", columns="environment", values=name)
    # A record may say any number of environments; one column more than there are runs is empty, and enough to see it.
    return table.reindex(columns=range(min(count, len(runs) + 1)))


def _settings(runs: pd.DataFrame) -> list[str]:
    return [name for name in keys_of(runs) if name not in (HELD_OUT, "data.variant")]
