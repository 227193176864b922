"""`bench sweep`: many runs, spread over GPUs or cores."""

import re
from pathlib import Path
from typing import Annotated

import typer

from invbench.choices import EngineName, Rerun
from invbench.cli.arguments import choice, finite, possible
from invbench.cli.completion import sweeps
from invbench.cli.output import QUIET_AND_VERBOSE, echo
from invbench.cli.preview import Verbose, carry_out, preview
from invbench.errors import UserError, brief
from invbench.sweeps.engines import LONGEST, make_engine
from invbench.system.gpus import MOST_PROCESSES


def sweep(
    name: Annotated[
        str, typer.Argument(help="A sweep (`bench ls sweeps`), or a YAML file of one.", autocompletion=sweeps)
    ],
    tier: Annotated[str, typer.Option(help="Size: full, or one that the sweep names.")] = "full",
    out: Annotated[
        Path | None, typer.Option(callback=possible, help="Folder of the runs (default: results/<name>).")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="[auto|cpu|cuda]", help="Where runs are trained (default: auto, GPUs where there are some)."
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="Places in the list of visible GPUs, such as 0,2 (default: all of them).")
    ] = None,
    jobs_per_gpu: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Runs that share a GPU (default: 1).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, help="Processes on the CPU, without GPUs (default: cores // threads)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Threads of each process (default: 1).")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Longest time for one run, such as 90s, 30min, 2h.")] = None,
    fuse: Annotated[
        str | None,
        typer.Option(
            metavar="[auto|off|NUMBER]",
            help="Train runs that differ in seed and numbers only together: auto (where it is faster), off, or a "
            "number of runs (default: what the sweep says, else off).",
        ),
    ] = None,
    memory_floor: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="GiB that must be free where others work before one more begins (default: 1).",
        ),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(**choice(EngineName), help="Who carries the runs out; ray and slurm are extras.")
    ] = EngineName.local,
    address: Annotated[
        str | None, typer.Option(help="ray: auto, local (one of its own), or host:port (default: auto).")
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            min=0, max=MOST_PROCESSES, callback=finite, help="ray, also a fraction, and slurm: GPUs of each run."
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of sbatch, such as partition=gpu; may be repeated."),
    ] = None,
    minutes: Annotated[
        int | None,
        typer.Option(
            min=1, max=LONGEST // 60, help="slurm: time of a job; a longer run is queued again (default: 60)."
        ),
    ] = None,
    rerun: Annotated[
        Rerun,
        typer.Option(
            **choice(Rerun), help="missing; also the failed or the stale (made by other code) ones; or all anew."
        ),
    ] = Rerun.missing,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but what went wrong.")] = False,
    verbose: Verbose = False,
) -> None:
    """Carry out every run of a sweep that is not done yet. The same command again continues.

    A run that another process works on is left to it, so several processes, also on several machines with one folder,
    can share a sweep. Ctrl-C once lets running runs keep their checkpoints; twice kills them.
    """
    from invbench.sweeps.engines.local import LocalEngine
    from invbench.sweeps.execute import SweepRequest

    if quiet and verbose:
        raise UserError(QUIET_AND_VERBOSE)
    request = SweepRequest.read(name, out, tier, rerun, fuse, quiet)
    chosen = make_engine(
        engine,
        threads=threads,
        device=device,
        gpus=gpus,
        jobs_per_gpu=jobs_per_gpu,
        workers=workers,
        timeout=seconds_of(timeout),
        memory_floor=memory_floor,
        gpus_per_run=gpus_per_run,
        address=address,
        minutes=minutes,
        slurm=_options_of_sbatch(slurm) if slurm else None,
    )
    at_once = len(chosen.slots) if isinstance(chosen, LocalEngine) else 1
    if dry_run:
        echo(preview(request, at_once, verbose))
    else:
        carry_out(request, chosen, at_once, verbose)


def _options_of_sbatch(texts: list[str]) -> dict[str, str]:
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise UserError(f"--slurm {wrong[0]}: write KEY=VALUE, such as partition=gpu")
    return dict(text.split("=", 1) for text in texts)


UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def seconds_of(text: str | None) -> float | None:
    """Convert a time such as `90`, `90s`, `30min`, `2h`, `1d` to seconds. Raises UserError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)\s*", text)
    seconds = float(match[1]) * UNITS.get(match[2], 0) if match else 0.0
    if not 0 < seconds <= LONGEST:
        raise UserError(f"--timeout {brief(text)}: write a time such as 90s, 30min or 2h, at most {LONGEST // 86400}d")
    return seconds
