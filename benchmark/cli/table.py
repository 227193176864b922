"""`bench table`: means over seeds with intervals."""

from pathlib import Path
from typing import Annotated

import typer


def table(
    results: Annotated[list[Path] | None, typer.Argument(help="Folders with runs (default: results).")] = None,
    metric: Annotated[str | None, typer.Option(help="A metric, such as test_accuracy.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values with all digits.")] = False,
) -> None:
    """One row per method, dataset and settings: mean ± 95 % t-interval over seeds, with n; finished runs only."""
    import pandas as pd

    from invbench.results import load_results
    from invbench.tables import table as make
    from invbench.tables import unfinished

    runs = load_results(results or [Path("results")])
    found = make(runs, metric)
    if csv:
        typer.echo(found.to_csv(index=False), nl=False)
    else:
        name = str(found["metric"].iloc[0])
        shown = found.drop(columns=["metric", "mean", "half_width", "seconds_per_step"])
        spread = found["half_width"].map(lambda value: "" if pd.isna(value) else f" ± {value:.4f}")
        shown[name] = found["mean"].map("{:.4f}".format) + spread
        shown["ms/step"] = (found["seconds_per_step"] * 1000).map("{:.3g}".format)
        typer.echo(shown.fillna("").to_string(index=False))
    for status, count in unfinished(runs).items():
        typer.echo(f"not in the table: {count} {status}", err=True)
