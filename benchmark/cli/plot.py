"""`bench plot`: figures of finished runs."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.choices import Select
from invbench.cli.arguments import choice, finite, possible
from invbench.cli.output import echo
from invbench.cli.table import Where
from invbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")


class Kind(StrEnum):
    """Figures that `bench plot` can draw."""

    curves = "curves"
    ranks = "ranks"
    critical = "critical"
    cost = "cost"
    sensitivity = "sensitivity"
    tradeoff = "tradeoff"
    profile = "profile"
    widths = "widths"
    angle = "angle"
    densities = "densities"
    invariance = "invariance"
    residuals = "residuals"


def plot(
    kind: Annotated[
        str,
        typer.Argument(
            autocompletion=lambda: list(Kind),
            help="curves: a metric over the steps; ranks: of methods by datasets; critical: which mean ranks can be "
            "told apart; cost: a metric against time and memory; sensitivity: against settings; tradeoff: against "
            "another metric; profile: invariance; widths: what was learned; angle: one image turned; densities: of the "
            "score at values of the nuisance; invariance: its p-values; residuals: by environment.",
        ),
    ],
    results: Annotated[
        list[Path] | None, typer.Argument(callback=possible, help="Folders with runs (default: results).")
    ] = None,
    out: Annotated[Path, typer.Option(callback=possible, help="The picture: .png, .pdf or .svg.")] = Path("figure.png"),
    metric: Annotated[
        str | None, typer.Option(help="curves, ranks, critical, cost, sensitivity (default: the task's).")
    ] = None,
    select: Annotated[
        Select,
        typer.Option(
            **choice(Select), help="curves, ranks, critical, cost, profile: of several settings, as in `bench table`."
        ),
    ] = Select.last,
    where: Where = None,
    mark: Annotated[
        list[float] | None, typer.Option(callback=finite, help="widths: an angle in radians to mark, both ways.")
    ] = None,
    example: Annotated[int, typer.Option(min=0, help="angle: which test image.")] = 0,
    performance: Annotated[str, typer.Option(help="tradeoff: the metric upwards.")] = "test_roc_auc",
    dependence: Annotated[str, typer.Option(help="tradeoff: the metric to the right.")] = "test_mutual_information",
    at: Annotated[
        list[float] | None, typer.Option(callback=finite, help="densities: a value of the nuisance (default -1, 0, 1).")
    ] = None,
) -> None:
    """Draw finished runs."""
    if kind not in list(Kind):
        raise UserError(f"nothing to draw is named '{kind}'{did_you_mean(kind, Kind)}")
    writable_picture(out, "--out")
    from invbench.reporting import invariance_figures, nuisance_figures, result_figures
    from invbench.reporting import run_figures as figures
    from invbench.reporting.drawing import drawn, save
    from invbench.results.load import load_results, meeting
    from invbench.results.table import table

    given = {"--metric": metric is not None, "--select": select is not Select.last}
    for option, kinds in result_figures.KINDS_OF.items():
        if given[option] and kind not in kinds:
            raise UserError(f"{option} changes nothing in {kind}; it is for {', '.join(kinds)}")
    paths = results or [Path("results")]
    if where:
        paths = [Path(path) for path in meeting(load_results(paths), where)["path"]]

    def means() -> "pd.DataFrame":
        return table(load_results(paths), metric, select)

    def folders() -> list[Path]:
        """Return the paths of the runs that the selection chooses."""
        if select is Select.last:
            return paths
        results = load_results(paths)
        chosen = {run_id for run_ids in table(results, select=select)["run_ids"] for run_id in run_ids}
        return [Path(path) for path in results["path"][results["run_id"].isin(chosen)]]

    makers: dict[Kind, Callable[[], Figure]] = {
        Kind.curves: lambda: result_figures.curves(table(runs := load_results(paths), select=select), runs, metric),
        Kind.ranks: lambda: result_figures.ranks(means()),
        Kind.critical: lambda: result_figures.critical(means()),
        Kind.cost: lambda: result_figures.cost(means()),
        Kind.sensitivity: lambda: result_figures.sensitivity(means()),
        Kind.tradeoff: lambda: nuisance_figures.tradeoff(paths, performance, dependence),
        Kind.profile: lambda: figures.profile(folders()),
        Kind.widths: lambda: figures.widths(paths, mark or []),
        Kind.angle: lambda: figures.angle(paths, example),
        Kind.invariance: lambda: invariance_figures.p_values(load_results(paths)),
        Kind.residuals: lambda: invariance_figures.residuals(paths),
        Kind.densities: lambda: nuisance_figures.densities(paths, at or [-1.0, 0.0, 1.0]),
    }
    save(drawn(makers[Kind(kind)]), out)
    echo(str(out))


def writable_picture(path: Path, option: str) -> None:
    """Raise UserError unless a picture can be written there."""
    if path.suffix not in FORMATS:
        raise UserError(f"{option} {path}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path}: that is no file")
