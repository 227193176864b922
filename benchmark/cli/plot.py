"""`bench plot`: figures of finished runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from invbench.errors import UserError

FORMATS = (".png", ".pdf", ".svg")


class Kind(StrEnum):
    """What can be drawn."""

    profile = "profile"
    widths = "widths"
    angle = "angle"
    tradeoff = "tradeoff"
    densities = "densities"


def plot(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="profile: invariance; widths: what was learned; angle: one image turned; tradeoff: one metric "
            "against another; densities: of the score at values of the nuisance."
        ),
    ],
    results: Annotated[list[Path] | None, typer.Argument(help="Folders with runs (default: results).")] = None,
    out: Annotated[Path, typer.Option(help="The picture: .png, .pdf or .svg.")] = Path("figure.png"),
    mark: Annotated[list[float] | None, typer.Option(help="widths: an angle in radians to mark, both ways.")] = None,
    example: Annotated[int, typer.Option(min=0, help="angle: which test image.")] = 0,
    performance: Annotated[str, typer.Option(help="tradeoff: the metric upwards.")] = "test_roc_auc",
    dependence: Annotated[str, typer.Option(help="tradeoff: the metric to the right.")] = "test_mutual_information",
    at: Annotated[
        list[float] | None, typer.Option(help="densities: a value of the nuisance (default -1, 0, 1).")
    ] = None,
) -> None:
    """Draw finished runs."""
    writable_picture(out, "--out")
    from invbench import figures, nuisance_figures

    paths = results or [Path("results")]
    if kind is Kind.profile:
        figure = figures.profile(paths)
    elif kind is Kind.widths:
        figure = figures.widths(paths, mark or [])
    elif kind is Kind.angle:
        figure = figures.angle(paths, example)
    elif kind is Kind.tradeoff:
        figure = nuisance_figures.tradeoff(paths, performance, dependence)
    else:
        figure = nuisance_figures.densities(paths, at or [-1.0, 0.0, 1.0])
    figure.savefig(out, dpi=150)
    typer.echo(str(out))


def writable_picture(path: Path, option: str) -> None:
    """Raise UserError unless a picture can be written there."""
    if path.suffix not in FORMATS:
        raise UserError(f"{option} {path}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.absolute().parent}")
