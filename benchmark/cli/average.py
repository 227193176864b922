"""`bench average`: one network out of the weights of several runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from invbench.choices import AverageRule
from invbench.cli.arguments import possible
from invbench.cli.output import echo
from invbench.errors import UserError


def average(
    runs: Annotated[list[Path], typer.Argument(callback=possible, help="Finished runs, or folders with some.")],
    rule: Annotated[
        AverageRule,
        typer.Option(help="uniform: all runs; restricted: the best in validation, and each that does not harm it."),
    ] = AverageRule.uniform,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(callback=possible, help="Folder for the weights and what they are made of.")
    ] = None,
) -> None:
    """Average the last weights of runs of one network on the same data (DiWA); nothing is trained.

    The runs begin at the same weights: they have one seed and differ in settings, as the trials of a search do.
    """
    from safetensors.torch import save

    from invbench.console import counting
    from invbench.files import replacing, write_text
    from invbench.runs.folder import run_folders, unwritable
    from invbench.training.average_runs import average_runs

    folders = list(dict.fromkeys(folder.path.resolve() for path in runs for folder in run_folders(path)))
    if not folders:
        raise UserError(f"no run in {', '.join(map(str, runs))}")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(out, error) from None
    with counting(f"of {len(folders)} runs") as on_progress:
        averaged = average_runs(folders, rule, device, on_progress)
    echo(f"{len(averaged.members)} of {len(folders)} runs in the mean")
    names = [name for name in averaged.metrics if name.count("_") == 1 or "worst" in name]
    if averaged.best is None:
        echo("these data have no validation split to tell which run is the best")
    for name in names:
        best = "" if averaged.best is None else f"best run {averaged.best[name]:.4f}   "
        echo(f"{name:<28} {best}mean {averaged.metrics[name]:.4f}")
    if out is not None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in averaged.model.state_dict().items()}
        facts = {
            "rule": rule.value,
            "members": [folder.name for folder in averaged.members],
            "metrics": averaged.metrics,
            "best_run": averaged.best,
        }
        try:
            with replacing(out / "average.safetensors") as temporary:
                temporary.write_bytes(save(tensors))
            write_text(out / "average.json", json.dumps(facts, indent=1))
        except OSError as error:
            raise unwritable(out, error) from None
        echo(f"weights and metrics in {out}")
