"""`bench reproduce`: run what a published number needs, and say whether ours is like it."""

from pathlib import Path
from typing import Annotated

import typer

from invbench.cli.arguments import possible
from invbench.cli.completion import claims
from invbench.cli.output import echo
from invbench.cli.preview import Verbose, carry_out, preview
from invbench.errors import RunFailed
from invbench.system.gpus import MOST_PROCESSES


def reproduce(
    name: Annotated[
        str, typer.Argument(help="A claim, or a source with several (`bench ls published`).", autocompletion=claims)
    ],
    out: Annotated[Path, typer.Option(callback=possible, help="Folder that gets a folder for each claim.")] = Path(
        "results/published"
    ),
    gpus: Annotated[str | None, typer.Option(help="Places in the list of visible GPUs (default: all).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Processes on the CPU, without GPUs.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, help="Threads of each process.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run what a claim needs, with the published settings and seeds, and print the verdict. Again, it continues."""
    from invbench.published.claims import claims_of
    from invbench.published.verdicts import against_published, sweep_of, verdicts
    from invbench.results.formats import Format, written
    from invbench.results.load import load_results
    from invbench.sweeps.engines.local import LocalEngine, LocalResources
    from invbench.sweeps.execute import SweepRequest

    slots = LocalResources(gpus, workers=workers, threads=threads).slots()
    failure = None
    claims = claims_of(name)
    for claim_name, claim in claims.items():
        request = SweepRequest(sweep_of(claim), out / claim_name)
        if dry_run:
            echo(f"{claim_name}: {claim.what}")
            echo("".join(f"  published {number.metric}: {number.accepted}\n" for number in claim.numbers), nl=False)
            echo(preview(request, len(slots), verbose))
            continue
        try:
            carry_out(request, LocalEngine(slots, threads=threads), len(slots), verbose)
        except RunFailed as error:  # the other claims are worth knowing all the same
            failure = error
    if dry_run:
        return
    comparison = against_published(load_results([out / claim_name for claim_name in claims]), claims)
    echo(written(*verdicts(comparison), Format.text))
    if failure:
        raise failure
