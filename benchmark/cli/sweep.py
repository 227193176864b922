"""`bench sweep`: many runs, one after another."""

from pathlib import Path
from typing import Annotated

import typer

from invbench.errors import RunFailed, RunHeld


def sweep(
    name: Annotated[str, typer.Argument(help="A sweep (`bench ls sweeps`), or a YAML file of one.")],
    tier: Annotated[str, typer.Option(help="Size: full, or one that the sweep names.")] = "full",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of the runs (default: results/<name>).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
) -> None:
    """Carry out every run of a sweep that is not done yet. The same command again continues.

    A run that another process works on is left to it, so several processes can share a sweep.
    """
    from invbench.progress import announce
    from invbench.records import RunFolder
    from invbench.runner import Options, run_cell
    from invbench.sweep import Sweep

    cells = Sweep.read(name).runs(tier)
    folder = out or Path("results") / Path(name).stem
    if dry_run:
        for cell in cells:
            done = RunFolder(folder / cell.spec.run_id).status() == "done"
            typer.echo(f"{cell.spec.run_id}  {'done' if done else 'to do'}  {cell.title}")
        return
    failures: list[RunFailed] = []
    held = 0
    for number, cell in enumerate(cells, 1):
        announce(f"[{number}/{len(cells)}] {cell.title}")
        try:
            run_cell(cell, Options(device, folder, quiet=False))
        except RunFailed as failure:
            failures.append(failure)
        except RunHeld:
            held += 1
    left = f", {held} left to other processes" if held else ""
    announce(f"{len(cells) - len(failures) - held} of {len(cells)} runs done{left}: `bench table {folder}`")
    if failures:
        raise RunFailed(failures[0].kind, f"{failures[0]} ({len(failures)} of {len(cells)} runs failed)")
