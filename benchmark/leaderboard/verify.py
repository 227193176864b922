"""Carry rows of an edition out again, a sample of them, and say to which digit they are reproduced."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from invbench.errors import RunFailed, UserError
from invbench.leaderboard.build import RULES, judged
from invbench.leaderboard.edition import Edition
from invbench.leaderboard.standings import BASELINE, metric_of_rows
from invbench.results.columns import SECTIONS, missing
from invbench.results.layout import Layout
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig, resolve
from invbench.training.runner import run_one

EXACT = 17
"""Digits of numbers that are the same."""
THE_SAME, WITHIN, OTHER = "the same numbers", "within the spread of seeds", "another number"


def sampled(rows: Mapping[str, pd.DataFrame], sample: int, seed: int = 0) -> pd.DataFrame:
    """Draw finished runs of any stage at random, each equally likely.

    Args:
        rows: by problem, as `build` returns them.
    """
    done = pd.concat([table[table["status"] == "done"] for table in rows.values()], ignore_index=True)
    chosen = np.random.default_rng(seed).permutation(len(done))[:sample]
    return done.iloc[np.sort(chosen)].reset_index(drop=True)


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
    if isinstance(value, np.ndarray):
        return value.tolist()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def verify(
    edition: Edition,
    rows: Mapping[str, pd.DataFrame],
    sample: int,
    out: Path,
    seed: int = 0,
    each: Callable[[str], object] = lambda text: None,
) -> pd.DataFrame:
    """Carry a sample of rows out again, one by one, and compare the metric of their problem at the last step.

    Columns: problem, method, stage, seed, run_id, row (the number of the row), again (the number now), digits (that
    agree; 17 for the same number), deviations (their distance in standard deviations over the fresh seeds of ERM),
    verdict, and note: other data, or why the run failed. Runs that were trained together differ by rounding from those
    that are trained alone, and rounding grows with the steps.

    Args:
        rows: by problem, as `build` returns them.
        sample: number of runs.
        out: folder of the runs.
        seed: of the sample.
        each: called with a line about each row.
    """
    results: list[dict[str, Any]] = []
    for count, (_, row) in enumerate(chosen := list(sampled(rows, sample, seed).iterrows())):
        table = rows[str(row["problem"])]
        metric, _ = metric_of_rows(table)
        minus = edition.problem(str(row["problem"])).minus
        again, note = _again(config_of(edition, row), out, metric, minus, row)
        digits = agreeing_digits(float(row[metric]), again)
        fresh = table[(table["stage"] == RULES[0].value) & (table["method"] == BASELINE)][metric]
        distance = abs(again - float(row[metric]))
        deviations = distance / fresh.std(ddof=1) if fresh.std(ddof=1) > 0 else math.inf if distance else 0.0
        result = {name: row[name] for name in ("problem", "method", "stage", "seed", "run_id")}
        result |= {"row": float(row[metric]), "again": again, "digits": digits, "deviations": float(deviations)}
        verdict = THE_SAME if digits == EXACT else WITHIN if deviations < 1 or digits >= 3 else OTHER
        results.append(result | {"verdict": verdict, "note": note})
        run = f"{row['problem']} {row['method']} seed {row['seed']}"
        each(f"{count + 1}/{len(chosen)}  {run}: {verdict} ({digits} digits)")
    return pd.DataFrame(results)


def _again(config: RunConfig, out: Path, metric: str, minus: str | None, row: "pd.Series[Any]") -> tuple[float, str]:
    """Carry a run out. Returns its metric, NaN where it fails, and a note."""
    try:
        record: Record = run_one(config, Options(out=out, quiet=True, threads=1))
    except RunFailed as failure:
        return math.nan, str(failure)
    other = record.data["fingerprint"] != row["data.fingerprint"]
    facts = {f"data.{name}": record.data[name] for name in ("primary", "metric")}
    run = judged(pd.DataFrame([record.metrics | facts]), minus).iloc[0]
    return float(run[metric]), "other data than the row's" if other else ""


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
    names = ["problem", "method", "stage", "seed", "row", "again", "digits", "verdict"]
    rows: list[list[str]] = []
    for _, row in table.iterrows():
        verdict = f"{row['verdict']}: {row['note']}" if row["note"] else row["verdict"]
        head = [row["problem"], row["method"], row["stage"], str(row["seed"])]
        rows.append([*head, f"{row['row']:.6g}", f"{row['again']:.6g}", str(row["digits"]), verdict])
    counts = [f"{count} {verdict}" for verdict, count in table["verdict"].value_counts().items()]
    remarks = [f"{len(table)} rows: {', '.join(counts)}"]
    return Layout(names, [], [(head, []) for head in rows]), remarks
