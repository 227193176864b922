"""`bench average`: one network out of the weights of several runs."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.choices import AverageRule
from invbench.cli.arguments import possible
from invbench.cli.output import echo
from invbench.errors import UserError

if TYPE_CHECKING:
    from invbench.training.average_runs import AveragedRuns


def average(
    runs: Annotated[list[Path], typer.Argument(callback=possible, help="Finished runs, or folders with some.")],
    rule: Annotated[
        AverageRule,
        typer.Option(help="uniform: all runs; restricted: the best in validation, and each that does not harm it."),
    ] = AverageRule.uniform,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(callback=possible, help="Folder of results for the means, as rows of tables.")
    ] = None,
) -> None:
    """Average the final weights of runs of one network on the same data (DiWA); nothing is trained.

    The runs of a mean begin at the same weights: they have one seed and differ in settings, as the trials of a search
    do. There is a mean for each method, dataset, network and seed.
    """
    from invbench.console import counting
    from invbench.runs.folder import run_folders, unwritable
    from invbench.training.average_record import write_average
    from invbench.training.average_runs import average_runs, groups_of

    folders = {folder.path.resolve(): folder for path in runs for folder in run_folders(path)}
    if not folders:
        raise UserError(f"no run in {', '.join(map(str, runs))}")
    groups = groups_of(list(folders.values()), lambda line: echo(line, err=True))
    count = sum(map(len, groups))
    if not count:
        raise UserError(f"no finished run in {', '.join(map(str, runs))}")
    if count < len(folders):
        echo(f"{len(folders) - count} of {len(folders)} runs are left out: not done, or means themselves", err=True)
    if single := [group[0].name for group in groups if len(group) == 1]:
        echo(f"left out as the only one of its method, data, network and seed: {', '.join(single)}", err=True)
        groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise UserError(
            "no two runs have one method, data, network and seed, so none began at the same weights; average runs "
            "that differ in other settings, such as the trials of a search"
        )
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(out, error) from None
    with counting(f"of {sum(map(len, groups))} runs") as on_progress:
        numbers, failures = itertools.count(1), list[UserError]()
        for group in groups:
            try:
                averaged = average_runs(group, rule, device, lambda: on_progress(next(numbers)))
            except UserError as error:  # the other means are worth having all the same
                echo(f"left out: {error}", err=True)
                failures.append(error)
                continue
            _print(averaged)
            if out is not None:
                write_average(averaged, out)
    if len(failures) == len(groups):
        raise failures[0]
    if out is None:
        echo("nothing is kept; with --out the means are rows of tables")
    else:
        echo(f"`bench table {' '.join(map(str, dict.fromkeys([*runs, out])))}` compares them")


def _print(averaged: "AveragedRuns") -> None:
    """Print the most important metrics of a mean, and of the best of its runs."""
    echo(f"{averaged.run.config.title}: {len(averaged.members)} of {len(averaged.candidates)} runs in the mean")
    if averaged.best is None:
        echo("  these data have no validation split to tell which run is the best")
    for name, value in averaged.metrics.items():
        if name.count("_") == 1 or "worst" in name:
            best = "" if averaged.best is None else f"best run {averaged.best[name]:.4f}   "
            echo(f"  {name:<28} {best}mean {value:.4f}")
