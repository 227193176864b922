"""Write a table as text, Markdown, LaTeX or HTML."""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from invbench.choices import Format as Format  # also for those who import it from here
from invbench.results.layout import Entry, Layout
from invbench.terminal import visible

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\symbol{34}", "±": r"$\pm$", "†": r"$^{\dagger}$",
        "[": "{[}", "*": "{*}",  # after the end of a row LaTeX would read them as its arguments
    }
)  # fmt: skip
"""Characters with a meaning in LaTeX, and what prints them."""
MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~#$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""Characters with a meaning in Markdown, escaped."""


def written(layout: Layout, remarks: Sequence[str], how: Format) -> str:
    """Write a table and the remarks below it in any format but CSV.

    Names and remarks are shown as they are: characters with a meaning in the format are escaped, and control
    characters become visible escapes.
    """
    rows = [([*map(visible, head)], entries) for head, entries in layout.rows]
    layout = replace(layout, names=[*map(visible, layout.names)], titles=[*map(visible, layout.titles)], rows=rows)
    return WRITERS[how](layout, [*map(visible, remarks)])


def _text(layout: Layout, remarks: Sequence[str]) -> str:
    """Write aligned columns for a terminal."""

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return ""
        return f"{entry.mean} ({entry.n}){'*' if entry.best else '†' if entry.tied else ' '}"

    frame = pd.DataFrame(
        [[*head, *map(cell, entries)] for head, entries in layout.rows], columns=[*layout.names, *layout.titles]
    )
    return "\n".join([frame.to_string(index=False), "", *remarks])


def _markdown(layout: Layout, remarks: Sequence[str]) -> str:
    """Write a Markdown table, its remarks a line each below it."""

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return ""
        mean = f"**{entry.mean}**" if entry.best else entry.mean
        return f"{mean} ({entry.n}){'†' if entry.tied else ''}"

    heads = [*layout.names, *layout.titles]
    lines = [[text.translate(MARKDOWN) for text in heads], ["---"] * len(layout.names) + ["---:"] * len(layout.titles)]
    lines += [[*(text.translate(MARKDOWN) for text in head), *map(cell, entries)] for head, entries in layout.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + "\n\n" + "  \n".join(line.translate(MARKDOWN) for line in remarks)


def _latex(layout: Layout, remarks: Sequence[str]) -> str:
    """Write a LaTeX `table` with booktabs, its remarks as the caption."""

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return ""
        mean = re.sub(r"(?<!e)-", "$-$", entry.mean.translate(LATEX))
        mean = re.sub(r"e([+-]\d+)", lambda power: rf"$\times 10^{{{int(power[1])}}}$", mean)
        mean = rf"\textbf{{{mean}}}" if entry.best else mean
        return f"{mean} ({entry.n})" + (r"$^{\dagger}$" if entry.tied else "")

    heads = " & ".join(text.translate(LATEX) for text in (*layout.names, *layout.titles))
    lines = [[*(text.translate(LATEX) for text in head), *map(cell, entries)] for head, entries in layout.rows]
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
    """Write an HTML table, its remarks as a paragraph below it."""

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return "<td></td>"
        mean = f"<strong>{entry.mean}</strong>" if entry.best else entry.mean
        return f"<td>{mean} ({entry.n}){'<sup>†</sup>' if entry.tied else ''}</td>"

    heads = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in (*layout.names, *layout.titles))
    body = [
        "".join(f'<th scope="row">{html.escape(text)}</th>' for text in head) + "".join(map(cell, entries))
        for head, entries in layout.rows
    ]
    lines = "<br>\n".join(map(html.escape, remarks))
    return "\n".join(
        [
            "<table>", f"<thead><tr>{heads}</tr></thead>", "<tbody>", *(f"<tr>{row}</tr>" for row in body),
            "</tbody>", "</table>", f"<p>{lines}</p>",
        ]
    )  # fmt: skip


WRITERS: dict[Format, Callable[[Layout, Sequence[str]], str]] = {
    Format.text: _text, Format.markdown: _markdown, Format.latex: _latex, Format.html: _html,
}  # fmt: skip
