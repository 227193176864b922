"""What a sweep would run or will run, all of it or in short."""

from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.output import echo, in_lines

if TYPE_CHECKING:
    from invbench.sweeps.engines import Engine
    from invbench.sweeps.execute import SweepRequest

MOST_LISTED, FIRST = 20, 5
"""Number of runs up to which all are listed; number that are listed of more."""
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="List every run and its settings first, then a line where a run begins or ends."
    ),
]


def preview(request: "SweepRequest", at_once: int, verbose: bool) -> str:
    """Return lines on the runs and on what those that are left will cost.

    With `verbose` every run and all settings are listed, else not all of many.
    """
    from invbench.sweeps.execute import dry_run
    from invbench.sweeps.folder import shared, summary

    *runs, total = dry_run(request, at_once)
    if verbose:
        return "\n".join([*shared(request.runs()), *runs, total])
    if len(runs) > MOST_LISTED:
        runs = [*summary(request.runs()), *runs[:FIRST], f"and {len(runs) - FIRST} more: -v lists all"]
    return "\n".join([*runs, total])


def carry_out(request: "SweepRequest", engine: "Engine", at_once: int, verbose: bool) -> None:
    """Carry out a sweep; where `verbose`, say before what it is, and line by line what happens."""
    from invbench.sweeps.execute import carry_out_sweep

    if verbose:
        echo(preview(request, at_once, verbose), err=True)
    with in_lines(verbose):
        carry_out_sweep(request, engine)
