"""Take rows that `bench leaderboard run` has made of methods of the suite into the edition.

    python scripts/merge_leaderboard_rows.py eqrm rdm

Rows are checked as those of a submission are, with data at hand (`INVBENCH_DATA` for MNIST). Those that the edition has
of the same methods are replaced. Take the names out of `without` of the edition's file afterwards, and run
`scripts/draw_leaderboard.py`.
"""

import argparse
from pathlib import Path

import pandas as pd

from invbench.leaderboard.added import latest
from invbench.leaderboard.build import curves
from invbench.leaderboard.edition import Edition, read_edition
from invbench.leaderboard.rows import CURVES, read_curves, read_rows, write_rows
from invbench.leaderboard.submission import check_rows


def merge(edition: Edition, methods: list[str], made: Path, folder: Path) -> None:
    """Write the rows and learning curves of an edition with those of further methods.

    Args:
        edition: whose rows they are.
        methods: names.
        made: folder of `bench leaderboard run` for the edition, with a folder for each method.
        folder: of the edition's rows.

    Raises:
        SystemExit: rows of a method are not as the edition says; nothing is written.
    """
    base, base_curves = read_rows(folder, edition.problems, edition.version), read_curves(folder, edition.problems)
    added = {method: read_rows(made / method, edition.problems, edition.version) for method in methods}
    complaints = [
        f"{method}: {complaint}"
        for method, rows in added.items()
        for complaint in check_rows(edition, rows, method, base)
    ]
    if complaints:
        raise SystemExit("\n".join(complaints))
    for name in {problem: None for rows in added.values() for problem in rows}:
        sources = [method for method, rows in added.items() if name in rows]
        rows = [base[name], *(added[method][name] for method in sources)]
        lines = [base_curves[name], *(curves(added[method][name], made / method / "runs" / name) for method in sources)]
        write_rows(_merged(rows, ["stage", "method", "run_id"]), folder / f"{name}.parquet")
        write_rows(_merged(lines, ["method", "seed", "step"]), folder / f"{name}{CURVES}")


def _merged(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Join tables in which a method's rows are those of the last one that has it, in the order of columns."""
    return pd.concat(latest(tables), ignore_index=True).sort_values(columns, ignore_index=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--edition", default="small")
    parser.add_argument("--made", type=Path, default=Path("results/leaderboard-mine"), help="folder of `run --out`")
    parser.add_argument("--folder", type=Path, default=Path("results/leaderboard"), help="folder of the editions' rows")
    options = parser.parse_args()
    merge(
        read_edition(options.edition),
        options.methods,
        options.made / options.edition,
        options.folder / options.edition,
    )
