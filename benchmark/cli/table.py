"""`bench table`: means over seeds with intervals."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invbench.choices import Format, Select
from invbench.cli.arguments import choice, null_as_nothing, possible
from invbench.cli.completion import conditions
from invbench.cli.output import echo
from invbench.errors import UserError, brief

if TYPE_CHECKING:
    import pandas as pd

MOST_DIGITS = 15
CONDITION = "COLUMN=VALUE"
WHERE = (
    "Only runs with this, such as dataset=spirals, method.weight=10, status=done, or trainer.steps=null for those that "
    "have none; may be repeated."
)
Where = Annotated[
    list[str] | None,
    typer.Option(metavar=CONDITION, help=WHERE, callback=null_as_nothing, autocompletion=conditions),
]


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
        Select,
        typer.Option(**choice(Select), help="Step and settings; last shows all settings, oracle goes by the metric."),
    ] = Select.last,
    vs_published: Annotated[
        bool, typer.Option("--vs-published", help="Every published number beside ours, with a verdict.")
    ] = False,
    where: Where = None,
    form: Annotated[
        Format, typer.Option("--format", **choice(Format), help="How it is written; csv has all digits.")
    ] = Format.text,
    as_json: Annotated[
        bool, typer.Option("--json", help="The rows, with all digits, as one JSON document, and nothing else.")
    ] = False,
    digits: Annotated[
        int | None,
        typer.Option(
            min=0, max=MOST_DIGITS, help="After the point (default: a mean ends where its interval's first digit is)."
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="latex: what \\ref finds the table by; letters, digits and :.-_ only.")
    ] = "tab:results",
    mean: Annotated[
        bool, typer.Option("--mean", help="Add a column with the mean of each row, as DomainBed prints it.")
    ] = False,
    percent: Annotated[bool, typer.Option("--percent", help="Accuracies and other shares in per cent.")] = False,
) -> None:
    """Compare methods by datasets: mean ± 95 % t-interval over seeds, with n; finished runs only; the best is marked.

    Runs that differ in settings, protocol or data are never averaged.
    """
    if not re.fullmatch(r"[\w:.-]+", label, re.ASCII):
        raise UserError(f"--label {brief(label)}: it has letters, digits and :.-_ only, such as tab:oracle")
    if as_json and form is not Format.text:
        raise UserError(f"--json and --format {form} are two formats; use one of them")
    if (as_json or form is Format.csv or vs_published) and (digits is not None or percent or mean):
        raise UserError("--digits, --percent and --mean are for tables of means to read; csv and JSON have all digits")
    if vs_published and (metric or rows or columns or select is not Select.last):
        raise UserError("--vs-published has its own metrics and layout; leave the other options out, but --format")
    from invbench.results.formats import written
    from invbench.results.layout import Style, laid_out, notes
    from invbench.results.load import load_results, meeting
    from invbench.results.table import completeness, omitted
    from invbench.results.table import table as make
    from invbench.spreadsheet import csv

    runs = meeting(load_results(results or [Path("results")]), where or [])
    if vs_published:
        echo(_against_published(runs, form, as_json), nl=form is not Format.csv)
        return
    means = make(runs, metric, select)
    if as_json:
        echo(_json(means))
        return
    style = Style.of(form, digits, percent)
    remarks = [*notes(means, omitted(runs), style), *completeness(runs)]
    if form is Format.csv:
        echo(csv(means.drop(columns=["seeds", "run_ids"])), nl=False)
        echo("\n".join(remarks), err=True)
    else:
        layout = laid_out(means, _names(rows), _names(columns), style, mean)
        echo(written(replace(layout, label=label), remarks, form))


def _against_published(runs: "pd.DataFrame", form: Format, as_json: bool) -> str:
    from invbench.published.verdicts import against_published, verdicts
    from invbench.results.formats import written
    from invbench.spreadsheet import csv

    comparison = against_published(runs)
    if as_json:
        return _json(comparison)
    return csv(comparison) if form is Format.csv else written(*verdicts(comparison), form)


def _json(frame: "pd.DataFrame") -> str:
    """Return the rows as a JSON array in ASCII, which is safe to show; what is not known is null."""
    import json

    from pydantic_core import from_json, to_json

    rows = from_json(to_json(frame.to_dict("records"), inf_nan_mode="null", fallback=_plain))
    return json.dumps(rows, indent=1).replace("\x7f", r"\u007f")


def _plain(value: Any) -> Any:
    """Convert a number of numpy's to Python's, and a missing value of pandas' to None."""
    return value.item() if hasattr(value, "item") else None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
