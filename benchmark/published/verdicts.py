"""Published numbers beside ours, with a verdict."""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from invbench.errors import UserError
from invbench.published.claims import Claim, Number, sources
from invbench.results.columns import SECTIONS, missing
from invbench.results.formats import Entry, Layout
from invbench.results.table import table
from invbench.runs.commands import parse_seeds
from invbench.sweeps.definition import Sweep, SweepCells

IMMATERIAL = ("trainer.evaluate_every", "trainer.evaluate_splits", "trainer.condense", "trainer.strategy")
"""Settings that change what is watched, or how it is computed, and no number but by rounding."""
NAMES = ("method", "dataset", "backbone", "protocol")
TOLD = 3
"""As many differing settings as a verdict tells."""

Facts = dict[str, str]
"""What a run is but for its seed, and for what does not matter."""


def sweep_of(claim: Claim) -> Sweep:
    """All runs of a claim."""
    cells = SweepCells(method=claim.method, dataset=claim.dataset, set=claim.set, grid=claim.grid)
    return Sweep(seeds=claim.seeds, cells=(cells,))


def against_published(results: pd.DataFrame, only: Iterable[str] | None = None) -> pd.DataFrame:
    """Every published number beside ours.

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
    wanted = _settings(claim)
    seeds = parse_seeds(claim.seeds)
    near = _finished(results, claim, wanted[0])
    facts = [_facts_of_row(row) for row in near.to_dict("records")]
    found = _runs_of(near, facts, wanted, seeds)
    n = int((found["seed"].value_counts() == len(wanted)).sum()) if len(found) else 0
    elsewhere = "" if len(found) or not facts else _nearest(facts, wanted)
    for number in claim.numbers:
        row = {
            "claim": name, "what": claim.what, "method": claim.method, "dataset": claim.dataset,
            "metric": number.metric if number.statistic == "mean" else f"{number.metric} ({number.statistic})",
            "published": number.shown, "ours": math.nan, "half_width": math.nan, "n": n, "seeds": len(seeds),
            "verdict": "different protocol" if elsewhere else "not yet run", "why": elsewhere,
            "seconds": found["cost.wall_seconds"].mean() if len(found) else math.nan,
            "source": source, "note": claim.note,
        }  # fmt: skip
        yield row | (_judged(number, claim, found) if n == len(seeds) else {})


def _runs_of(near: pd.DataFrame, facts: list[Facts], wanted: list[Facts], seeds: list[int]) -> pd.DataFrame:
    """The claim's runs, one of each settings and seed, without the settings that do not matter."""
    if not len(near):
        return near
    found = near.assign(_settings=[wanted.index(own) if own in wanted else -1 for own in facts])
    found = found[(found["_settings"] >= 0) & found["seed"].isin(seeds)]
    kept = found.drop_duplicates(["_settings", "seed"], keep="last")
    return kept.drop(columns=["_settings", *(name for name in IMMATERIAL if name in kept)])


def _judged(number: Number, claim: Claim, found: pd.DataFrame) -> dict[str, Any]:
    """Ours, its interval, and the verdict; why there is none where the runs lack what it needs."""
    try:
        shown = table(found, number.metric, claim.select).iloc[0]
    except UserError as error:
        return {"verdict": "different protocol", "why": str(error)}
    ours = float(pd.Series(shown["seeds"]).agg(number.statistic))
    half_width = shown["half_width"] if number.statistic == "mean" else math.nan
    verdict = "reproduced" if number.agrees(ours) else "not reproduced"
    return {"ours": ours, "half_width": half_width, "verdict": verdict if claim.verified else "recalled"}


def _finished(results: pd.DataFrame, claim: Claim, like: Facts) -> pd.DataFrame:
    """Finished runs of the claim's method and dataset."""
    if not len(results):
        return results
    alike = (results["method"] == like["method"]) & (results["dataset"] == claim.dataset)
    return results[alike & (results["status"] == "done")]


def _settings(claim: Claim) -> list[Facts]:
    """What its runs have in common whatever their seed, for each value of the grid."""
    specs = [cell.spec for cell in sweep_of(claim).model_copy(update={"seeds": 0}).runs()]
    return [_facts({name: getattr(spec, name) for name in NAMES} | spec.flat()) for spec in specs]


def _facts(values: Mapping[str, Any]) -> Facts:
    """What two runs must share, as text; what is missing is left out, and a number is a number."""
    found = {}
    for name, value in values.items():
        if name not in IMMATERIAL and not missing(value):
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
            found[name] = repr(float(value)) if number else str(value)
    return found


def _facts_of_row(row: Mapping[Hashable, Any]) -> Facts:
    """Of a row of results. Published numbers are of whole data sets."""
    settings = {str(name): value for name, value in row.items() if str(name).startswith(SECTIONS)}
    partial = {"data": "a part"} if row.get("data.variant") == "partial" else {}
    return _facts({name: row[name] for name in NAMES} | settings | partial)


def _nearest(facts: Iterable[Facts], wanted: Iterable[Facts]) -> str:
    """In what the run that is most like one of the claim's differs from it."""
    differences = [
        [
            f"{name} {own.get(name, 'unset')} instead of {one.get(name, 'unset')}"
            for name in sorted({*own, *one})
            if own.get(name) != one.get(name)
        ]
        for own in facts
        for one in wanted
    ]
    nearest = min(differences, key=len) or ["other seeds"]
    more = f" and {len(nearest) - TOLD} more" if len(nearest) > TOLD else ""
    return ", ".join(nearest[:TOLD]) + more


def verdicts(found: pd.DataFrame) -> tuple[Layout, list[str]]:
    """The table for people, without the numbers that nothing is known of, and what they must know of it.

    Args:
        found: as `against_published` returns it.
    """
    said = [f"{count} {verdict}" for verdict, count in found["verdict"].value_counts().items()]
    known = found[(found["verdict"] != "not yet run") | (found["n"] > 0)]
    rows: list[tuple[list[str], list[Entry | None]]] = []
    for _, row in known.iterrows():
        spread = "" if pd.isna(row["half_width"]) else f" ± {row['half_width']:.2g}"
        ours = "" if pd.isna(row["ours"]) else f"{row['ours']:.4g}{spread}"
        verdict = f"{row['verdict']}: {row['why']}" if row["why"] else row["verdict"]
        rows.append(([row["claim"], row["metric"], row["published"], ours, f"{row['n']}/{row['seeds']}", verdict], []))
    remarks = [
        f"{', '.join(said)}; `bench ls published` lists all, `bench reproduce` runs them",
        "published: value ± standard deviation; ours: mean ± 95 % t-interval, or median; seeds done and needed",
    ]
    noted = known[known["note"] != ""].groupby("note", sort=False)["claim"].unique()
    remarks += [f"{', '.join(claims)}: {note}" for note, claims in noted.items()]
    return Layout(["claim", "metric", "published", "ours", "seeds", "verdict"], [], rows), remarks
