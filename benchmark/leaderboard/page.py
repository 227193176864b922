"""Write the leaderboard as one page: a self-contained HTML file that needs no network."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from pydantic_core import to_json

from invbench.choices import Select
from invbench.errors import UserError
from invbench.files import write_text
from invbench.leaderboard.build import RULES, RULES_IN_WORDS, SEARCH
from invbench.leaderboard.edition import BASELINE, Edition
from invbench.leaderboard.methods import ORACLE, changes, is_of_suite, knowledge_in_words, knows
from invbench.leaderboard.overall import (
    SHARED,
    overall,
    ranking,
    remarks,
    sentence,
    significance_in_words,
    standings_of_all,
)
from invbench.leaderboard.standings import ADDED, SMALLEST, fresh_runs, metric_of_rows, shown_name
from invbench.leaderboard.verify import config_of
from invbench.results.columns import as_text
from invbench.results.rounding import rounded
from invbench.runs.commands import command_of
from invbench.runs.resolve import resolve
from invbench.sweeps.search import Bounds
from invbench.terminal import visible_lines

POINTS = 40
"""Largest number of points of a curve."""
DIGITS, DIGITS_OF_CURVES = 6, 4
"""Significant digits of numbers in the page; a picture shows fewer."""
SUMMARY_HEADS = {
    "method": "as it is registered",
    "changes": "what it changes in empirical risk minimisation (ERM)",
    "knows": "what it is told beyond inputs and labels",
    "mean rank": "over the problems on which at least half of all methods can be run; 95 % of a bootstrap",
    "top 3": "probability of a place among the first three, by the same bootstrap",
    "better": "problems on which it is better than ERM",
    "same": "problems on which it cannot be told from ERM",
    "worse": "problems on which it is worse than ERM",
    "problems": "on which it has fresh runs by this rule",
    "cost": f"time of the whole tuning; ERM's is 1; median over problems; {SHARED}",
    "flattered": "share of problems on which selection scored more in validation than fresh seeds do",
}
"""Columns of the summary, and what they mean."""
STANDINGS_HEADS = {
    "method": "as it is registered",
    "rank": "1 is the best mean; none for methods that are told the answer",
    "mean": "over fresh seeds, with its 95 % interval",
    "vs ERM": "mean difference from ERM, paired by seed, with its 95 % interval",
    "verdict": f"paired t-test at 5 %, Holm-corrected over the methods; below {SMALLEST:.0%} of ERM's value it is none",
    "optimism": "validation score of the selected settings in the search, less that of the fresh runs",
    "seed SD": "standard deviation over fresh seeds",
    "search SD": "that which comes from searching: of searches that are drawn again from the trials",
    "tied": "settings that were equally good in validation; of these, the one with the smallest values is taken",
    "performance": "before the dependence is taken off",
    "dependence": "distance correlation of the score and the nuisance",
    "transformed": "mean change of predictions on transformed inputs",
    "failed": "trials of the search that failed",
    "inactive": "fresh runs whose penalty did not have its weight yet at the step that is shown, or moves nothing",
    "seconds": "of a fresh run, median",
    "tuning": "seconds of all its runs on this problem",
    "knows": "what it is told beyond inputs and labels",
}
"""Columns of the standings of a problem, and what they mean; those without any number are not shown."""

Cell = str | int | list[Any]
"""Cell of a table: a text or a whole number, or a text and the number by which it is sorted."""


def write_page(
    edition: Edition, rows: Mapping[str, pd.DataFrame], curves: Mapping[str, pd.DataFrame], out: Path
) -> None:
    """Write the page of an edition.

    Args:
        rows: by problem, as `build` returns them.
        curves: by problem, as `build.curves` returns them; a problem without curves is shown without.
        out: the file.

    Raises:
        UserError: there are no rows, or the file cannot be written.
    """
    text = page(edition, rows, curves)
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out}: it is no file, and is left as it is")
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None


def page(edition: Edition, rows: Mapping[str, pd.DataFrame], curves: Mapping[str, pd.DataFrame]) -> str:
    """Return the page of an edition as text; arguments and errors as in `write_page`."""
    rules = [rule for rule in RULES if any(rule.value in set(table["stage"]) for table in rows.values())]
    if not rules:
        raise UserError("there are no rows with selected settings; `bench leaderboard build` makes them")
    tables = {rule: standings_of_all(rows, rule) for rule in rules}
    summaries = {rule: overall(rows, rule, tables[rule]) for rule in rules}
    data = _visible(_data(edition, rows, curves, summaries, tables))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_template()).render(
        counts=_counts(edition, rows),
        made_by=f"invbench {version('invbench')}",
        answers=_visible(_answers(edition, rows, summaries)),
        heads=SUMMARY_HEADS,
        summary=[
            [shown_name(one), *(cell[0] if isinstance(cell, list) else cell for cell in row[1:])]
            for (_, one), row in zip(summaries[rules[0]].iterrows(), data["summary"][rules[0]], strict=True)
        ],
        data=data,
        oracle=Select.oracle.value,
        by_step=Select.best_validation.value,
        json=_as_json(data),
    )


def _template() -> str:
    """Read the template of the page."""
    return (files("invbench.leaderboard") / "page.html").read_text(encoding="utf-8")


def _visible(value: Any) -> Any:
    """Escape control characters in all texts of a value, names too; they could hide or turn what stands there."""
    if isinstance(value, str):
        return visible_lines(value)
    if isinstance(value, Mapping):
        return {_visible(name): _visible(part) for name, part in value.items()}
    return [_visible(part) for part in value] if isinstance(value, list | tuple) else value


def _as_json(data: Mapping[str, Any]) -> Markup:
    """Return data as JSON that cannot end the script element around it."""
    text = to_json(data, inf_nan_mode="null").decode()
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  JSON without a tag in it


def _counts(edition: Edition, rows: Mapping[str, pd.DataFrame]) -> str:
    """Say how much there is."""
    methods = {method for table in rows.values() for method in table["method"]}
    problems = f"{len(rows)} of {len(edition.problems)}" if len(rows) < len(edition.problems) else f"{len(rows)}"
    return f"{len(methods)} methods on {problems} problems, {sum(map(len, rows.values())):,} runs"


def _answers(
    edition: Edition, rows: Mapping[str, pd.DataFrame], summaries: Mapping[Select, pd.DataFrame]
) -> list[tuple[str, str]]:
    """Return what stands on top: questions and their answers in plain words."""
    rule, table = next(iter(summaries.items()))
    order = sentence(rows)
    done = (
        "Every method was tuned alike on every problem that admits it: the settings of its recipe and "
        f"{edition.trials} random ones, each with the seeds {edition.seeds}. A rule selected one of them, and that was "
        f"run again with the seeds {edition.fresh_seeds}, which had no part in the search. Only these fresh runs are "
        "shown."
    )
    answers = [("Which method works?", _who_works(table, rule)), ("What was done?", done)]
    if order:
        answers.append(("Does the order survive another rule?", f"{order[0].upper()}{order[1:]}."))
    return [*answers, ("What cannot be told?", _what_cannot_be_told(rows, rule))]


def _who_works(table: pd.DataFrame, rule: Select) -> str:
    """Say how many methods are better than ERM, which has the best mean rank, and where ERM is."""
    name = RULES_IN_WORDS[rule][0]
    others = table[(table["method"] != BASELINE) & ~table["knows"].str.contains(ORACLE)]
    better, same, worse = (int(others[column].sum()) for column in ("better", "same", "worse"))
    text = (
        f"Selected by {name}, methods that are not told the answer are better than empirical risk minimisation (ERM) "
        f"in {better} of {better + same + worse} cases, worse in {worse}, and cannot be told from it in {same}."
    )
    ranked = table.dropna(subset=["mean_rank"]).reset_index(drop=True)
    if not len(ranked):
        return text
    first, places = ranked.iloc[0], ranked.index[ranked["method"] == BASELINE]
    text += f" {first['method']} has the best mean rank, {first['mean_rank']:.1f} among {len(ranked)} methods"
    if first["method"] == BASELINE:
        return f"{text}."
    text += f"; it is better than ERM on {first['better']} of {first['problems']} problems"
    if math.isfinite(first["cost"]):
        text += f", and its tuning takes {_plain(first['cost'])} times as long"
    return f"{text}. ERM has place {places[0] + 1}." if len(places) else f"{text}."


def _what_cannot_be_told(rows: Mapping[str, pd.DataFrame], rule: Select) -> str:
    """Say how many methods can be told apart, and that problems are small."""
    try:
        ranked = ranking(rows, rule, resamples=1)
    except UserError as error:
        return f"There are {error}."
    words, difference = significance_in_words(ranked), f"{ranked.critical_difference:.1f}"
    return (
        f"{words[0].upper()}{words[1:]}; they must be {difference} apart. Problems are small forms, with few steps and "
        "examples; what is best on one can be worst on another: look at the one that is like yours."
    )


def _data(
    edition: Edition,
    rows: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    summaries: Mapping[Select, pd.DataFrame],
    tables: Mapping[Select, Mapping[str, pd.DataFrame]],
) -> dict[str, Any]:
    """Return all that the page shows, for JSON."""
    texts = _Texts()
    added = {method for table in summaries.values() for method in table.loc[table[ADDED], "method"]}
    impossible = {method for name in rows for method in edition.problem(name).impossible}
    of_rows: dict[str, str] = {}
    for table in rows.values():
        of_rows |= dict(zip(table["method"], table["knows"], strict=True))
    methods = sorted({str(method) for table in rows.values() for method in table["method"]} | impossible)
    return {
        "version": edition.version,
        "baseline": BASELINE,
        "rules": {rule.value: RULES_IN_WORDS[rule] for rule in summaries},
        "heads": {"summary": SUMMARY_HEADS, "standings": STANDINGS_HEADS},
        "summary": {rule.value: _summary(table) for rule, table in summaries.items()},
        "remarks": {rule.value: remarks(rows, rule) for rule in summaries},
        "difference": {rule.value: _critical_difference(rows, rule) for rule in summaries},
        "methods": {
            method: {
                "changes": changes(method),
                "knows": knowledge_in_words(of_rows[method] if method in of_rows else knows(method)),
                "added": method in added,
                "has_file": not is_of_suite(method),
            }
            for method in methods
        },
        "problems": {
            name: _problem(
                edition,
                name,
                rows[name],
                curves.get(name),
                {rule: tables[rule].get(name) for rule in summaries},
                methods,
                texts,
            )
            for name in edition.problems
            if name in rows
        },
        "not_built": [name for name in edition.problems if name not in rows],
        "texts": texts.all,
    }


class _Texts:
    """Texts that repeat, each of which the page has once; a call returns the place of one."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.all)
            self.all.append(text)
        return self._places[text]


def _critical_difference(rows: Mapping[str, pd.DataFrame], rule: Select) -> float | None:
    """Return the distance of mean ranks beyond which methods differ; None where there are no ranks."""
    try:
        return _number(ranking(rows, rule, resamples=1).critical_difference)
    except UserError:
        return None


def _summary(table: pd.DataFrame) -> list[list[Cell]]:
    """Return the rows of the summary by a rule, a cell per head."""
    cells: list[list[Cell]] = []
    for _, row in table.iterrows():
        method, rank = str(row["method"]), row["mean_rank"]
        ranks = f"{rank:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        verdicts: list[Cell] = [int(row[name]) for name in ("better", "same", "worse")]
        cells.append(
            [
                method,
                changes(method),
                knowledge_in_words(str(row["knows"])),
                _cell(ranks, rank),
                _cell(f"{row['top']:.0%}", row["top"]),
                *(["", "", ""] if method == BASELINE else verdicts),
                int(row["problems"]),
                _cell(_plain(row["cost"]), row["cost"]),
                _cell(f"{row['optimistic_share']:.0%}", row["optimistic_share"]),
            ]
        )
    return cells


def _problem(
    edition: Edition,
    name: str,
    table: pd.DataFrame,
    curves: pd.DataFrame | None,
    standings_by_rule: Mapping[Select, pd.DataFrame | None],
    methods: Sequence[str],
    texts: _Texts,
) -> dict[str, Any]:
    """Return what the page shows of a problem."""
    problem, (metric, higher) = edition.problem(name), metric_of_rows(table)
    with_runs = {rule: ranked for rule, ranked in standings_by_rule.items() if ranked is not None}
    constants = [ranked["constant"].iloc[0] for ranked in with_runs.values()]
    details = {rule: _details(edition, table, rule, texts) for rule in with_runs}
    missing = {
        rule: {
            method: [short, texts(reason)]
            for method in methods
            if method not in details.get(rule, {})
            for short, reason in [_why_missing(edition, name, table, method, rule)]
        }
        for rule in standings_by_rule
    }
    return {
        "what": problem.what,
        "metric": metric,
        "better": "high" if higher else "low",
        "constant": f"{constants[0]:.3g}" if constants and math.isfinite(constants[0]) else "",
        "form": _form(edition, name),
        "standings": {rule.value: _standings(ranked) for rule, ranked in with_runs.items()},
        "details": {rule.value: of_methods for rule, of_methods in details.items()},
        "missing": {rule.value: reasons for rule, reasons in missing.items()},
        "curves": {} if curves is None else _curves(curves),
    }


def _form(edition: Edition, name: str) -> dict[str, str]:
    """Return the form of a problem: title and text of each part."""
    problem = edition.problem(name)
    form = {"dataset": problem.dataset, "settings": _assignments(problem.set)}
    form["searched"] = ", ".join(
        f"{setting} {_range(values)}" for setting, values in (edition.ranges | problem.ranges).items()
    )
    form["environments that are left out in turn"] = str(problem.left_out or "none")
    if problem.shift is not None:
        form["shift of the test"] = "diversity {:.2f}, correlation {:.2f}".format(*problem.shift)
    form |= {f"settings of {method}": _assignments(values) for method, values in problem.set_of.items()}
    return form | {f"impossible for {method}": reason for method, reason in problem.impossible.items()}


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{setting}={value}" for setting, value in values.items())


def _range(values: tuple[Any, ...] | Bounds) -> str:
    """Write the range of a search."""
    if isinstance(values, Bounds):
        return f"from {values.low:g} to {values.high:g}"
    return f"one of {', '.join(map(str, values))}"


def _standings(table: pd.DataFrame) -> list[list[Cell]]:
    """Return the rows of standings, a cell per head."""
    cells: list[list[Cell]] = []
    for _, row in table.iterrows():
        is_baseline = row["method"] == BASELINE
        difference = rounded(row["difference"], row["difference_half_width"], sign="+")
        deviations, numbers = ["seed_deviation", "search_deviation"], ["performance", "dependence", "changes"]
        cells.append(
            [
                str(row["method"]),
                _cell(f"{row['rank']:g}", row["rank"]),
                _cell(rounded(row["mean"], row["half_width"]), row["mean"]),
                _cell("" if is_baseline else difference, row["difference"]),
                str(row["verdict"]),
                _cell(f"{row['optimism']:+.2g}", row["optimism"]),
                *(_cell(f"{row[column]:.2g}", row[column]) for column in deviations),
                int(row["tied"]),
                *(_cell(f"{row[column]:.2g}", row[column]) for column in numbers),
                int(row["failed"]),
                int(row["inactive"]),
                *(_cell(_plain(row[column]), row[column]) for column in ("seconds", "tuning_seconds")),
                knowledge_in_words(str(row["knows"])),
            ]
        )
    return cells


def _cell(text: str, value: float) -> Cell:
    """Return a cell with a number; an empty one where there is none."""
    return ["", None] if math.isnan(value) else [text, _number(value)]


def _plain(value: float) -> str:
    """Write a number with two digits or more, not with powers of ten."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _number(value: float, digits: int = DIGITS) -> float | None:
    """Round a number for JSON; None for one that is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _details(edition: Edition, table: pd.DataFrame, rule: Select, texts: _Texts) -> dict[str, dict[str, Any]]:
    """Return for each method its numbers with fresh seeds, its selected settings, and the command that makes them."""
    fresh, (metric, _) = fresh_runs(table, rule), metric_of_rows(table)
    columns = [name for name in map(str, fresh) if name.startswith(("method.", "trainer."))]
    texts_of_settings = as_text(fresh, columns)
    details = {}
    for method, runs in fresh.groupby("method"):
        runs = runs.sort_values("seed")
        settings = texts_of_settings.loc[runs.index[0]]
        command = _command(edition, runs)
        details[str(method)] = {
            "seeds": {str(run["seed"]): _number(run[metric]) for _, run in runs.iterrows()},
            "settings": [texts(f"{name} = {value}") for name, value in settings.items() if value],
            "command": [texts(part) for part in command.split(" --set ")],
        }
    return details


def _command(edition: Edition, runs: pd.DataFrame) -> str:
    """Return the command that repeats runs of a method, which differ by their seeds; or why there is none."""
    _, run = next(runs.iterrows())  # which makes numbers of Python of them
    try:
        return command_of(config_of(edition, run).spec, [int(seed) for seed in runs["seed"]])
    except UserError as error:
        return f"none: {error}"


def _why_missing(edition: Edition, name: str, table: pd.DataFrame, method: str, rule: Select) -> tuple[str, str]:
    """Say why a method has no fresh runs on a problem by a rule: in a word or two, and in a sentence."""
    problem, runs = edition.problem(name), table[table["method"] == method]
    if method in problem.impossible:
        return "impossible", problem.impossible[method]
    if not len(runs):
        try:
            resolve(method, problem.dataset, assignments=edition.settings_of(method, problem))
        except UserError as error:
            return "cannot run", str(error).partition("; datasets that can")[0]
        return "not run", "it could be run here, and was not yet"
    if rule.value not in set(table["stage"]):
        return "no rule", "this rule selects nothing on this problem: no environment is left out here"
    selected = runs[runs["stage"] == rule.value]
    failed = selected if len(selected) else runs[runs["stage"] == SEARCH]
    if len(failed) and (failed["status"] == "failed").all():
        kinds = ", ".join(sorted({str(kind) for kind in failed.get("kind", pd.Series(dtype=object)).dropna()}))
        what = "fresh runs of the selected settings" if len(selected) else "trials"
        return "failed", f"all {len(failed)} {what} failed{f' ({kinds})' if kinds else ''}"
    return "none selected", "this rule can select none of its settings, such as where it needs all environments"


def _curves(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return mean, least and largest value over seeds of each method's scores at a few steps."""
    curves: dict[str, dict[str, Any]] = {}
    for method, runs in table.groupby("method"):
        by_step = runs.groupby("step")[["validation", "test"]].agg(["mean", "min", "max"])
        places = np.unique(np.linspace(0, len(by_step) - 1, min(len(by_step), POINTS)).round().astype(int))
        kept = by_step.iloc[places]
        curves[str(method)] = {"step": [int(step) for step in kept.index]} | {
            split: [
                [_number(value, DIGITS_OF_CURVES) for value in kept[split, part]] for part in ("mean", "min", "max")
            ]
            for split in ("validation", "test")
        }
    return curves
