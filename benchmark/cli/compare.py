"""`bench compare`: two lots of runs, and what changed beyond noise."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.arguments import possible
from invbench.cli.output import echo
from invbench.cli.table import FORMATS
from invbench.errors import UserError, did_you_mean

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
    form: Annotated[str, typer.Option("--format", help="text, csv (all digits), markdown, latex or html.")] = "text",
) -> None:
    """What changed from the first to the second: runs with the same settings are paired by seed.

    Of a run that was repeated with other code, the record before the present one counts too.
    """
    if form not in FORMATS:
        raise UserError(f"no format '{form}'{did_you_mean(form, FORMATS)}")
    from invbench.results.comparison import compare as make
    from invbench.results.comparison import laid_out, remarks
    from invbench.results.formats import Format, written
    from invbench.spreadsheet import csv

    before, after = (_runs(name, results or [Path("results")]) for name in (first, second))
    found = make(before, after, metric)
    if form == Format.csv:
        echo(csv(found), nl=False)
    else:
        echo(written(laid_out(found), remarks(before, after, found), Format(form)))


def _runs(name: str, results: list[Path]) -> "pd.DataFrame":
    from invbench.results.load import load_made_by, load_results

    if Path(name).is_dir():
        return load_results(name)
    if not re.fullmatch("[0-9a-f]{7,40}", name):
        raise UserError(f"'{name}' is neither a folder nor a git commit (7 to 40 of its digits)")
    found = load_made_by(results, name)
    if not len(found):
        raise UserError(f"no run in {', '.join(map(str, results))} was made by {name}; --results names other folders")
    return found
