"""A table of means laid out, as text, CSV, Markdown, LaTeX or HTML."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import pandas as pd

from invbench.errors import UserError, did_you_mean
from invbench.grouping import SECTIONS, as_text, problem_of, settings_of
from invbench.selection import Select
from invbench.statistics import critical_difference, friedman, ranks
from invbench.terminal import visible

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "†": r"$^{\dagger}$",
        "[": "{[}", "*": "{*}",  # which a row's end before them would take for its own
    }
)  # fmt: skip
MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~#$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})

CHOSEN_BY = {
    Select.best_validation: "the validation set, and of each run the step",
    Select.leave_one_env_out: "environments left out of training, each in turn",
    Select.oracle: "what is shown (oracle): an upper bound, not a result",
}


class Format(StrEnum):
    """How a table is written."""

    text = "text"
    csv = "csv"
    markdown = "markdown"
    latex = "latex"
    html = "html"


class Entry(NamedTuple):
    """What stands in one place."""

    mean: str
    """With its interval."""
    n: str
    """`3`, or `2/5` where runs are not finished."""
    best: bool
    tied: bool


@dataclass(frozen=True)
class Layout:
    """Rows of names and entries under titles."""

    names: list[str]
    """Of the columns that say what a row is."""
    titles: list[str]
    rows: list[tuple[list[str], list[Entry | None]]]


def laid_out(found: pd.DataFrame, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> Layout:
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
    entries = {place: _entry(row) for place, row in found.iterrows()}
    body = [
        ([_short(text) for text in head], [entries.get(places.get((head, title))) for title in titles])
        for head in heads
    ]
    shown = [
        " ".join(_titled(*part) for part in zip(across, title, strict=True) if part[1]) or str(found["metric"].iloc[0])
        for title in titles
    ]
    return Layout(down, shown, body)


def notes(found: pd.DataFrame, left: dict[str, int]) -> list[str]:
    """What a reader must know of a table, a line each.

    Args:
        found: as `table` returns it.
        left: as `omitted` returns it.
    """
    metrics = list(dict.fromkeys(found["metric"]))
    lines = [f"{', '.join(metrics)}: mean ± 95 % t-interval (number of seeds)"]
    if found["best"].any():
        lines.append(
            "* best; † cannot be told from it at 5 % (paired t-tests over common seeds, Holm-corrected); "
            "with few seeds little can be told"
        )
    unknown = list(dict.fromkeys(found["metric"][found["higher_is_better"].isna()]))
    if unknown:
        lines.append(f"no best is marked for {', '.join(unknown)}: whether a high one is good is not known")
    select = Select(str(found["selection"].iloc[0]))
    if select is not Select.last:
        lines.append(
            f"settings chosen among up to {found['candidates'].max()} by {CHOSEN_BY[select]}; on the same seeds, so "
            "the intervals are too narrow (`bench rerun-best` runs them on others)"
        )
    late = list(dict.fromkeys(found["metric"][found["at"] == "last"]))
    if select is Select.best_validation and late:
        lines.append(f"{', '.join(late)}: of the last step, since it is measured at no other")
    labels = _labels(found)
    problem = [*problem_of(found), "metric"]
    own = _differing_within(labels, ["method", *problem])
    among = [name for name in _differing_within(labels, problem) if name not in own and not name.startswith("method.")]
    if among:
        lines.append(
            f"on one problem, methods also differ in {', '.join(among)} (recipes and sweeps may give each its own)"
        )
    lines += _rank_lines(found)
    return lines + [f"not in the table: {count} {status}" for status, count in left.items()]


def rank_table(found: pd.DataFrame) -> pd.DataFrame | None:
    """Ranks of methods (columns) on problems (rows), of those methods that are on the most, where all of them are.

    None where a method has several rows on a problem, or whether a high metric is good is not known.
    """
    scores = found.assign(problem=problems(found), score=found["mean"])
    if found["higher_is_better"].isna().any() or scores.duplicated(["method", "problem"]).any():
        return None
    scores["score"] *= [1 if higher else -1 for higher in found["higher_is_better"]]
    counts = scores["method"].value_counts()
    most = scores[scores["method"].isin(counts.index[counts == counts.max()])]
    return ranks(most.pivot_table(index="problem", columns="method", values="score").dropna(), higher_is_better=True)


def problems(found: pd.DataFrame) -> list[str]:
    """What each row's problem is called: the dataset, with the settings in which the rows of that dataset differ."""
    names = problem_of(found)
    return [" ".join(_titled(name, row[name]) for name in names if row[name]) for _, row in _labels(found).iterrows()]


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


def _rank_lines(found: pd.DataFrame) -> list[str]:
    ranked = rank_table(found)
    if ranked is None or ranked.shape[0] < 2 or ranked.shape[1] < 3:
        return []
    means = ", ".join(f"{name} {rank:.2f}" for name, rank in ranked.mean().sort_values().items())
    difference = critical_difference(ranked.shape[1], ranked.shape[0])
    line = (
        f"mean ranks over {len(ranked)} datasets: {means}; those closer than {difference:.2f} cannot be told apart "
        f"(Nemenyi, 5 %); all alike: p = {friedman(ranked):.3g} (Friedman)"
    )
    others = sorted(set(found["method"]) - set(ranked.columns))
    return [line, *([f"without a rank, since they are on fewer datasets: {', '.join(others)}"] if others else [])]


def written(layout: Layout, remarks: Sequence[str], how: Format) -> str:
    """The table in a format other than CSV, with the remarks where they can stand in it.

    Names are text and nothing else: what means something to the format is escaped, control characters are shown.
    """
    rows = [([*map(visible, head)], entries) for head, entries in layout.rows]
    layout = Layout([*map(visible, layout.names)], [*map(visible, layout.titles)], rows)
    return WRITERS[how](layout, [*map(visible, remarks if how is Format.text else best_in_bold(remarks))])


def best_in_bold(remarks: Sequence[str]) -> list[str]:
    """The remarks of `notes` for a format that marks the best in bold, not by a star."""
    return [line.replace("* best", "bold: best") for line in remarks]


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
        mean = entry.mean.translate(LATEX)
        mean = rf"\textbf{{{mean}}}" if entry.best else mean
        return f"{mean} ({entry.n})" + (r"$^{\dagger}$" if entry.tied else "")

    heads = " & ".join(text.translate(LATEX) for text in (*layout.names, *layout.titles))
    lines = [[*(text.translate(LATEX) for text in head), *map(shown, entries)] for head, entries in layout.rows]
    return "\n".join(
        [
            *(f"% {line.translate(LATEX)}" for line in remarks),
            "% needs \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{{'l' * len(layout.names)}{'r' * len(layout.titles)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
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


def _entry(row: pd.Series) -> Entry:
    spread = "" if pd.isna(row["half_width"]) else f" ± {_number(row['half_width'])}"
    n = str(row["n"]) if row["n"] == row["runs"] else f"{row['n']}/{row['runs']}"
    return Entry(_number(row["mean"]) + spread, n, bool(row["best"]), bool(row["tied"]))


def _number(value: float) -> str:
    """Four digits after the point, of very small and very large numbers four in all."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"


def _titled(name: str, label: str) -> str:
    """A setting says its name, what else there is speaks for itself."""
    return f"{name.partition('.')[2]}={_short(label)}" if name.startswith(SECTIONS) else _short(label)


def _short(label: str) -> str:
    """A number with digits that nobody reads, as one that somebody does."""
    try:
        return f"{float(label):.4g}" if len(label) > 8 else label
    except ValueError:
        return label
