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
from matplotlib.patches import Patch, Rectangle

from invbench.choices import Select
from invbench.leaderboard.edition import BASELINE, Edition, read_edition
from invbench.leaderboard.methods import ORACLE
from invbench.leaderboard.overall import overall, ranking, sentence, significance_in_words
from invbench.leaderboard.rows import read_rows
from invbench.leaderboard.standings import BETTER, SAME, WORSE, constant_score, metric_of_rows, standings

ROOT = Path(__file__).resolve().parent.parent
ROWS, PICTURE = ROOT / "results" / "leaderboard" / "small", ROOT / "docs" / "leaderboard.png"
BLOCK = re.compile(r"(?<=<!-- leaderboard -->\n).*?(?=<!-- end of leaderboard -->)", re.DOTALL)
RULE, WIDTH = Select.best_validation, 120
WORSE_COLOUR = "#f4b183"
CONSTANT = "constant"
COLOURS = {BETTER: "#8fc3ea", SAME: "#ececec", WORSE: WORSE_COLOUR}


def answer(edition: Edition, rows: Mapping[str, pd.DataFrame]) -> str:
    """Return the block of README.md: the first three methods, ERM, the last one, and what cannot be told."""
    table, result = overall(rows, RULE), ranking(rows, RULE)
    ranked = table.dropna(subset=["mean_rank"]).reset_index(drop=True)
    runs = sum(map(len, rows.values()))
    problems = f"{len(rows)} of {len(edition.problems)}" if len(rows) < len(edition.problems) else len(rows)
    what = (
        f"{len(table)} methods on {problems} small problems, {runs:,} runs: every method tuned alike, then run with "
        "fresh seeds ([how](docs/leaderboard.md)). `bench leaderboard show` has all of it, and each problem. Mean "
        f"ranks are over {len(result.problems)} problems of {len(result.ranks)} families that {len(ranked)} methods "
        "share; cost is the time of tuning, ERM's is 1, and runs that can be trained together share it."
    )
    order = sentence(rows)
    open_questions = (
        f"What is not settled: {significance_in_words(result)}. {_winners(table)}, so look at your problem. "
        f"{order[0].upper()}{order[1:]}."
    )
    drawn = "![Each method on each problem: its mean, and whether it is better or worse than ERM](docs/leaderboard.png)"
    caption = (
        "Mean over five fresh seeds of the accuracy in the test (\u2191) or an error (\u2193); where there is a "
        "nuisance, half the dependence on it is taken off. Blue and orange are by paired tests, so equal means can "
        "differ in colour. Bold: the best of those that are not told the answer. Empty: the method cannot be run. "
        "`constant` predicts the same for all inputs; of the chains' coefficients it has none."
    )
    parts = [fill(what, WIDTH), _five_lines(ranked), drawn, fill(f"*{caption}*", WIDTH), fill(open_questions, WIDTH)]
    return "\n\n".join(parts) + "\n"


def _winners(table: pd.DataFrame) -> str:
    """Say how many methods that are better than ERM on some problem are worse on another."""
    better = table[(table["better"] > 0) & (table["knows"] != ORACLE)]
    worse = int((better["worse"] > 0).sum())
    return f"Of {len(better)} methods that are better than ERM on some problem, {worse} are worse on another"


def _five_lines(ranked: pd.DataFrame) -> str:
    """Return the table of the first three methods, ERM and the last one; of the fourth where ERM is among these."""
    erm = int(ranked.index[ranked["method"] == BASELINE][0])
    lines = [
        "| place | method | mean rank, 95 % | top 3 | better / same / worse than ERM | cost |",
        "|---|---|---|---|---|---|",
    ]
    for position in sorted({0, 1, 2, max(erm, 3), erm, len(ranked) - 1}):
        row = ranked.loc[position]
        verdicts = "" if row["method"] == BASELINE else f"{row['better']} / {row['same']} / {row['worse']}"
        ranks = f"{row['mean_rank']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        cells = [
            str(position + 1),
            f"`{row['method']}`",
            ranks,
            f"{row['top']:.0%}",
            verdicts,
            f"{row['cost']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(rows: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw a heat map: each method on each problem, its mean, and whether it is better or worse than ERM."""
    summary = overall(rows, RULE).sort_values("knows", key=lambda names: names == ORACLE, kind="stable")
    order = [*map(str, summary["method"]), CONSTANT]
    figure = Figure(figsize=(2.3 + 0.5 * len(rows), 1.4 + 0.22 * len(order)), layout="constrained")
    ax = figure.subplots()
    for column, runs in enumerate(rows.values()):
        table = standings(runs, RULE).set_index("method")
        best = table["rank"].min()
        ax.text(column, len(order) - 1, short(constant_score(runs, RULE)), ha="center", va="center", fontsize=7)
        for position, method in enumerate(order):
            if method in table.index:
                row = table.loc[method]
                colour = COLOURS.get(row["verdict"], "#ffffff" if method == BASELINE else WORSE_COLOUR)
                ax.add_patch(Rectangle((column - 0.5, position - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
                weight = "bold" if row["rank"] == best else "normal"
                ax.text(column, position, short(row["mean"]), ha="center", va="center", fontsize=7, weight=weight)
    position = order.index(BASELINE)
    ax.add_patch(Rectangle((-0.5, position - 0.5), len(rows), 1, fill=False, edgecolor="black", linewidth=1.2))
    arrows = {name: "\u2191" if metric_of_rows(runs)[1] else "\u2193" for name, runs in rows.items()}
    names = [f"{name.replace('_', ' ')} {arrows[name]}" for name in rows]
    ax.set_xticks(range(len(rows)), names, rotation=50, ha="left", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(order)), order, fontsize=8)
    ax.set(xlim=(-0.5, len(rows) - 0.5), ylim=(len(order) - 0.5, -0.5))
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    keys = {"better than ERM": COLOURS[BETTER], "cannot be told": COLOURS[SAME], "worse, or fails": WORSE_COLOUR}
    patches = [Patch(facecolor=colour, label=text) for text, colour in keys.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def short(mean: float) -> str:
    """Write a mean with three digits, or with two behind the point.

    >>> short(0.917), short(13.01), short(1.0), short(0.01001), short(float("nan"))
    ('.92', '13.0', '1.00', '.010', '')
    """
    if math.isnan(mean):
        return ""
    size = abs(mean)
    text = f"{mean:.2f}" if 0.0995 < size < 9.995 else f"{mean:#.{3 if size > 1 else 2}g}".rstrip(".")
    return text.replace("0.", ".", 1) if size < 1 else text


def main() -> None:
    """Write the block and the picture."""
    edition = read_edition("small")
    rows = read_rows(ROWS, edition.problems, edition.version)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(BLOCK.sub(lambda _: answer(edition, rows), text), encoding="utf-8")
    picture(rows).savefig(PICTURE, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
