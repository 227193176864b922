"""Carry rows of an edition out again, a sample of them, and say to which digit they are reproduced."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from invbench.choices import Select
from invbench.errors import RunFailed, UserError
from invbench.leaderboard.build import LEFT_OUT, RULES, SEARCH, judged
from invbench.leaderboard.edition import BASELINE, Edition
from invbench.leaderboard.standings import metric_of_rows
from invbench.results.columns import SECTIONS, as_text, missing
from invbench.results.layout import Layout
from invbench.results.load import row_of_record
from invbench.results.rounding import rounded
from invbench.results.selection import BEST
from invbench.results.statistics import half_width
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig, resolve
from invbench.sweeps.folder import reopen
from invbench.training.runner import run_one

EXACT = 17
"""Digits of numbers that are the same."""
ENOUGH = 3
"""Digits from which on numbers are not called others, however small the spread of seeds is."""
MOST_OTHERS = 0.05
"""Largest share of rows that may be other numbers: in a few long runs rounding grows without a bound."""
MUCH = 0.1
"""Shift of the mean, in standard deviations over seeds, that rounding does not make."""
VERDICTS = (THE_SAME, WITHIN, OTHER) = ("the same numbers", "within the spread of seeds", "another number")


def sampled(rows: Mapping[str, pd.DataFrame], sample: int, seed: int = 0) -> pd.DataFrame:
    """Draw runs at random, also such as failed: one half among the fresh runs, which are shown, the other among trials.

    Args:
        rows: by problem, as `build` returns them.
        sample: number of runs.
        seed: of the random numbers.
    """
    every = pd.concat(list(rows.values()), ignore_index=True)
    order = np.random.default_rng(seed).permutation(len(every))
    is_fresh = every["stage"].isin(list(map(str, RULES))).to_numpy()[order]
    fresh, trials = order[is_fresh], order[~is_fresh]
    count = max((sample + 1) // 2, sample - len(trials))
    chosen = np.concatenate([fresh[:count], trials[: sample - len(fresh[:count])]])
    return every.iloc[np.sort(chosen)].reset_index(drop=True)


def config_of(edition: Edition, row: "pd.Series[Any]") -> RunConfig:
    """Rebuild the run of a row from the edition and the row's settings.

    Raises:
        UserError: the edition has no such run: its identity is another one than the row says.
    """
    settings = {
        str(name): _plain(value) for name, value in row.items() if str(name).startswith(SECTIONS) and not missing(value)
    }
    problem = edition.problem(str(row["problem"]))
    method, stage = str(row["method"]), str(row["stage"])
    config = resolve(
        method,
        problem.dataset,
        int(row["seed"]),
        edition.settings_of(method, problem) | settings,
        protocol=stage if stage in set(map(str, RULES)) else "last",  # type: ignore[arg-type]
    )
    if config.spec.run_id != row["run_id"]:
        raise UserError(
            f"{row['problem']}: run {row['run_id']} of {method} is none of this edition; its settings make run "
            f"{config.spec.run_id}"
        )
    return config


def _plain(value: Any) -> Any:
    """Return a list for an array, and an integer for a whole number, which a column with gaps makes a float."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return int(value) if isinstance(value, float) and value.is_integer() else value


def verify(
    edition: Edition,
    rows: Mapping[str, pd.DataFrame],
    sample: int,
    out: Path,
    seed: int = 0,
    each: Callable[[str], object] = lambda text: None,
    some: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Carry a sample of the rows out again, one by one, and compare all numbers that runs are judged and selected by.

    These are, by stage, the metric of the problem, the score in validation or on what was left out, each at the step
    that counts. The number that agrees least is told.

    Columns: problem, method, stage, seed, run_id, number (its name), row (what the row says), again (what is found
    now), digits (that agree; 17 for the same number), deviations (their distance in standard deviations over the fresh
    seeds of ERM, or over the row's own seeds where these are larger), above (the same of the number that tables show,
    with its sign: positive where the row is better), verdict, and note: other data, or why the run failed. Runs that
    were trained together differ by rounding from those that are trained alone, and rounding grows with the steps.

    Args:
        rows: by problem, as `build` returns them.
        sample: number of runs.
        out: folder of the runs; what was carried out there before is carried out again.
        seed: of the sample.
        each: called with a line about each row.
        some: those of the rows that are sampled; None takes all.

    Raises:
        UserError: a row has settings that are those of no trial.
    """
    results: list[dict[str, Any]] = []
    for count, (_, row) in enumerate(chosen := list(sampled(some or rows, sample, seed).iterrows())):
        name = str(row["problem"])
        config = config_of(edition, row)
        if not edition.is_trial(name, config.spec):
            raise UserError(f"{name}: run {row['run_id']} of {row['method']} has settings that are those of no trial")
        again, note = _again(config, out, edition.problem(name).minus_half, row)
        result = {column: row[column] for column in ("problem", "method", "stage", "seed", "run_id")}
        results.append(result | _compared(rows[name], row, again) | {"note": note})
        run = f"{name} {row['method']} seed {row['seed']}"
        each(f"{count + 1}/{len(chosen)}  {run}: {results[-1]['verdict']} ({results[-1]['digits']} digits)")
    return pd.DataFrame(results)


def _compared(table: pd.DataFrame, row: "pd.Series[Any]", again: "pd.Series[Any]") -> dict[str, Any]:
    """Compare the numbers of a row with those of now: the one that agrees least, and how far apart they are."""
    metric, higher = metric_of_rows(table)
    primary = table["data.primary"].dropna().iloc[0]
    at_best = [f"{BEST}{metric}", f"{BEST}validation_{primary}"]
    used = {
        SEARCH: [metric, *at_best],
        LEFT_OUT: [f"held_out_{primary}"],
        Select.best_validation.value: at_best,
    }.get(row["stage"], [metric, f"validation_{primary}"])
    names = [name for name in used if not missing(row.get(name))]
    seeds = (table[(table["stage"] == RULES[0].value) & (table["method"] == BASELINE)], _siblings(table, row))
    results = {
        name: _distance(
            float(row[name]), float(again.get(name, math.nan)), max(_spread(runs, name, metric) for runs in seeds), name
        )
        for name in names or [metric]
    }
    worst = max(results.values(), key=lambda result: (VERDICTS.index(result["verdict"]), -result["digits"]))
    shown_metric = BEST + metric if row["stage"] in (SEARCH, Select.best_validation.value) else metric
    above = results.get(shown_metric, results.get(metric, worst))["signed"] * (1 if higher else -1)
    return {name: value for name, value in worst.items() if name != "signed"} | {"above": above}


def _siblings(table: pd.DataFrame, row: "pd.Series[Any]") -> pd.DataFrame:
    """Return the runs of a row's method, stage and settings, with all their seeds."""
    runs = table[(table["method"] == row["method"]) & (table["stage"] == row["stage"])]
    settings = as_text(runs, [name for name in map(str, runs) if name.startswith(SECTIONS)])
    siblings: pd.DataFrame = runs[(settings == settings[runs["run_id"] == row["run_id"]].iloc[0]).all(axis=1)]
    return siblings


def _spread(runs: pd.DataFrame, name: str, metric: str) -> float:
    """Return the standard deviation of a number over runs; 0 where it is not known.

    Fresh runs leave no environment out; a score on one is taken to be spread as the metric is.
    """
    known = name if name in runs and runs[name].notna().any() else metric
    deviation = float(runs[known].std(ddof=1)) if known in runs else math.nan
    return deviation if math.isfinite(deviation) else 0.0


def _distance(row: float, again: float, deviation: float, name: str) -> dict[str, Any]:
    digits = agreeing_digits(row, again)
    signed = 0.0 if digits == EXACT else (row - again) / deviation if deviation > 0 else math.nan
    verdict = THE_SAME if digits == EXACT else WITHIN if abs(signed) < 1 or digits >= ENOUGH else OTHER
    numbers = {"number": name, "row": row, "again": again, "digits": digits, "deviations": abs(signed)}
    return numbers | {"signed": signed, "verdict": verdict}


def _again(config: RunConfig, out: Path, minus_half: str | None, row: "pd.Series[Any]") -> tuple["pd.Series[Any]", str]:
    """Carry a run out. Returns its numbers as `load_results` has them, none where it fails, and a note."""
    reopen([config], out)
    try:
        record: Record = run_one(config, Options(out=out, quiet=True, threads=1))
    except RunFailed as failure:
        return pd.Series(dtype=object), str(failure)
    run = judged(pd.DataFrame([row_of_record(record)]), minus_half).iloc[0]
    other = not missing(row["data.fingerprint"]) and record.data["fingerprint"] != row["data.fingerprint"]
    return run, "other data than the row's" if other else "" if row["status"] == "done" else "the row says it failed"


def agreeing_digits(first: float, second: float) -> int:
    """Count the significant digits to which two numbers agree; 17 where they are equal, 0 where one is not finite.

    >>> agreeing_digits(0.5, 0.5), agreeing_digits(0.51234, 0.51235), agreeing_digits(1.0, 2.0)
    (17, 4, 0)
    """
    if first == second or (math.isnan(first) and math.isnan(second)):
        return EXACT
    if not (math.isfinite(first) and math.isfinite(second)):
        return 0
    return max(0, min(EXACT - 1, math.floor(-math.log10(abs(first - second) / max(abs(first), abs(second))))))


def laid_out(table: pd.DataFrame) -> tuple[Layout, list[str]]:
    """Lay the comparison out for people, with a line that counts."""
    names = ["problem", "method", "stage", "seed", "number", "row", "again", "digits", "verdict"]
    rows: list[list[str]] = []
    for _, row in table.iterrows():
        verdict = f"{row['verdict']}: {row['note']}" if row["note"] else row["verdict"]
        head = [row["problem"], row["method"], row["stage"], str(row["seed"]), row["number"]]
        rows.append([*head, f"{row['row']:.6g}", f"{row['again']:.6g}", str(row["digits"]), verdict])
    counts = [f"{count} {verdict}" for verdict, count in table["verdict"].value_counts().items()]
    remarks = [f"{len(table)} rows: {', '.join(counts)}"]
    mean, half = mean_shift(table)
    if not math.isnan(half):
        remarks.append(
            f"rows that differ are better than what is found now by {rounded(mean, half)} standard deviations "
            "in the mean; honest ones are better as often as worse"
        )
    return Layout(names, [], [(head, []) for head in rows]), remarks


def mean_shift(table: pd.DataFrame) -> tuple[float, float]:
    """Return by how much rows that differ are better than what is found now, and its 95 % interval's half width.

    Both are in standard deviations over seeds, and NaN for fewer than two such rows.
    """
    shifts = table["above"][table["above"] != 0].dropna()
    return (float(shifts.mean()), half_width(shifts)) if len(shifts) > 1 else (math.nan, math.nan)


def flatters(table: pd.DataFrame) -> bool:
    """Tell whether rows are better than what is found now by more than chance and rounding can be."""
    mean, half = mean_shift(table)
    return mean > half and mean > MUCH
