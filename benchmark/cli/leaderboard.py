"""`bench leaderboard`: which method works on which problem, tuned alike, with fresh seeds."""

from pathlib import Path
from typing import Annotated

import typer

from invbench.choices import Format, Select
from invbench.cli.arguments import choice, possible
from invbench.cli.output import echo
from invbench.system.gpus import MOST_PROCESSES

leaderboard_app = typer.Typer(
    name="leaderboard", help="Which method works on which problem: editions of tuned comparisons.", no_args_is_help=True
)
EditionName = Annotated[str, typer.Option("--edition", help="Edition, a file of configs/leaderboard.")]
RowsFolder = Annotated[Path, typer.Option(callback=possible, help="Folder of the editions' rows.")]
ROWS = Path("results/leaderboard")


@leaderboard_app.command()
def show(
    problem: Annotated[str | None, typer.Option(help="One problem (default: all that have rows).")] = None,
    rule: Annotated[
        Select, typer.Option(**choice(Select, Select.last), help="How settings were selected.")
    ] = Select.best_validation,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    format_: Annotated[Format, typer.Option("--format", **choice(Format), help="How it is written.")] = Format.text,
) -> None:
    """Print the standings: means over fresh seeds with 95 % intervals, and whether they can be told from ERM's."""
    import pandas as pd

    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.standings import laid_out, read_rows, standings
    from invbench.results.formats import written
    from invbench.spreadsheet import csv

    names = list(read_edition(edition).problems) if problem is None else [problem]
    tables = {name: standings(rows, rule) for name, rows in read_rows(folder / edition, names)}
    if format_ is Format.csv:
        echo(csv(pd.concat(tables, names=["problem"]).reset_index("problem")), nl=False)
        return
    for name, table in tables.items():
        echo(written(*laid_out(name, table), format_))


@leaderboard_app.command()
def build(
    problem: Annotated[list[str] | None, typer.Option(help="Problems (default: all).")] = None,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    runs: Annotated[
        Path, typer.Option(callback=possible, help="Folder of the runs, which are no part of the edition.")
    ] = Path("results/leaderboard-runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Processes on the CPU, without GPUs.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but what went wrong.")] = False,
) -> None:
    """Carry out what is left of an edition, and write each problem's rows once it is complete.

    A problem whose rows are there is not built again. The same command again continues.
    """
    from invbench.leaderboard.build import build as build_problem
    from invbench.leaderboard.build import write_rows
    from invbench.leaderboard.edition import read_edition
    from invbench.sweeps.engines.local import LocalEngine, LocalResources

    chosen = read_edition(edition)
    engine = LocalEngine(LocalResources(workers=workers).slots())
    for name in problem or chosen.problems:
        path = folder / edition / f"{name}.parquet"
        if path.exists():
            echo(f"{name}: {path} is there already", err=True)
            continue
        write_rows(build_problem(chosen, name, runs / edition / name, engine, quiet=quiet), path)
        echo(f"{name}: {path}", err=True)
