"""Put the leaderboard's answer into README.md: a table of five lines, a picture, and what is not settled.

    python scripts/draw_leaderboard.py

Run it after rows of the edition change; a test compares README.md with the rows.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from invbench.choices import Select
from invbench.leaderboard.build import read_rows
from invbench.leaderboard.edition import BASELINE, Edition, read_edition
from invbench.leaderboard.overall import overall, ranking, sentence
from invbench.results.display_names import display_method

ROOT = Path(__file__).resolve().parent.parent
ROWS, PICTURE = ROOT / "results" / "leaderboard" / "small", ROOT / "docs" / "leaderboard.png"
BLOCK = re.compile(r"(?<=<!-- leaderboard -->\n).*?(?=<!-- end of leaderboard -->)", re.DOTALL)
RULE, WIDTH = Select.best_validation, 120


def answer(edition: Edition, rows: Mapping[str, pd.DataFrame]) -> str:
    """Return the block of README.md: the first three methods, ERM, the last one, and what cannot be told."""
    table, result = overall(rows, RULE), ranking(rows, RULE)
    ranked = table.dropna(subset=["mean_rank"]).reset_index(drop=True)
    runs = sum(map(len, rows.values()))
    problems = f"{len(rows)} of {len(edition.problems)}" if len(rows) < len(edition.problems) else len(rows)
    close = int((ranked["mean_rank"] - ranked["mean_rank"].iloc[0] < result.critical_difference).sum()) - 1
    what = (
        f"{len(table)} methods on {problems} small problems, {runs:,} runs: every method tuned alike, then run with "
        "fresh seeds ([how](docs/leaderboard.md)). `bench leaderboard show` has all of it, and each problem. Mean "
        f"ranks are over {len(result.problems)} problems of {len(result.ranks)} kinds that {len(ranked)} methods "
        "share; cost is the time of tuning, ERM's is 1."
    )
    open_questions = (
        f"What is not settled: {close} of the other {len(ranked) - 1} methods cannot be told from the first one by "
        f"their mean ranks (Nemenyi, 5 %). {_winners(table)}, so look at your problem. Does the order "
        f"survive another rule of selection? Computed from the rows: {sentence(rows)}."
    )
    drawn = "![Mean ranks of methods with their intervals; ERM is marked](docs/leaderboard.png)"
    return "\n\n".join([fill(what, WIDTH), _five_lines(ranked), drawn, fill(open_questions, WIDTH)]) + "\n"


def _winners(table: pd.DataFrame) -> str:
    """Say how many methods that are first on some problem are worse than ERM on another."""
    first = table[(table["first"] > 0) & (table["method"] != BASELINE)]
    worse = int((first["worse"] > 0).sum())
    return f"Of {len(first)} methods that are first on some problem, {worse} are worse than ERM on another"


def _five_lines(ranked: pd.DataFrame) -> str:
    """Return the table of the first three methods, ERM and the last one; of the fourth where ERM is among these."""
    erm = int(ranked.index[ranked["method"] == BASELINE][0])
    lines = [
        "| place | method | mean rank, 95 % | top 3 | better / same / worse than ERM | cost |",
        "|---|---|---|---|---|---|",
    ]
    for place in sorted({0, 1, 2, max(erm, 3), erm, len(ranked) - 1}):
        row = ranked.loc[place]
        verdicts = "" if row["method"] == BASELINE else f"{row['better']} / {row['same']} / {row['worse']}"
        ranks = f"{row['mean_rank']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        cells = [
            str(place + 1),
            display_method(row["method"]),
            ranks,
            f"{row['top']:.0%}",
            verdicts,
            f"{row['cost']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(rows: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the mean rank of each method with its interval, the best on top."""
    table = ranking(rows, RULE).table
    figure = Figure(figsize=(7.5, 0.9 + 0.2 * len(table)), layout="constrained")
    ax = figure.subplots()
    for place, row in table.iterrows():
        colour = "#d55e00" if row["method"] == BASELINE else "#0072b2"
        ax.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
        ax.plot(row["mean_rank"], place, "o", color=colour, markersize=5)
    ax.axvline(
        float(table.loc[table["method"] == BASELINE, "mean_rank"].iloc[0]),
        color="#d55e00",
        linewidth=0.8,
        linestyle=":",
    )
    ax.set_yticks(range(len(table)), list(map(display_method, table["method"])), fontsize=8)
    ax.set(
        xlabel="mean rank (1 is the best), with 95 % of a bootstrap over seeds and kinds of problems",
        ylim=(len(table) - 0.5, -0.5),
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(0.7, math.ceil(table["high"].max()) + 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def main() -> None:
    """Write the block and the picture."""
    edition = read_edition("small")
    rows = read_rows(ROWS, edition.problems, edition.version)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(BLOCK.sub(lambda _: answer(edition, rows), text), encoding="utf-8")
    picture(rows).savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
