"""`bench compare`: two lots of runs, and what changed beyond noise."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.choices import Format
from invbench.cli.arguments import choice, possible
from invbench.cli.output import echo
from invbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def compare(
    first: Annotated[
        str, typer.Argument(callback=possible, help="A folder of runs; or a git commit, or the hash of the sources.")
    ],
    second: Annotated[str, typer.Argument(callback=possible, help="The same, what is compared with it.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            callback=possible, help="For commits: folders in which their runs are (default: results); may be repeated."
        ),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What is compared (default: each task's own).")] = None,
    form: Annotated[
        Format, typer.Option("--format", **choice(Format), help="How it is written; csv has all digits.")
    ] = Format.text,
) -> None:
    """Compare the first runs with the second: runs with the same settings are paired by seed.

    Of a run that was repeated with other code, the record before the present one counts too.
    """
    from invbench.results import formats
    from invbench.results.comparison import compare as make
    from invbench.results.comparison import laid_out, remarks
    from invbench.spreadsheet import csv

    before, after = (_runs(name, results or [Path("results")]) for name in (first, second))
    changes = make(before, after, metric)
    if form is Format.csv:
        echo(csv(changes), nl=False)
    else:
        echo(formats.written(laid_out(changes), remarks(before, after, changes), form))


def _runs(name: str, results: list[Path]) -> "pd.DataFrame":
    from invbench.results.load import load_made_by, load_results

    if Path(name).is_dir():
        return load_results(name)
    if not re.fullmatch("[0-9a-f]{7,40}", name):
        raise UserError(f"'{name}' is neither a folder nor a git commit (7 to 40 of its digits)")
    runs = load_made_by(results, name)
    if not len(runs):
        raise UserError(f"no run in {', '.join(map(str, results))} was made by {name}; --results names other folders")
    return runs
