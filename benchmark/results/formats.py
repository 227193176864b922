"""A table of means laid out, as text, CSV, Markdown, LaTeX or HTML."""

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from invbench.choices import Format as Format  # also for those who import it from here
from invbench.choices import Select
from invbench.errors import UserError, did_you_mean
from invbench.results.columns import SECTIONS, as_text, problem_of, settings_of
from invbench.results.display_names import display_dataset, display_method, display_metric
from invbench.results.statistics import ROUNDING, critical_difference, friedman, is_share, is_share_of_cost, ranks
from invbench.terminal import visible

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\symbol{34}", "±": r"$\pm$", "†": r"$^{\dagger}$",
        "[": "{[}", "*": "{*}",  # which a row's end before them would take for its own
    }
)  # fmt: skip
MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~#$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})

CHOSEN_BY = {
    Select.best_validation: "the validation set, and of each run the step",
    Select.leave_one_env_out: "environments left out of training, each in turn",
    Select.oracle: "what is shown (oracle): an upper bound, not a result",
}


class Entry(NamedTuple):
    """What stands in one place."""

    mean: str
    """With its interval."""
    n: str
    """`3`, or `2/5` where runs are not finished."""
    best: bool
    tied: bool


@dataclass(frozen=True)
class Style:
    """How names and numbers are written."""

    paper: bool = True
    """Names as a paper has them, not as they are registered; the best in bold, not with a star."""
    digits: int | None = None
    """After the point. None: as many as the first digit of the interval needs; without an interval three in all."""
    percent: bool = False
    """Multiply shares, such as accuracies, by 100."""

    @classmethod
    def of(cls, how: Format, digits: int | None = None, percent: bool = False) -> "Style":
        """The one for a format: in a terminal names are as one types them."""
        return cls(how is not Format.text, digits, percent)

    @property
    def separator(self) -> str:
        """Between the parts of a title."""
        return ", " if self.paper else " "

    def head(self, column: str) -> str:
        """Of a column of names; settings are called as they are set."""
        return column if "." in column or not self.paper else column.capitalize()

    def name(self, column: str, label: str) -> str:
        """What stands in a column, as it is shown."""
        if column == "metric":
            return self.metric(label)
        if self.paper and column in ("method", "dataset"):
            return display_method(label) if column == "method" else display_dataset(label)
        return _short(label)

    def metric(self, name: str) -> str:
        """A metric, with its unit if that is per cent."""
        return (display_metric(name) if self.paper else name) + (" (%)" if self.percent and is_share(name) else "")

    def mean(self, metric: str, mean: float, half_width: float) -> str:
        """A mean with its interval; NaN: it has none."""
        factor = 100 if self.percent and is_share(metric) else 1
        return _rounded(factor * mean, factor * half_width, self.digits)


PAPER, TERMINAL = Style(), Style(paper=False)


@dataclass(frozen=True)
class Layout:
    """Rows of names and entries under titles."""

    names: list[str]
    """Of the columns that say what a row is."""
    titles: list[str]
    rows: list[tuple[list[str], list[Entry | None]]]
    label: str = "tab:results"
    """By which LaTeX refers to it."""


def laid_out(
    found: pd.DataFrame, rows: Sequence[str] = (), columns: Sequence[str] = (), style: Style = TERMINAL
) -> Layout:
    """Place each row of a table (`invbench.table`) by some of its columns.

    Args:
        found: as `table` returns it.
        rows: what tells the rows apart; by default the method, and the settings in which one method's runs differ.
        columns: what tells the columns apart; by default the problem, with the metric where that differs.

    Raises:
        UserError: no such column; or more than one mean would stand in one place.
    """
    problem = problem_of(found)
    known = list(dict.fromkeys(["method", *problem, *settings_of(found), "metric"]))
    for name in (*rows, *columns):
        if name not in known:
            raise UserError(
                f"these results do not differ in '{name}'{did_you_mean(name, known)}; they do in {', '.join(known)}"
            )
    labels = _labels(found)
    needed = [name for name in _differing_within(labels, ["method", *problem, "metric"]) if name not in columns]
    down = list(rows) or [name for name in ("method", *needed) if name not in columns]
    across = list(columns) or [name for name in problem if name not in rows]
    if not columns and found["metric"].nunique() > 1:
        across.append("metric")
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
    for place, row in labels.iterrows():
        where = tuple(row[name] for name in down), tuple(row[name] for name in across)
        if where in places:
            other = labels.loc[places[where]]
            unlike = next(name for name in known if row[name] != other[name])
            raise UserError(
                f"{' '.join((*where[0], *where[1]))}: runs with {unlike} {other[unlike] or 'unset'} and "
                f"{row[unlike] or 'unset'} are not averaged; name {unlike} in --rows or --columns, "
                "or choose one with --select"
            )
        places[where] = place
    heads = list(dict.fromkeys(where[0] for where in places))
    titles = list(dict.fromkeys(where[1] for where in places))
    entries = {place: _entry(row, style) for place, row in found.iterrows()}
    body = [
        (
            [style.name(*part) for part in zip(down, head, strict=True)],
            [entries.get(places.get((head, title))) for title in titles],
        )
        for head in heads
    ]
    shown = [
        style.separator.join(_titled(*part, style) for part in zip(across, title, strict=True) if part[1])
        or style.metric(str(found["metric"].iloc[0]))
        for title in titles
    ]
    return Layout([style.head(name) for name in down], shown, body)


def notes(found: pd.DataFrame, left: dict[str, int], style: Style = TERMINAL) -> list[str]:
    """What a reader must know of a table, a line each.

    Args:
        found: as `table` returns it.
        left: as `omitted` returns it.
    """
    lines = _legend(found, style)
    unknown = _metrics(found[found["higher_is_better"].isna()], style)
    if unknown:
        lines.append(f"no best is marked for {', '.join(unknown)}: whether a high one is good is not known")
    select = Select(str(found["selection"].iloc[0]))
    if select is not Select.last:
        lines.append(
            f"settings chosen among up to {found['candidates'].max()} by {CHOSEN_BY[select]}; on the same seeds, so "
            f"the intervals are too narrow{'' if style.paper else ' (`bench rerun-best` runs them on others)'}"
        )
    lines += _shares(found, style)
    lines += _ties(found, style)
    lines += _chosen_before(found)
    late = _metrics(found[found["at"] == "last"], style)
    if select is Select.best_validation and late:
        lines.append(f"{', '.join(late)}: of the last step, since it is measured at no other")
    labels = _labels(found)
    problem = [*problem_of(found), "metric"]
    own = _differing_within(labels, ["method", *problem])
    among = [name for name in _differing_within(labels, problem) if name not in own and not name.startswith("method.")]
    if among:
        lines.append(
            f"on one problem, methods also differ in {', '.join(among)}"
            f"{'' if style.paper else ' (recipes and sweeps may give each its own)'}"
        )
    lines += _rank_lines(found, style)
    lines += _levels(found, style)
    return lines + [f"not in the table: {count} {status}" for status, count in left.items()]


def _shares(found: pd.DataFrame, style: Style) -> list[str]:
    """Of which rows the cost is a share of what several runs have cost together."""
    if "fused" not in found:
        return []
    shares = [
        place
        for place, metric, fused in zip(_places(found, style), found["metric"], found["fused"], strict=True)
        if is_share_of_cost(metric, fused)
    ]
    return [f"shares of runs that were trained together, not compared with others: {_together(shares)}"] * bool(shares)


def _ties(found: pd.DataFrame, style: Style) -> list[str]:
    """Where other settings were as good as the chosen ones."""
    if "equal_candidates" not in found:
        return []
    rows = zip(_places(found, style), found["equal_candidates"], strict=True)
    tied = [place for place, equal in rows if equal > 1]
    most = found["equal_candidates"].max()
    return [f"up to {most} settings were equally good, and the first are shown: {_together(tied)}"] if tied else []


def _places(found: pd.DataFrame, style: Style) -> list[tuple[str, str]]:
    """The method and the problem of each row."""
    methods = [style.name("method", str(method)) for method in found["method"]]
    return list(zip(methods, problems(found, style), strict=True))


def _together(places: Sequence[tuple[str, str]]) -> str:
    """Methods and problems in words: those with the same problems together."""
    problems_of: dict[str, dict[str, None]] = {}
    for method, problem in places:
        problems_of.setdefault(method, {})[problem] = None
    methods_on: dict[str, list[str]] = {}
    for method, on in problems_of.items():
        methods_on.setdefault(", ".join(on), []).append(method)
    return "; ".join(f"{', '.join(methods)} on {on}" for on, methods in methods_on.items())


def _chosen_before(found: pd.DataFrame) -> list[str]:
    """By what the settings of runs were chosen on other seeds, which their protocol says."""
    protocols = set(found["settings_chosen_by"]) - {"last"}
    return [
        f"settings of runs with protocol {name} were chosen on other seeds by {CHOSEN_BY[Select(name)]}; shown is the "
        f"{'step that was best in validation' if (found['at'] == 'best_validation').all() else 'last step'}"
        for name in sorted(protocols)
    ]


def _levels(found: pd.DataFrame, style: Style) -> list[str]:
    """What a constant prediction scores, and which penalties never acted."""
    if "constant" not in found:
        return []
    labels = problems(found, style)
    rows = zip(labels, found["metric"], found["constant"], strict=True)
    levels = {problem: level * (100 if style.percent and is_share(metric) else 1) for problem, metric, level in rows}
    known = [f"{problem} {level:.3g}" for problem, level in levels.items() if not math.isnan(level)]
    lines = [f"a constant prediction scores: {', '.join(known)}"] if known else []
    where: dict[str, list[tuple[str, str]]] = {}
    for place, why in zip(_places(found, style), found["inactive"], strict=True):
        if why:
            where.setdefault(why, []).append(place)
    return [*lines, *(f"{_together(places)}: {why}" for why, places in where.items())]


def _legend(found: pd.DataFrame, style: Style) -> list[str]:
    """What the numbers and the marks mean."""
    metrics = ", ".join(_metrics(found, style))
    tests = "paired t-tests over common seeds, Holm-corrected"
    if not style.paper:
        lines = [
            f"{metrics}: mean ± 95 % t-interval (number of seeds)",
            f"* best; † cannot be told from it at 5 % ({tests}); with few seeds little can be told",
        ]
    else:
        open_runs = "; k/n: k of n runs are finished" if (found["n"] != found["runs"]).any() else ""
        lines = [
            f"{metrics}: mean ± 95 % t-interval over seeds, in parentheses their number{open_runs}",
            f"Bold: the best; †: not distinguishable from it at 5 % ({tests}); with few seeds little can be told apart",
        ]
    return lines if found["best"].any() else lines[:1]


def _metrics(found: pd.DataFrame, style: Style) -> list[str]:
    return [style.metric(name) for name in dict.fromkeys(found["metric"])]


def rank_table(found: pd.DataFrame, style: Style = TERMINAL) -> pd.DataFrame | None:
    """Ranks of methods (columns) on problems (rows), of those methods that are on the most, where all of them are.

    None where a method has several rows on a problem, or whether a high metric is good is not known.
    """
    scores = found.assign(problem=problems(found, style), score=found["mean"])
    if found["higher_is_better"].isna().any() or scores.duplicated(["method", "problem"]).any():
        return None
    scores["score"] *= [1 if higher else -1 for higher in found["higher_is_better"]]
    counts = scores["method"].value_counts()
    most = scores[scores["method"].isin(counts.index[counts == counts.max()])]
    return ranks(most.pivot_table(index="problem", columns="method", values="score").dropna(), higher_is_better=True)


def problems(found: pd.DataFrame, style: Style = TERMINAL) -> list[str]:
    """What each row's problem is called: the dataset, with the settings in which the rows of that dataset differ."""
    names = problem_of(found)
    return [
        style.separator.join(_titled(name, row[name], style) for name in names if row[name])
        for _, row in _labels(found).iterrows()
    ]


def _labels(found: pd.DataFrame) -> pd.DataFrame:
    """The table as text; a setting of a dataset, and the data's variant, only where the rows of that dataset differ."""
    labels = as_text(found, list(map(str, found)))
    _, *names = problem_of(found)
    if names:
        differs = labels.groupby("dataset")[names].transform("nunique") > 1
        labels[names] = labels[names].where(differs, "")
    return labels


def _differing_within(labels: pd.DataFrame, group: Sequence[str]) -> list[str]:
    """Settings, protocol and backbone, where rows that agree in the group's columns differ."""
    names = settings_of(labels)
    grouped = labels.groupby(list(group), sort=False)
    return [name for name in names if name not in group and (grouped[name].nunique() > 1).any()]


def _rank_lines(found: pd.DataFrame, style: Style) -> list[str]:
    ranked = rank_table(found)
    if ranked is None or ranked.shape[0] < 2 or ranked.shape[1] < 3:
        return []
    order = ranked.mean().sort_values()
    means = ", ".join(f"{style.name('method', str(name))} {rank:.2f}" for name, rank in order.items())
    difference = critical_difference(ranked.shape[1], ranked.shape[0])
    line = (
        f"mean ranks over {len(ranked)} datasets: {means}; those closer than {difference:.2f} cannot be told apart "
        f"(Nemenyi, 5 %); all alike: p = {friedman(ranked):.3g} (Friedman)"
    )
    others = [style.name("method", name) for name in sorted(set(found["method"]) - set(ranked.columns))]
    return [line, *([f"without a rank, since they are on fewer datasets: {', '.join(others)}"] if others else [])]


def written(layout: Layout, remarks: Sequence[str], how: Format) -> str:
    """The table in a format other than CSV, with the remarks where they can stand in it.

    Names are text and nothing else: what means something to the format is escaped, control characters are shown.
    """
    rows = [([*map(visible, head)], entries) for head, entries in layout.rows]
    layout = replace(layout, names=[*map(visible, layout.names)], titles=[*map(visible, layout.titles)], rows=rows)
    return WRITERS[how](layout, [*map(visible, remarks)])


def _text(layout: Layout, remarks: Sequence[str]) -> str:
    def shown(entry: Entry | None) -> str:
        if entry is None:
            return ""
        return f"{entry.mean} ({entry.n}){'*' if entry.best else '†' if entry.tied else ' '}"

    frame = pd.DataFrame(
        [[*head, *map(shown, entries)] for head, entries in layout.rows], columns=[*layout.names, *layout.titles]
    )
    return "\n".join([frame.to_string(index=False), "", *remarks])


def _markdown(layout: Layout, remarks: Sequence[str]) -> str:
    def shown(entry: Entry | None) -> str:
        if entry is None:
            return ""
        mean = f"**{entry.mean}**" if entry.best else entry.mean
        return f"{mean} ({entry.n}){'†' if entry.tied else ''}"

    heads = [*layout.names, *layout.titles]
    lines = [[text.translate(MARKDOWN) for text in heads], ["---"] * len(layout.names) + ["---:"] * len(layout.titles)]
    lines += [[*(text.translate(MARKDOWN) for text in head), *map(shown, entries)] for head, entries in layout.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + "\n\n" + "  \n".join(line.translate(MARKDOWN) for line in remarks)


def _latex(layout: Layout, remarks: Sequence[str]) -> str:
    def shown(entry: Entry | None) -> str:
        if entry is None:
            return ""
        mean = re.sub(r"(?<!e)-", "$-$", entry.mean.translate(LATEX))
        mean = re.sub(r"e([+-]\d+)", lambda power: rf"$\times 10^{{{int(power[1])}}}$", mean)
        mean = rf"\textbf{{{mean}}}" if entry.best else mean
        return f"{mean} ({entry.n})" + (r"$^{\dagger}$" if entry.tied else "")

    heads = " & ".join(text.translate(LATEX) for text in (*layout.names, *layout.titles))
    lines = [[*(text.translate(LATEX) for text in head), *map(shown, entries)] for head, entries in layout.rows]
    sentences = [re.sub("^[a-z](?=[a-z]* )", lambda first: first[0].upper(), line) for line in remarks]
    caption = " ".join(f"{line}." for line in sentences).translate(LATEX)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{caption}}}"] if remarks else []),
            rf"\label{{{layout.label}}}",
            r"\medskip",
            rf"\begin{{tabular}}{{{'l' * len(layout.names)}{'r' * len(layout.titles)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _html(layout: Layout, remarks: Sequence[str]) -> str:
    def shown(entry: Entry | None) -> str:
        if entry is None:
            return "<td></td>"
        mean = f"<strong>{entry.mean}</strong>" if entry.best else entry.mean
        return f"<td>{mean} ({entry.n}){'<sup>†</sup>' if entry.tied else ''}</td>"

    heads = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in (*layout.names, *layout.titles))
    body = [
        "".join(f'<th scope="row">{html.escape(text)}</th>' for text in head) + "".join(map(shown, entries))
        for head, entries in layout.rows
    ]
    said = "<br>\n".join(map(html.escape, remarks))
    return "\n".join(
        [
            "<table>", f"<thead><tr>{heads}</tr></thead>", "<tbody>", *(f"<tr>{line}</tr>" for line in body),
            "</tbody>", "</table>", f"<p>{said}</p>",
        ]
    )  # fmt: skip


WRITERS: dict[Format, Callable[[Layout, Sequence[str]], str]] = {
    Format.text: _text, Format.markdown: _markdown, Format.latex: _latex, Format.html: _html,
}  # fmt: skip


def _entry(row: pd.Series, style: Style) -> Entry:
    n = str(row["n"]) if row["n"] == row["runs"] else f"{row['n']}/{row['runs']}"
    mean = style.mean(row["metric"], row["mean"], row["half_width"])
    return Entry(mean, n, bool(row["best"]), bool(row["tied"]))


def _rounded(mean: float, half_width: float, digits: int | None) -> str:
    """A mean and its interval with the same number of decimals; of very small and very large ones as powers of ten."""
    known = half_width > ROUNDING * abs(mean)  # that of equal values is zero
    if digits is None:
        last = _leading(half_width) if known else _leading(mean, 3) - 2
        if not -5 < max(last, _leading(mean)) < 5:
            return _in_powers(mean, half_width, last)
        digits = max(0, -last)
    texts = [f"{round(value, digits) + 0.0:.{digits}f}" for value in (mean, half_width)]  # never -0
    return texts[0] if math.isnan(half_width) else " ± ".join(texts)


def _in_powers(mean: float, half_width: float, last: int) -> str:
    text = f"{mean:.{max(0, _leading(mean) - last)}e}"
    return text if math.isnan(half_width) else f"{text} ± {half_width:.0e}"


def _leading(value: float, digits: int = 1) -> int:
    """The power of ten of a number's first digit, once it is rounded to so many."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2]) if math.isfinite(value) else 0


def _titled(name: str, label: str, style: Style) -> str:
    """A setting says its name, what else there is speaks for itself."""
    return f"{name.partition('.')[2]}={_short(label)}" if name.startswith(SECTIONS) else style.name(name, label)


def _short(label: str) -> str:
    """A number with digits that nobody reads, as one that somebody does."""
    try:
        return f"{float(label):.4g}" if len(label) > 8 else label
    except ValueError:
        return label
