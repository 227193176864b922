"""`bench sweep`: many runs, spread over GPUs or cores."""

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    name: Annotated[str, typer.Argument(help="A sweep (`bench ls sweeps`), or a YAML file of one.")],
    tier: Annotated[str, typer.Option(help="Size: full, or one that the sweep names.")] = "full",
    out: Annotated[Path | None, typer.Option(help="Folder of the runs (default: results/<name>).")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="Places in the list of visible GPUs, such as 0,2 (default: all of them).")
    ] = None,
    jobs_per_gpu: Annotated[int, typer.Option(min=1, help="Runs that share a GPU.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on the CPU, without GPUs (default: cores // threads).")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    timeout: Annotated[str | None, typer.Option(help="Longest time for one run, such as 90s, 30min, 2h.")] = None,
    memory_floor: Annotated[
        float, typer.Option(min=0, help="GiB that must be free where others work before one more begins.")
    ] = 1.0,
    rerun: Annotated[
        str, typer.Option(help="missing; also the failed or the stale (made by other code) ones; or all anew.")
    ] = "missing",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
) -> None:
    """Carry out every run of a sweep that is not done yet. The same command again continues.

    A run that another process works on is left to it, so several processes, also on several machines with one folder,
    can share a sweep. Ctrl-C once lets running runs keep their checkpoints; twice kills them.
    """
    from invbench.engines.local import LocalEngine
    from invbench.schedule import Rules
    from invbench.sweeping import GIBIBYTE, Places, Request, carry_out_sweep, seconds_of
    from invbench.sweeping import dry_run as preview

    request = Request.read(name, out, tier, rerun)
    slots = Places(gpus, jobs_per_gpu, workers, threads).slots()
    if dry_run:
        typer.echo("\n".join(preview(request, len(slots))))
        return
    rules = Rules(seconds_of(timeout), memory_floor * GIBIBYTE)
    carry_out_sweep(request, LocalEngine(slots, rules, threads))
