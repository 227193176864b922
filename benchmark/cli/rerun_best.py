"""`bench rerun-best`: the selected settings with fresh seeds."""

from pathlib import Path
from typing import Annotated

import typer

from invbench.choices import Select
from invbench.cli.arguments import choice, possible
from invbench.cli.output import echo
from invbench.cli.preview import Verbose, carry_out, preview
from invbench.system.gpus import MOST_PROCESSES


def rerun_best(
    results: Annotated[
        list[Path] | None, typer.Argument(callback=possible, help="Folders with runs (default: results).")
    ] = None,
    select: Annotated[
        Select, typer.Option(**choice(Select, Select.last), help="How settings are chosen.")
    ] = Select.best_validation,
    metric: Annotated[str | None, typer.Option(help="oracle: the metric that it goes by.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Fresh seeds, such as 10-14 (default: as many as before, behind all others).")
    ] = None,
    out: Annotated[Path, typer.Option(callback=possible, help="Folder of the new runs.")] = Path("results/best"),
    workers: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Processes on the CPU, without GPUs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
    verbose: Verbose = False,
) -> None:
    """Select the settings of each method on each dataset, and run them with seeds that did not select them.

    The new runs carry the selection as their protocol, so no table mixes them with those that they were selected from.
    Their folder has the sweep that was made: `bench sweep` with its sweep.yaml does the same again on other engines.
    """
    from invbench.results.load import load_results
    from invbench.sweeps.engines.local import LocalEngine, LocalResources
    from invbench.sweeps.execute import SweepRequest
    from invbench.sweeps.rerun_best import sweep_of_best

    runs = load_results(results or [Path("results")])
    if "protocol" in runs:
        runs = runs.loc[runs["protocol"] == "last"]
    request = SweepRequest(sweep_of_best(runs, metric, select, seeds), out)
    slots = LocalResources(workers=workers).slots()
    if dry_run:
        echo(preview(request, len(slots), verbose))
    else:
        carry_out(request, LocalEngine(slots), len(slots), verbose)
