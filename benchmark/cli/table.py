"""`bench table`: means over seeds with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.arguments import possible
from invbench.cli.output import echo
from invbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from invbench.table_formats import Format

FORMATS = ("text", "csv", "markdown", "latex", "html")


def table(
    results: Annotated[
        list[Path] | None, typer.Argument(callback=possible, help="Folders with runs (default: results).")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="A metric, such as test_accuracy, or a cost, such as cost.seconds_per_step.")
    ] = None,
    rows: Annotated[str, typer.Option(help="What tells rows apart, such as method,trainer.epochs.")] = "",
    columns: Annotated[str, typer.Option(help="What tells columns apart, such as dataset.")] = "",
    select: Annotated[
        str,
        typer.Option(
            help="Step and settings: last shows all; best_validation; leave_one_env_out; oracle, by the metric itself."
        ),
    ] = "last",
    vs_published: Annotated[
        bool, typer.Option("--vs-published", help="Every published number beside ours, with a verdict.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help="text, csv (all digits), markdown, latex or html.")] = "text",
) -> None:
    """Methods by datasets: mean ± 95 % t-interval over seeds, with n; finished runs only; the best is marked.

    Runs that differ in settings, protocol or data are never averaged.
    """
    if form not in FORMATS:
        raise UserError(f"no format '{form}'{did_you_mean(form, FORMATS)}")
    if vs_published and (metric or rows or columns or select != "last"):
        raise UserError("--vs-published has its own metrics and layout; leave the other options out, but --format")
    from invbench.results import load_results
    from invbench.spreadsheet import csv
    from invbench.table_formats import Format, laid_out, notes, written
    from invbench.tables import omitted
    from invbench.tables import table as make

    runs = load_results(results or [Path("results")])
    if vs_published:
        echo(_against_published(runs, Format(form)), nl=form != "csv")
        return
    found = make(runs, metric, select)
    remarks = notes(found, omitted(runs))
    if form == Format.csv:
        echo(csv(found.drop(columns=["seeds", "run_ids"])), nl=False)
        echo("\n".join(remarks), err=True)
    else:
        layout = laid_out(found, _names(rows), _names(columns))
        echo(written(layout, remarks, Format(form)))


def _against_published(runs: "pd.DataFrame", form: "Format") -> str:
    from invbench.reproduction import against_published, verdicts
    from invbench.spreadsheet import csv
    from invbench.table_formats import Format, written

    found = against_published(runs)
    return csv(found) if form == Format.csv else written(*verdicts(found), form)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
