"""Lay a table of means out: its rows and columns, its cells, and the notes below it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from invbench.choices import Format, Select
from invbench.errors import UserError, did_you_mean
from invbench.results.columns import SECTIONS, as_text, missing, problem_of, settings_of
from invbench.results.display_names import display_dataset, display_method, display_metric
from invbench.results.rounding import rounded
from invbench.results.selection import PREFIXES
from invbench.results.statistics import (
    LEVEL,
    against_best,
    all_best,
    critical_difference,
    friedman,
    half_width,
    is_p_value,
    is_share,
    is_share_of_cost,
    ranks,
)

CHOSEN_BY = {
    Select.best_validation: "the validation set",
    Select.worst_group: "the worst group of the validation set",
    Select.group_average: "the mean over groups of the validation set",
    Select.worst_class: "the worst class of the validation set",
    Select.balanced: "the mean over classes of the validation set",
    Select.leave_one_env_out: "environments left out of training, each in turn",
    Select.oracle: "what is shown (oracle), so test data choose: for comparison, not a result",
}
"""What settings were chosen by, in words."""

Key = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of a row and of a column of the table as it is laid out."""


class Entry(NamedTuple):
    """One cell: a mean with its interval and its marks."""

    mean: str
    """The mean with its interval, as text."""
    n: str
    """Number of finished runs, such as `3`; `2/5` where three of five are not finished."""
    best: bool
    tied: bool


@dataclass(frozen=True)
class Style:
    """Rules for names and numbers: spelling, digits, units."""

    paper: bool = True
    """Show names as a paper has them, not as they are registered; set the best in bold, not with a star."""
    digits: int | None = None
    """Decimals. None: as the interval warrants, or three significant digits without an interval."""
    percent: bool = False
    """Multiply shares, such as accuracies, by 100."""

    @classmethod
    def of(cls, how: Format, digits: int | None = None, percent: bool = False) -> "Style":
        """Return the style of a format: text shows names as they are typed, the others as a paper has them."""
        return cls(how is not Format.text, digits, percent)

    @property
    def separator(self) -> str:
        """Return the text between the parts of a title."""
        return ", " if self.paper else " "

    def head(self, column: str) -> str:
        """Return the title of a column of names; settings keep their dotted names."""
        return column if "." in column or not self.paper else column.capitalize()

    def name(self, column: str, label: str) -> str:
        """Return the text that shows a label of a column."""
        if column == "metric":
            return self.metric(label)
        if self.paper and column in ("method", "dataset"):
            return display_method(label) if column == "method" else display_dataset(label)
        return _short(label)

    def metric(self, name: str) -> str:
        """Return the name of a metric, followed by (%) where it is shown in per cent."""
        return (display_metric(name) if self.paper else name) + (" (%)" if self.percent and is_share(name) else "")

    def mean(self, metric: str, mean: float, half_width: float) -> str:
        """Return a mean with its interval as text; a half_width of NaN means that there is no interval."""
        factor = 100 if self.percent and is_share(metric) else 1
        return rounded(factor * mean, factor * half_width, self.digits)


PAPER, TERMINAL = Style(), Style(paper=False)


@dataclass(frozen=True)
class Layout:
    """A table for people: rows of names and cells under titles."""

    names: list[str]
    """Titles of the columns that say what a row is."""
    titles: list[str]
    """Titles of the columns of cells."""
    rows: list[tuple[list[str], list[Entry | None]]]
    """Names and cells of each row; None is an empty cell."""
    label: str = "tab:results"
    """Name by which LaTeX refers to the table."""


def laid_out(
    table: pd.DataFrame,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    style: Style = TERMINAL,
    with_mean: bool = False,
) -> Layout:
    """Lay a table of means out: put each of its rows into a cell, by some of its columns.

    Args:
        table: as `invbench.table` returns it.
        rows: columns that tell the rows apart; by default the method, and the settings in which one method's runs
            differ.
        columns: columns that tell the columns apart; by default the problem, with the metric where that differs.
        style: rules for names and numbers.
        with_mean: add a column with the mean of each row, as DomainBed prints it; its interval is over seeds.

    Raises:
        UserError: no such column; or one cell would have more than one mean.
    """
    problem = problem_of(table)
    known = list(dict.fromkeys(["method", *problem, *settings_of(table), "metric"]))
    for name in (*rows, *columns):
        if name not in known:
            raise UserError(
                f"these results do not differ in '{name}'{did_you_mean(name, known)}; they do in {', '.join(known)}"
            )
    labels = _labels(table)
    needed = [name for name in _differing_within(labels, ["method", *problem, "metric"]) if name not in columns]
    down = list(rows) or [name for name in ("method", *needed) if name not in columns]
    across = list(columns) or [name for name in problem if name not in rows]
    if not columns and table["metric"].nunique() > 1:
        across.append("metric")
    index_of = _index_by_cell(labels, down, across, known)
    heads = list(dict.fromkeys(head for head, _ in index_of))
    titles = list(dict.fromkeys(title for _, title in index_of))
    entries = {index: _entry(row, style) for index, row in table.iterrows()}
    body = [
        (
            [style.name(*part) for part in zip(down, head, strict=True)],
            [entries.get(index_of.get((head, title))) for title in titles],
        )
        for head in heads
    ]
    shown_titles = [
        style.separator.join(_titled(*part, style) for part in zip(across, title, strict=True) if part[1])
        or style.metric(str(table["metric"].iloc[0]))
        for title in titles
    ]
    if with_mean:
        shown_titles.append("mean")
        for (_, cells), entry in zip(body, _means(table, index_of, heads, titles, style), strict=True):
            cells.append(entry)
    return Layout([style.head(name) for name in down], shown_titles, body)


def _means(
    table: pd.DataFrame,
    index_of: dict[Key, Any],
    heads: Sequence[tuple[str, ...]],
    titles: Sequence[tuple[str, ...]],
    style: Style,
) -> list[Entry | None]:
    """Average the cells of each row, seed by seed; None where a cell is empty or the cells have no common seed."""
    if table["metric"].nunique() > 1:
        raise UserError("a mean over columns needs one metric in all of them; name it by --metric")
    metric, higher = table["metric"].iloc[0], table["higher_is_better"].iloc[0]
    if is_p_value(metric):
        raise UserError(f"{metric}: p-values of several problems have no mean; leave out --mean")
    of_seed: dict[Any, pd.Series] = {}
    seeds: dict[Any, Any] = table["seeds"].to_dict()
    for head in heads:
        cells = [index_of.get((head, title)) for title in titles]
        if all(cell is not None for cell in cells):
            of_seed[head] = pd.DataFrame([pd.Series(seeds[cell]) for cell in cells]).dropna(axis=1).mean()
    of_seed = {head: values for head, values in of_seed.items() if len(values)}
    compared = not missing(higher) and len(of_seed) > 1
    best = all_best(of_seed, bool(higher)) if compared else set()
    p_values = against_best(of_seed, bool(higher)) if compared else {}
    return [
        Entry(
            style.mean(metric, float(values.mean()), half_width(values)),
            str(len(values)),
            head in best,
            head not in best and p_values.get(head, 0.0) > 1 - LEVEL,
        )
        if (values := of_seed.get(head)) is not None
        else None
        for head in heads
    ]


def _index_by_cell(
    labels: pd.DataFrame, down: Sequence[str], across: Sequence[str], known: Iterable[str]
) -> dict[Key, Any]:
    """Return the index of the table's row that each cell shows. Raises UserError where two rows have one cell."""
    index_of: dict[Key, Any] = {}
    for index, row in labels.iterrows():
        key = tuple(row[name] for name in down), tuple(row[name] for name in across)
        if key in index_of:
            other = labels.loc[index_of[key]]
            unlike = next(name for name in known if row[name] != other[name])
            raise UserError(
                f"{' '.join((*key[0], *key[1]))}: runs with {unlike} {other[unlike] or 'unset'} and "
                f"{row[unlike] or 'unset'} are not averaged; name {unlike} in --rows or --columns, "
                "or choose one with --select"
            )
        index_of[key] = index
    return index_of


def notes(table: pd.DataFrame, left: dict[str, int], style: Style = TERMINAL) -> list[str]:
    """Return the lines that a reader of the table needs: legend, selection, ties, ranks, runs left out.

    Args:
        table: as `invbench.table` returns it.
        left: number of runs that are not in the table, as `omitted` returns it.
        style: rules for names and numbers.
    """
    lines = _legend(table, style)
    p_values = _metrics(table[table["metric"].map(is_p_value)], style)
    if p_values:
        lines.append(f"{', '.join(p_values)}: twice the median over seeds, Holm-corrected over the table's rows")
    if table["metric"].str.endswith("invariance_p").any():
        lines.append("a small one: given the prediction, the target is not distributed alike in all environments")
    unknown = _metrics(table[table["higher_is_better"].isna() & ~table["metric"].map(is_p_value)], style)
    if unknown:
        lines.append(f"no best is marked for {', '.join(unknown)}: whether a high one is good is not known")
    select = Select(str(table["selection"].iloc[0]))
    if select is not Select.last:
        lines.append(_chosen(select, int(table["candidates"].max()), style))
    lines += _shares(table, style)
    lines += _ties(table, style)
    lines += _chosen_before(table)
    late = _metrics(table[table["at"] == "last"], style)
    if select in PREFIXES and late:
        lines.append(f"{', '.join(late)}: of the last step, since it is measured at no other")
    labels = _labels(table)
    problem = [*problem_of(table), "metric"]
    within = _differing_within(labels, ["method", *problem])
    among = _differing_within(labels, problem)
    among = [name for name in among if name not in within and not name.startswith("method.")]
    if among:
        lines.append(
            f"on one problem, methods also differ in {', '.join(among)}"
            f"{'' if style.paper else ' (recipes and sweeps may give each its own)'}"
        )
    lines += _rank_lines(table, style)
    lines += _levels(table, style)
    return lines + [f"not in the table: {count} {status}" for status, count in left.items()]


def _shares(table: pd.DataFrame, style: Style) -> list[str]:
    """Name the rows whose cost is a share of what several runs cost together."""
    if "fused" not in table:
        return []
    rows = zip(_methods_and_problems(table, style), table["metric"], table["fused"], strict=True)
    shares = [pair for pair, metric, fused in rows if is_share_of_cost(metric, fused)]
    return [f"shares of runs that were trained together, not compared with others: {_together(shares)}"] * bool(shares)


def _ties(table: pd.DataFrame, style: Style) -> list[str]:
    """Name the rows where other settings were as good as the chosen ones."""
    if "equal_candidates" not in table:
        return []
    rows = zip(_methods_and_problems(table, style), table["equal_candidates"], strict=True)
    tied = [pair for pair, equal in rows if equal > 1]
    largest = table["equal_candidates"].max()
    return [f"up to {largest} settings were equally good, and the first are shown: {_together(tied)}"] if tied else []


def _methods_and_problems(table: pd.DataFrame, style: Style) -> list[tuple[str, str]]:
    """Return the method and the problem of each row."""
    methods = [style.name("method", str(method)) for method in table["method"]]
    return list(zip(methods, problems(table, style), strict=True))


def _together(pairs: Sequence[tuple[str, str]]) -> str:
    """Put pairs of method and problem into words; methods on the same problems are joined."""
    problems_of: dict[str, dict[str, None]] = {}
    for method, problem in pairs:
        problems_of.setdefault(method, {})[problem] = None
    methods_on: dict[str, list[str]] = {}
    for method, on in problems_of.items():
        methods_on.setdefault(", ".join(on), []).append(method)
    return "; ".join(f"{', '.join(methods)} on {on}" for on, methods in methods_on.items())


def _chosen_before(table: pd.DataFrame) -> list[str]:
    """Tell how settings were chosen on other seeds, for runs whose protocol says so."""
    protocols = set(table["settings_chosen_by"]) - {"last"}
    return [
        f"settings of runs with protocol {name} were chosen on other seeds by {_settings_by(Select(name))}; shown is "
        f"the {'step that was best in validation' if (table['at'] != 'last').all() else 'last step'}"
        for name in sorted(protocols)
    ]


def _chosen(select: Select, candidates: int, style: Style) -> str:
    """Tell by what settings and steps were chosen; where there was one setting each, only steps were."""
    if candidates == 1 and select in PREFIXES:
        return f"of each run the step that was best by {CHOSEN_BY[select]}"
    by = _settings_by(select)
    rerun = "" if style.paper else " (`bench rerun-best` runs them on others)"
    return (
        f"settings chosen among up to {candidates} by {by}; on the same seeds, so the intervals are too narrow{rerun}"
    )


def _settings_by(select: Select) -> str:
    """Tell by what settings were chosen, and whether steps were, too."""
    return CHOSEN_BY[select] + (", and of each run the step" if select in PREFIXES else "")


def _levels(table: pd.DataFrame, style: Style) -> list[str]:
    """Tell what a constant prediction scores, and which penalties never acted."""
    if "constant" not in table:
        return []
    labels = problems(table, style)
    rows = zip(labels, table["metric"], table["constant"], strict=True)
    levels = {problem: level * (100 if style.percent and is_share(metric) else 1) for problem, metric, level in rows}
    known = [f"{problem} {level:.3g}" for problem, level in levels.items() if not math.isnan(level)]
    lines = [f"a constant prediction scores: {', '.join(known)}"] if known else []
    inactive: dict[str, list[tuple[str, str]]] = {}
    for pair, reason in zip(_methods_and_problems(table, style), table["inactive"], strict=True):
        if reason:
            inactive.setdefault(reason, []).append(pair)
    return [*lines, *(f"{_together(pairs)}: {reason}" for reason, pairs in inactive.items())]


def _legend(table: pd.DataFrame, style: Style) -> list[str]:
    """Explain the numbers and the marks."""
    metrics = ", ".join(_metrics(table[~table["metric"].map(is_p_value)], style))
    if not metrics:
        return []
    tests = "paired t-tests over common seeds, Holm-corrected"
    if not style.paper:
        lines = [
            f"{metrics}: mean ± 95 % t-interval (number of seeds)",
            f"* best; † cannot be told from it at 5 % ({tests}); with few seeds little can be told",
        ]
    else:
        open_runs = "; k/n: k of n runs are finished" if (table["n"] != table["runs"]).any() else ""
        lines = [
            f"{metrics}: mean ± 95 % t-interval over seeds, in parentheses their number{open_runs}",
            f"Bold: the best; †: not distinguishable from it at 5 % ({tests}); with few seeds little can be told apart",
        ]
    return lines if table["best"].any() else lines[:1]


def _metrics(table: pd.DataFrame, style: Style) -> list[str]:
    """Return the names of the metrics in the table, each once."""
    return [style.metric(name) for name in dict.fromkeys(table["metric"])]


def rank_table(table: pd.DataFrame, style: Style = TERMINAL) -> pd.DataFrame | None:
    """Rank the methods (columns) on the problems (rows); 1 is the best.

    Only the methods on the largest number of problems are ranked, and only on the problems that all of them have.
    None where a method has several rows on a problem, or where it is not known whether a high metric is good.
    """
    scores = table.assign(problem=problems(table, style), score=table["mean"])
    if table["higher_is_better"].isna().any() or scores.duplicated(["method", "problem"]).any():
        return None
    scores["score"] *= [1 if higher else -1 for higher in table["higher_is_better"]]
    counts = scores["method"].value_counts()
    ranked = scores[scores["method"].isin(counts.index[counts == counts.max()])]
    return ranks(ranked.pivot_table(index="problem", columns="method", values="score").dropna(), higher_is_better=True)


def problems(table: pd.DataFrame, style: Style = TERMINAL) -> list[str]:
    """Return the name of each row's problem: the dataset, with the settings in which its rows differ."""
    names = problem_of(table)
    return [
        style.separator.join(_titled(name, row[name], style) for name in names if row[name])
        for _, row in _labels(table).iterrows()
    ]


def _labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text; settings and variant of a dataset are empty where all its rows share them."""
    labels = as_text(table, list(map(str, table)))
    _, *names = problem_of(table)
    if names:
        differs = labels.groupby("dataset")[names].transform("nunique") > 1
        labels[names] = labels[names].where(differs, "")
    return labels


def _differing_within(labels: pd.DataFrame, group: Sequence[str]) -> list[str]:
    """Return the settings, protocol and backbone in which rows differ that agree in the group's columns."""
    names = settings_of(labels)
    grouped = labels.groupby(list(group), sort=False)
    return [name for name in names if name not in group and (grouped[name].nunique() > 1).any()]


def _rank_lines(table: pd.DataFrame, style: Style) -> list[str]:
    """Compare the mean ranks of at least 3 methods on at least 2 problems."""
    ranked = rank_table(table)
    if ranked is None or ranked.shape[0] < 2 or ranked.shape[1] < 3:
        return []
    order = ranked.mean().sort_values()
    means = ", ".join(f"{style.name('method', str(name))} {rank:.2f}" for name, rank in order.items())
    difference = critical_difference(ranked.shape[1], ranked.shape[0])
    line = (
        f"mean ranks over {len(ranked)} datasets: {means}; those closer than {difference:.2f} cannot be told apart "
        f"(Nemenyi, 5 %); all alike: p = {friedman(ranked):.3g} (Friedman)"
    )
    others = [style.name("method", name) for name in sorted(set(table["method"]) - set(ranked.columns))]
    return [line, *([f"without a rank, since they are on fewer datasets: {', '.join(others)}"] if others else [])]


def _entry(row: pd.Series, style: Style) -> Entry:
    """Make the cell of a row."""
    n = str(row["n"]) if row["n"] == row["runs"] else f"{row['n']}/{row['runs']}"
    mean = style.mean(row["metric"], row["mean"], row["half_width"])
    return Entry(mean, n, bool(row["best"]), bool(row["tied"]))


def _titled(name: str, label: str, style: Style) -> str:
    """Return one part of a title: a setting with its name, anything else without."""
    return f"{name.partition('.')[2]}={_short(label)}" if name.startswith(SECTIONS) else style.name(name, label)


def _short(label: str) -> str:
    """Shorten a number of more than 8 characters to four significant digits; other text stays."""
    try:
        return f"{float(label):.4g}" if len(label) > 8 else label
    except ValueError:
        return label
