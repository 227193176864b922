"""Select the step and the settings that a table shows, from records alone: nothing is trained."""

import re
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from invbench.choices import CRITERIA
from invbench.choices import Select as Select  # also for those who import it from here
from invbench.errors import UserError
from invbench.results.columns import HELD_OUT, as_text, joined, keys_of, missing, problem_of
from invbench.results.statistics import all_best, best_of
from invbench.runs.spec import LATE_STARTS, late_effect

BEST = "best_validation."
"""Beginning of the columns of the step that was best on the validation set."""
PREFIXES = {Select.best_validation: BEST, **{rule: f"best_{rule}." for rule in CRITERIA}}
"""Beginning of the columns of the step that was best, by the rules that choose steps."""
LATE_START = re.compile(rf"method(\..+)?\.({'|'.join(LATE_STARTS)})")
"""Settings of the step at which a penalty gets its weight."""
MOST_LISTED = 20
"""Largest number of environments that a message lists."""


class Criterion(NamedTuple):
    """Scores by which settings are selected."""

    values: dict[Any, pd.Series]
    """A score per run of each candidate, by its index in the table of means."""
    higher_is_better: bool


def split_left_out(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split runs into those that were trained on all environments and those that left one out."""
    if HELD_OUT not in runs:
        return runs, runs.iloc[:0]
    without = runs[HELD_OUT].notna()
    return runs[~without], runs[without]


def at_best_step(runs: pd.DataFrame, rule: Select = Select.best_validation) -> pd.DataFrame:
    """Give finished runs the metrics of the step that was best on the validation set.

    A metric that was not measured at that step keeps its value of the last one.

    Raises:
        UserError: a run has no such step.
    """
    best = PREFIXES[rule]
    name = f"{best}step"
    steps = runs[name] if name in runs else pd.Series(np.nan, index=runs.index)
    without = runs[(runs["status"] == "done") & steps.isna()]
    if len(without):
        run = without.iloc[0]
        raise UserError(
            f"--select {rule}: run {run.get('run_id', '')} ({run['method']} on {run['dataset']}) has no best "
            f"step: {_no_best_step(run, rule)}; or use --select last"
        )
    measured = [str(name).removeprefix(best) for name in runs if str(name).startswith(best)]
    there = [name for name in measured if name in runs]
    at_best = {name: runs[best + name].fillna(runs[name]) for name in there}
    return runs.assign(inactive=_reasons(runs, steps), **at_best)


def _reasons(runs: pd.DataFrame, steps: pd.Series) -> pd.Series:
    """Tell for each run why its method had not acted by the given step; runs whose method had keep `inactive`."""
    reasons = runs["inactive"] if "inactive" in runs else pd.Series(None, index=runs.index, dtype=object)
    for column in (str(name) for name in runs if LATE_START.fullmatch(str(name))):
        section, _, name = column.rpartition(".")
        names = [f"{section}.{setting}" for setting in LATE_STARTS[name]]
        weight, before = (pd.to_numeric(_column(runs, name), errors="coerce") for name in names)
        effect = late_effect(name, f"{section}.")
        early = pd.to_numeric(runs[column], errors="coerce") >= steps
        early &= weight.notna() & (weight != before.fillna(0.0))
        why = f"the best step in validation comes before {column} is over, so {effect} had not taken effect"
        reasons = reasons.mask(early, why)
    return reasons


def _column(runs: pd.DataFrame, name: str) -> pd.Series:
    """Return a column; all NaN where the table lacks it."""
    return runs[name] if name in runs else pd.Series(np.nan, index=runs.index)


def _no_best_step(run: pd.Series, rule: Select) -> str:
    """Tell why a finished run has no step that was best in validation."""
    if rule in CRITERIA and not missing(run.get(f"{BEST}step")):
        if rule in (Select.worst_class, Select.balanced) or "validation_accuracy_class_worst" not in run:
            return (
                f"no example of {run['dataset']} has an attribute, so groups and classes were not measured; "
                "dataset.attribute_from=none makes groups of classes"
            )
        return (
            "the attribute was not known in validation, by dataset.attribute_known; worst_class and balanced do "
            "without, and --where 'dataset.attribute_known=[train, validation]' takes the runs that have it"
        )
    if run.get("dataset.validation_share") == 0:
        return f"{run['dataset']} was made without a validation set, by dataset.validation_share=0"
    return (
        "trainer.evaluate_splits leaves the validation set out, its environments have too few examples for one, or an "
        "older version made the record (`--rerun stale` makes it anew)"
    )


def select_settings(means: pd.DataFrame, select: Select, runs: pd.DataFrame, left_out: pd.DataFrame) -> pd.DataFrame:
    """Select one row, that is one choice of settings, for each method on each problem.

    Only rows with the largest number of seeds are candidates. Of equally good ones the first in the table is taken,
    whose order is that of the settings.

    Args:
        means: rows of means, with `members`, the positions of their runs, and `higher_is_better` of the metric.
        select: any but `last`.
        runs: the runs of these rows.
        left_out: runs that left an environment out.

    Raises:
        UserError: what the selection needs was not run.
    """
    kept = []
    family = ["method", *problem_of(keys_of(runs)), "metric"]
    for _, indices in as_text(means, family).groupby(family, sort=False).groups.items():
        group = means.loc[indices]
        criterion = _criterion(group, select, runs, left_out)
        scored = group.loc[list(criterion.values)]
        candidates = scored.index[scored["n"] == scored["n"].max()]
        scores = {index: criterion.values[index] for index in candidates}
        best = best_of(scores, criterion.higher_is_better)
        equal = len(all_best(scores, criterion.higher_is_better))
        at = _at(group.loc[best], runs, select) if select in PREFIXES else "last"
        kept.append(means.loc[[best]].assign(candidates=len(group), equal_candidates=equal, at=at))
    return pd.concat(kept, ignore_index=True)


def _at(row: pd.Series, runs: pd.DataFrame, rule: Select) -> str:
    """Return the step of a row's numbers: the rule's name where they were measured at its step, else `last`."""
    name = f"{PREFIXES[rule]}{row['metric']}"
    return str(rule) if name in runs and runs[name].iloc[row["members"]].notna().all() else "last"


def _criterion(group: pd.DataFrame, select: Select, runs: pd.DataFrame, left_out: pd.DataFrame) -> Criterion:
    """Return the scores by which a selection judges the rows of a group. Raises UserError where there are none."""
    if select is Select.leave_one_env_out:
        return _left_out_scores(group, runs, left_out)
    first = group.iloc[0]
    if select is Select.oracle:
        members = [member for row_members in group["members"] for member in row_members]
        name = _of_oracle(str(first["metric"]), runs.iloc[members])
        higher = first["higher_is_better"]
        if higher is None:
            raise UserError(f"whether a high {name} is good is not known, so nothing can be selected by it")
    else:
        run = runs.iloc[first["members"][0]]
        name, higher = _primary(run, "validation")
        if select in CRITERIA:
            name, higher = f"validation_{CRITERIA[select]}", True
        if name not in runs:
            raise UserError(f"run {run['run_id']} has no {name}, which its settings would be selected by")
    return Criterion({index: runs[name].iloc[row["members"]] for index, row in group.iterrows()}, bool(higher))


def _of_oracle(metric: str, runs: pd.DataFrame) -> str:
    """Return the metric of the oracle: on the split `test_out`, which is kept for it, where all runs have one."""
    name = f"test_out_{metric.removeprefix('test_')}"
    there = metric.startswith("test_") and name in runs and bool(runs[name].notna().all())
    return name if there else metric


def _primary(run: pd.Series, split: str) -> tuple[str, bool]:
    """Return the primary metric of a run's task on a split, and whether high is good."""
    if missing(run.get("data.primary")):
        raise UserError(f"run {run['run_id']} was made by an older version; `--rerun stale` makes it anew")
    return f"{split}_{run['data.primary']}", bool(run["data.higher_is_better"])


def _left_out_scores(group: pd.DataFrame, runs: pd.DataFrame, left_out: pd.DataFrame) -> Criterion:
    """Return the mean scores of each candidate on environments that were left out of training, each in turn.

    Means are over seeds that have all environments, so each environment counts alike. Only candidates with the largest
    number of such seeds are judged.

    Raises:
        UserError: no candidate was run with each environment left out.
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
        index: _by_environment(finished[alike == settings], name, count)
        for index, settings, count in zip(group.index, joined(examples, keys), counts, strict=True)
    }
    seeds = sorted({seed for scores in tables.values() for seed in scores.index}, key=str)
    tables = {index: scores.reindex(index=seeds) for index, scores in tables.items()}
    gaps = [gap for gap in map(_gap, tables.values()) if gap]
    lacking = f"{len(gaps)} of {len(group)} settings lack runs, such as {gaps[0]}" if gaps else ""
    complete = {index: scores.dropna() for index, scores in tables.items()}
    largest = max(map(len, complete.values()))
    if not largest:
        raise UserError(_no_complete_settings(first, counts[0], lacking))
    if lacking:
        warnings.warn(
            f"--select leave_one_env_out: of {first['method']} on {first['dataset']} {lacking}; of each the seeds "
            "count that have every environment, and only settings with the most of these are judged",
            stacklevel=2,
        )
    candidates = {index: scores for index, scores in complete.items() if len(scores) == largest}
    common = [seed for seed in seeds if all(seed in scores.index for scores in candidates.values())]
    values = {index: scores.loc[common or scores.index].mean() for index, scores in candidates.items()}
    return Criterion(values, higher)


def _no_complete_settings(run: pd.Series, count: int, lacking: str) -> str:
    """Say that no settings were run with each environment left out, and which grid of a sweep does that."""
    listed = ", ".join(map(str, range(min(count, MOST_LISTED)))) + (", ..." if count > MOST_LISTED else "")
    return (
        f"--select leave_one_env_out: of {run['method']} on {run['dataset']} no settings were run with each of "
        f"its {count} environments left out; a sweep does it by grid: {{{HELD_OUT}: [null, {listed}]}}"
        f"{'; ' * bool(lacking)}{lacking}"
    )


def _gap(scores: pd.DataFrame) -> str:
    """Name the first missing run in words; empty where none is missing."""
    for seed, row in scores.iterrows():
        for environment, value in row.items():
            if missing(value):
                return f"seed {seed} without environment {environment}"
    return ""


def _by_environment(runs: pd.DataFrame, name: str, count: int) -> pd.DataFrame:
    """Arrange scores of runs that left an environment out by seed (rows) and environment (columns); NaN: no run."""
    if name not in runs or not count:
        return pd.DataFrame(columns=[0])
    environment = pd.to_numeric(runs[HELD_OUT], errors="coerce")
    narrow = pd.DataFrame({"seed": runs["seed"], "environment": environment, name: runs[name]})
    table = narrow.pivot_table(index="seed", columns="environment", values=name)
    # A record may claim any number of environments; one empty column more than there are runs shows that some lack.
    return table.reindex(columns=range(min(count, len(runs) + 1)))


def _settings(runs: pd.DataFrame) -> list[str]:
    """Return the columns in which runs agree that leave out different environments."""
    return [name for name in keys_of(runs) if name not in (HELD_OUT, "data.variant")]
