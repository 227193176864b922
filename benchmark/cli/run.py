"""`bench run`: a method on a dataset, with one seed or several."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.arguments import finite, possible
from invbench.cli.completion import datasets, methods
from invbench.cli.completion import settings as settings_named
from invbench.cli.output import QUIET_AND_VERBOSE, echo, in_lines, json_of
from invbench.errors import UserError
from invbench.system.threads import MOST_THREADS

if TYPE_CHECKING:
    from rich.table import Table

    from invbench.runs.options import Options
    from invbench.runs.record import Record
    from invbench.runs.resolve import RunConfig


def run(
    method: Annotated[
        str, typer.Option("--method", "-m", help="A method, or several joined by +.", autocompletion=methods)
    ],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A dataset.", autocompletion=datasets)],
    infer_groups: Annotated[
        str | None,
        typer.Option(
            help="Train on environments that eiil or george infers from a run without them: METHOD+eiil for short."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="One seed (default 0).")] = None,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, such as 0-4 or 0,2,7.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting, such as method.threshold=0.5; may be repeated.", autocompletion=settings_named
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "auto",
    out: Annotated[Path, typer.Option(callback=possible, help="Folder that gets a folder for each run.")] = Path(
        "results"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records as a JSON array, and nothing else.")
    ] = False,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="Send the curves elsewhere too: csv, tensorboard, wandb or mlflow; may be repeated."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_THREADS, help="Threads on the CPU (default: what suits the size of the run)."),
    ] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, callback=finite, help="Time between checkpoints; 0: every step.")
    ] = 10.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Only time some steps: where the time would go, and a trace.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress; the run's log.txt has it.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show all settings and folders first, then every line of log.txt.")
    ] = False,
) -> None:
    """Train a method on a dataset. The same command again continues what was stopped and repeats nothing."""
    from invbench.core.registry import METHODS
    from invbench.core.stages import provided_by
    from invbench.runs.commands import parse_seeds
    from invbench.runs.config import parse_assignments
    from invbench.runs.options import Options
    from invbench.runs.resolve import resolve
    from invbench.training.runner import run_each

    if seed is not None and seeds is not None:
        raise UserError("give either --seed or --seeds")
    if quiet and verbose:
        raise UserError(QUIET_AND_VERBOSE)
    assignments = parse_assignments(set_ or [])
    numbers = [seed or 0] if seeds is None else parse_seeds(seeds)
    if infer_groups:
        if "environments" not in provided_by([METHODS.load(infer_groups)]):
            raise UserError(f"--infer-groups {infer_groups}: this method infers no environments; take eiil or george")
        method = f"{method}+{infer_groups}"
    configs = [resolve(method, dataset, number, assignments) for number in numbers]
    options = Options(device, out, checkpoint_seconds, quiet=quiet, loggers=tuple(logger or ()), threads=threads)
    if verbose:
        echo("\n".join(_described(configs, out)), err=True)
    if profile:
        if len(configs) > 1 or as_json or logger:
            raise UserError("--profile takes one seed, and neither --json nor --logger")
        _profile(configs[0], options)
        return
    with in_lines(verbose):
        records, failure = run_each(configs, options)
    if as_json:
        echo("[" + ",\n".join(map(json_of, records)) + "]")
    else:
        _show(records, out)
    if failure:
        raise failure


def _described(configs: "list[RunConfig]", out: Path) -> "Iterator[str]":
    """Yield lines with all settings, and with the folder of each seed."""
    yield f"{configs[0].spec.method} on {configs[0].spec.dataset}"
    settings = {"backbone.name": configs[0].spec.backbone} | configs[0].spec.flat()
    yield from (f"  {name} = {json.dumps(value)}" for name, value in settings.items())
    yield from (f"  seed {config.spec.seed}: {out / config.spec.run_id}" for config in configs)


def _profile(config: "RunConfig", options: "Options") -> None:
    """Time some steps, and print a row per part of the run."""
    from rich.table import Table

    from invbench.console import announce, output_console, plain_text
    from invbench.training.profile import profile_run

    profile = profile_run(config, options)
    whole = sum(cost.total for cost in profile.costs) or 1.0
    view = Table("part")
    for name in ("ms", "times", "seconds", "share"):
        view.add_column(name, justify="right")
    for cost in profile.costs:
        numbers = f"{1e3 * cost.seconds:.3g}", str(cost.calls), f"{cost.total:.3g}", f"{cost.total / whole:.1%}"
        view.add_row(plain_text(cost.name), *numbers)
    forecast = f"{whole:.3g} s, if all steps are like {profile.steps} timed ones"
    echo(f"{config.title}: {forecast if profile.steps else 'too few steps to time one after the warm-up'}")
    output_console().print(view)
    if config.trainer.compile:
        announce(
            "these steps are not compiled, since a compiled one has no parts; time whole runs to see what it gains"
        )
    announce(f"no result was saved; trace, for https://ui.perfetto.dev: {profile.trace}")


def _show(records: "list[Record]", out: Path) -> None:
    """Print the result table: a row per seed, then the mean with its interval; turned round where that is less wide."""
    from rich.console import Console

    from invbench.console import ENDLESS, announce, output_console
    from invbench.evaluation.metrics import headlines

    done = [record for record in records if record.status == "done"]
    if not done:
        return
    names = headlines(done[0].metrics)
    rows = [["seed", *names, "seconds", "run"]]
    for record in done:
        numbers = [f"{record.metrics[name]:.4f}" for name in names]
        rows.append([str(record.spec.seed), *numbers, f"{record.cost['wall_seconds']:.1f}", record.run_id])
    if len(done) > 1:
        rows.append(["mean ± 95 %", *_means(done, names), "", f"n = {len(done)}"])
    title = f"{done[0].spec.method} on {done[0].spec.dataset}"
    upright, turned = _table(title, rows), _table(title, [list(row) for row in zip(*rows, strict=True)])
    if len(done) > 1:
        upright.rows[-2].end_section = True
    console, endless = output_console(), Console(width=ENDLESS)
    widths = [endless.measure(view).maximum for view in (upright, turned)]
    console.print(turned if widths[0] > console.width and widths[1] < widths[0] else upright)
    announce(f"records in {out}; `bench table {out}` compares them")


def _means(done: "list[Record]", names: list[str]) -> list[str]:
    """Return the mean and the 95 % interval of each metric, as text; of p-values, the one that combines them."""
    import pandas as pd

    from invbench.results.rounding import rounded  # scipy, which it imports, takes long
    from invbench.results.statistics import combined_p_value, half_width, is_p_value

    columns = {name: pd.Series([record.metrics[name] for record in done]) for name in names}
    return [
        rounded(combined_p_value(values)) if is_p_value(name) else rounded(values.mean(), half_width(values))
        for name, values in columns.items()
    ]


def _table(title: str, rows: list[list[str]]) -> "Table":
    """Make a table of rows of text; the first row is the header."""
    from rich.table import Table
    from rich.text import Text

    from invbench.console import plain_text
    from invbench.terminal import visible

    view = Table(title=plain_text(title), title_justify="left")
    for index, name in enumerate(rows[0]):
        header = Text(visible(name).replace("_", "\n", 1))
        view.add_column(header, justify="right" if index else "left", overflow="fold")
    for row in rows[1:]:
        view.add_row(*map(plain_text, row))
    return view
