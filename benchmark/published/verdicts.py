"""Compare published numbers with ours."""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from invbench.errors import UserError
from invbench.published.claims import Claim, Number, sources
from invbench.results.columns import SECTIONS, missing
from invbench.results.layout import Entry, Layout
from invbench.results.rounding import rounded
from invbench.results.table import table
from invbench.runs.commands import parse_seeds
from invbench.sweeps.definition import Sweep, SweepCells

IMMATERIAL = ("trainer.evaluate_every", "trainer.evaluate_splits", "trainer.condense", "trainer.strategy")
"""Settings that change which metrics are watched, or how a step is computed; results differ by rounding at most."""
NAMES = ("method", "dataset", "backbone", "protocol")
LISTED = 3
"""Largest number of differing settings that a verdict lists."""

Facts = dict[str, str]
"""Settings of a run as text, without the seed and without IMMATERIAL ones."""


def sweep_of(claim: Claim) -> Sweep:
    """Return the sweep of all runs of a claim."""
    cells = SweepCells(method=claim.method, dataset=claim.dataset, set=claim.set, grid=claim.grid)
    return Sweep(seeds=claim.seeds, cells=(cells,))


def against_published(results: pd.DataFrame, only: Iterable[str] | None = None) -> pd.DataFrame:
    """Compare every published number with ours, a row each.

    Columns: claim, what, method, dataset, metric, published (text), ours (the statistic over the claim's seeds, NaN
    where they are not all done), half_width (of the mean), n (of its seeds that are done), seeds (how many it needs),
    verdict, why (where it is `different protocol`: in what the nearest run differs), seconds (the mean time of a run),
    source, note.

    A verdict is `reproduced`, `not reproduced`, `different protocol`, `not yet run`, or `recalled` for a number that
    nobody verified.

    Args:
        results: as `load_results` returns it.
        only: names of claims; all where it is None.
    """
    rows = [
        row
        for source in sources().values()
        for name, claim in source.claims.items()
        if only is None or name in only
        for row in _rows(name, claim, source.source, results)
    ]
    return pd.DataFrame(rows)


def _rows(name: str, claim: Claim, source: str, results: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """Yield a row for each number of a claim."""
    claimed = _settings(claim)
    seeds = parse_seeds(claim.seeds)
    candidates = _finished(results, claim, claimed[0])
    facts = [_facts_of_row(row) for row in candidates.to_dict("records")]
    runs = _runs_of(candidates, facts, claimed, seeds)
    n = int((runs["seed"].value_counts() == len(claimed)).sum()) if len(runs) else 0
    difference = "" if len(runs) or not facts else _nearest(facts, claimed)
    for number in claim.numbers:
        row = {
            "claim": name, "what": claim.what, "method": claim.method, "dataset": claim.dataset,
            "metric": number.metric if number.statistic == "mean" else f"{number.metric} ({number.statistic})",
            "published": number.shown, "ours": math.nan, "half_width": math.nan, "n": n, "seeds": len(seeds),
            "verdict": "different protocol" if difference else "not yet run", "why": difference,
            "seconds": runs["cost.wall_seconds"].mean() if len(runs) else math.nan,
            "source": source, "note": claim.note,
        }  # fmt: skip
        yield row | (_verdict(number, claim, runs) if n == len(seeds) else {})


def _runs_of(candidates: pd.DataFrame, facts: list[Facts], claimed: list[Facts], seeds: list[int]) -> pd.DataFrame:
    """Return the claim's runs, one of each settings and seed, without the columns of IMMATERIAL settings."""
    if not len(candidates):
        return candidates
    runs = candidates.assign(_settings=[claimed.index(run) if run in claimed else -1 for run in facts])
    runs = runs[(runs["_settings"] >= 0) & runs["seed"].isin(seeds)]
    kept = runs.drop_duplicates(["_settings", "seed"], keep="last")
    return kept.drop(columns=["_settings", *(name for name in IMMATERIAL if name in kept)])


def _verdict(number: Number, claim: Claim, runs: pd.DataFrame) -> dict[str, Any]:
    """Return our number, its interval and the verdict; or why there is none where the runs lack what it needs."""
    try:
        row = table(runs, number.metric, claim.select).iloc[0]
    except UserError as error:
        return {"verdict": "different protocol", "why": str(error)}
    ours = float(pd.Series(row["seeds"]).agg(number.statistic))
    half_width = row["half_width"] if number.statistic == "mean" else math.nan
    verdict = "reproduced" if number.agrees(ours) else "not reproduced"
    return {"ours": ours, "half_width": half_width, "verdict": verdict if claim.verified else "recalled"}


def _finished(results: pd.DataFrame, claim: Claim, like: Facts) -> pd.DataFrame:
    """Return the finished runs of the claim's method and dataset."""
    if not len(results):
        return results
    alike = (results["method"] == like["method"]) & (results["dataset"] == claim.dataset)
    return results[alike & (results["status"] == "done")]


def _settings(claim: Claim) -> list[Facts]:
    """Return what the claim's runs have in common whatever their seed, for each point of the grid."""
    specs = [cell.spec for cell in sweep_of(claim).model_copy(update={"seeds": 0}).runs()]
    return [_facts({name: getattr(spec, name) for name in NAMES} | spec.flat()) for spec in specs]


def _facts(values: Mapping[str, Any]) -> Facts:
    """Return what two runs must share as text, without missing values; 1 and 1.0 are the same number."""
    facts = {}
    for name, value in values.items():
        if name not in IMMATERIAL and not missing(value):
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
            facts[name] = repr(float(value)) if number else str(value)
    return facts


def _facts_of_row(row: Mapping[Hashable, Any]) -> Facts:
    """Return the facts of a row of results, with that its data are a part: published numbers are of whole data sets."""
    settings = {str(name): value for name, value in row.items() if str(name).startswith(SECTIONS)}
    partial = {"data": "a part"} if row.get("data.variant") == "partial" else {}
    return _facts({name: row[name] for name in NAMES} | settings | partial)


def _nearest(facts: Iterable[Facts], claimed: Iterable[Facts]) -> str:
    """List the differences between the run that is most like one of the claim's and that one."""
    differences = [
        [
            f"{name} {run.get(name, 'unset')} instead of {claim.get(name, 'unset')}"
            for name in sorted({*run, *claim})
            if run.get(name) != claim.get(name)
        ]
        for run in facts
        for claim in claimed
    ]
    nearest = min(differences, key=len) or ["other seeds"]
    more = f" and {len(nearest) - LISTED} more" if len(nearest) > LISTED else ""
    return ", ".join(nearest[:LISTED]) + more


def verdicts(numbers: pd.DataFrame) -> tuple[Layout, list[str]]:
    """Lay the table of published numbers out for people, without those that have no run, and add remarks.

    Args:
        numbers: as `against_published` returns it.
    """
    counts = [f"{count} {verdict}" for verdict, count in numbers["verdict"].value_counts().items()]
    known = numbers[(numbers["verdict"] != "not yet run") | (numbers["n"] > 0)]
    rows: list[tuple[list[str], list[Entry | None]]] = []
    for _, row in known.iterrows():
        ours = "" if pd.isna(row["ours"]) else rounded(row["ours"], row["half_width"])
        verdict = f"{row['verdict']}: {row['why']}" if row["why"] else row["verdict"]
        rows.append(([row["claim"], row["metric"], row["published"], ours, f"{row['n']}/{row['seeds']}", verdict], []))
    remarks = [
        f"{', '.join(counts)}; `bench ls published` lists all, `bench reproduce` runs them",
        "published: value ± standard deviation; ours: mean ± 95 % t-interval, or median; seeds done and needed",
    ]
    noted = known[known["note"] != ""].groupby("note", sort=False)["claim"].unique()
    remarks += [f"{', '.join(claims)}: {note}" for note, claims in noted.items()]
    return Layout(["claim", "metric", "published", "ours", "seeds", "verdict"], [], rows), remarks
