"""`bench analyze`: what finished runs have become, beyond their metrics."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.arguments import finite, possible
from invbench.cli.output import draw, echo
from invbench.errors import UserError

if TYPE_CHECKING:
    from invbench.analysis.consistency import Consistency
    from invbench.analysis.spectrum import Spectrum
    from invbench.analysis.symmetry import FoundSymmetry
    from invbench.runs.folder import RunFolder

analyze_app = typer.Typer(
    name="analyze", help="What finished runs have become: curvature, widths, consistency, symmetry."
)

Runs = Annotated[list[Path], typer.Argument(callback=possible, help="Finished runs, or folders with some.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")]
Out = Annotated[Path | None, typer.Option(callback=possible, help="A picture as well: .png, .pdf or .svg.")]
ALPHAS = [1e-3, 1e-2, 1e-1, 1.0]
SHOWN, SMALL_PART = 4, 0.1
"""Most changes of generators in a row, and the share of a named generator below which it is not shown."""


@analyze_app.command()
def spectrum(
    runs: Runs,
    alpha: Annotated[
        list[float] | None, typer.Option(callback=finite, help="α of N_eff (default 0.001, 0.01, 0.1, 1).")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest eigenvalues.")] = 20,
    steps: Annotated[int, typer.Option(min=2, help="Lanczos steps from each random vector.")] = 50,
    vectors: Annotated[int, typer.Option(min=1, help="Random vectors for all other eigenvalues.")] = 4,
    examples: Annotated[int | None, typer.Option(min=1, help="Training examples, at random (default: all).")] = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Estimate eigenvalues of the training risk's Hessian and the effective dimension N_eff; kept as spectrum.json."""
    from invbench.analysis.spectrum import Spectrum
    from invbench.analysis.spectrum import spectrum as make
    from invbench.console import counting
    from invbench.reporting.analysis_figures import spectra
    from invbench.training.restored import load_run

    alphas = alpha or ALPHAS
    if min(alphas) <= 0:
        raise UserError("--alpha must be above 0")
    estimates: list[tuple[str, Spectrum]] = []
    for label, folder in _labelled(runs, out):
        run = load_run(folder.path, device)
        with counting(f"{label}: products with the Hessian") as on_progress:
            estimates.append((label, make(run, top, steps, vectors, examples, on_progress)))
        _keep(folder.path / "spectrum.json", estimates[-1][1].model_dump_json(indent=1))
    rows = [(f"{label}, {one.weights} weights", _spectrum_row(one, alphas)) for label, one in estimates]
    _show(["λ₁", *(f"N_eff({a:g})" for a in alphas)], rows)
    draw(lambda: spectra(estimates, alphas), out)


@analyze_app.command()
def widths(
    runs: Runs,
    generator: Annotated[str, typer.Option(help="Whose width goes through a range.")] = "rotation",
    points: Annotated[int, typer.Option(min=2, help="Values of the raw number, from -5 to 5.")] = 20,
    batches: Annotated[int, typer.Option(min=1, help="TrainingLoop batches.")] = 25,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Compute risk, objective and their slopes over the width of a learned distribution; kept as widths.csv."""
    import numpy as np

    from invbench.analysis.width_study import learned_width, width_study
    from invbench.console import counting
    from invbench.reporting.analysis_figures import width_curves
    from invbench.spreadsheet import csv
    from invbench.training.restored import load_run

    studies = []
    for label, folder in _labelled(runs, out):
        run = load_run(folder.path, device)
        with counting(f"{label}: of {points * batches}") as on_progress:
            study = width_study(run, generator, np.linspace(-5, 5, points).tolist(), batches, on_progress)
        _keep(folder.path / "widths.csv", csv(study))
        studies.append((label, study, learned_width(run, generator)))
    rows = []
    for label, study, learned in studies:
        means = study.groupby("width").mean()
        best = [means["risk"].idxmin(), means["objective"].idxmin()]
        rows.append((label, [f"{width:.3g}" for width in (learned, *best)]))
    _show(["learned width", "least risk at", "least objective at"], rows)
    draw(lambda: width_curves(studies), out)


@analyze_app.command()
def consistency(
    runs: Runs,
    epsilon: Annotated[
        float, typer.Option(min=0, callback=finite, help="ε: how much an environment's risk may differ.")
    ] = 0.1,
    reach: Annotated[
        float, typer.Option(min=0, callback=finite, help="How far to look, as a share of the weights' length.")
    ] = 0.1,
    directions: Annotated[int, typer.Option(min=1, help="Random rays from the minimum.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the path of each environment.")] = 50,
    examples: Annotated[int, typer.Option(min=1, help="Of each environment, at most.")] = 256,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Measure how consistent minima are across environments; kept as consistency.json.

    The picture shows the environments' risks on the plane through the first run's beginning and the first two runs.
    """
    from invbench.analysis.consistency import consistency as make
    from invbench.console import counting
    from invbench.reporting.analysis_figures import landscape
    from invbench.training.restored import load_run

    results, loaded = [], []
    for label, folder in _labelled(runs, out):
        run = load_run(folder.path, device)
        with counting(f"{label}: {directions} rays and paths") as on_progress:
            result = make(run, epsilon, reach, directions, steps, examples, on_progress)
        _keep(folder.path / "consistency.json", result.model_dump_json(indent=1))
        results.append((label, result))
        loaded.append((label, run))
    columns = ["score", "by sampling", "by path", "mean risk", "sign agreement"]
    _show(columns, [(label, _consistency_row(one)) for label, one in results])
    draw(lambda: landscape(loaded[:2], examples), out)


@analyze_app.command()
def symmetry(
    runs: Runs,
    examples: Annotated[int, typer.Option(min=1, help="Test examples, evenly spread, at most.")] = 1000,
    tolerance: Annotated[
        float, typer.Option(callback=finite, help="Largest change that counts; 1 is that of random generators.")
    ] = 0.5,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Find the generators that leave outputs unchanged; kept as symmetry.json.

    Those of vectors are any matrices, those of images and point clouds combinations of rotation, translation and so on.
    """
    from invbench.analysis.symmetry import symmetry as make
    from invbench.console import counting
    from invbench.reporting.analysis_figures import symmetries
    from invbench.training.restored import load_run

    if tolerance <= 0:
        raise UserError("--tolerance must be above 0")
    found: list[tuple[str, FoundSymmetry]] = []
    refusals: list[UserError] = []
    for label, folder in _labelled(runs, out):
        try:
            run = load_run(folder.path, device)
            with counting(f"{label}: examples") as on_progress:
                found.append((label, make(run, examples, tolerance, on_progress)))
        except UserError as error:
            refusals.append(error)
            continue
        _keep(folder.path / "symmetry.json", found[-1][1].model_dump_json(indent=1))
    if not found:
        raise refusals[0]
    columns = ["dimension", "trivial", "changes least", "least changes", "true ones", "largest angle"]
    _show(columns, [(label, _symmetry_row(one)) for label, one in found])
    echo("generators are in each run's symmetry.json; `--out FILE.png` draws them")
    for refusal in refusals:
        echo(f"left out: {refusal}", err=True)
    draw(lambda: symmetries(found), out)


def _labelled(runs: list[Path], out: Path | None) -> "list[tuple[str, RunFolder]]":
    """Return every finished run with a label that tells it from the others.

    Raises:
        UserError: there is no finished run, or no picture can be written to `out`.
    """
    from invbench.cli.plot import writable_picture
    from invbench.reporting.style import groups_of
    from invbench.results.load import finished

    if out is not None:
        writable_picture(out, "--out")
    folders = finished(runs)
    specs = [record.spec for _, record in folders]
    labels = {
        index: f"{label} on {dataset}, seed {specs[index].seed}"
        for (label, dataset), members in groups_of(specs).items()
        for index in members
    }
    return [(labels[index], folder) for index, (folder, _) in enumerate(folders)]


def _keep(path: Path, text: str) -> None:
    """Write a file beside the run's record. Raises UserError where that fails."""
    from invbench.files import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _spectrum_row(spectrum: "Spectrum", alphas: list[float]) -> list[str]:
    from invbench.results.rounding import rounded

    def dimension(alpha: float) -> str:
        value, error = spectrum.effective_dimension(alpha)
        return rounded(value, error or math.nan)

    return [f"{spectrum.eigenvalues[0]:.4g}", *map(dimension, alphas)]


def _consistency_row(result: "Consistency") -> list[str]:
    from invbench.analysis.consistency import largest

    mean_risk = sum(result.risks) / len(result.risks)
    agreement = sum(result.agreement.values()) / len(result.agreement)
    values = (result.score, -largest(result.sampling), -largest(result.path), mean_risk, agreement)
    return [f"{value:.4g}" for value in values]


def _symmetry_row(found: "FoundSymmetry") -> list[str]:
    def some(changes: list[float]) -> str:
        more = ", …" if len(changes) > SHOWN else ""
        return ", ".join(f"{change:.2g}" for change in changes[:SHOWN]) + more

    true, angle = some(list(found.true_changes.values())), f"{found.angles[-1]:.3g}°" if found.angles else ""
    dimension = f"{found.dimension} of {len(found.changes)}"
    trivial, least = ("", _named(found)) if found.names else (str(found.trivial), "a matrix")
    return [dimension, trivial, least, some(found.changes), true or "unknown", angle]


def _named(found: "FoundSymmetry") -> str:
    """Write the generator that changes outputs least as a sum of named ones, without small parts."""
    parts = sorted(zip(found.coefficients[0], found.names, strict=True), key=lambda part: -abs(part[0]))
    return " ".join(f"{share:+.2f} {name}" for share, name in parts if abs(share) >= SMALL_PART)


def _show(columns: list[str], rows: list[tuple[str, list[str]]]) -> None:
    """Print the runs' labels, then a table with a row per run."""
    from rich.table import Table

    from invbench.console import output_console

    view = Table("run")
    for name in columns:
        view.add_column(name, justify="right")
    for number, (label, cells) in enumerate(rows, 1):
        echo(f"{number}  {label}")
        view.add_row(str(number), *cells)
    output_console().print(view)
