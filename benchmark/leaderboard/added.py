"""Rows of an edition, with those of methods that are shown beside it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from invbench.console import announce
from invbench.errors import UserError
from invbench.leaderboard.build import present_code
from invbench.leaderboard.edition import BASELINE, Edition
from invbench.leaderboard.rows import CURVES, read_rows
from invbench.leaderboard.standings import ADDED
from invbench.leaderboard.submission import check_comparable


def rows_of_edition(edition: Edition, folder: Path, added: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Read the rows of an edition, and of further folders, which are marked as added, by problem.

    Args:
        edition: whose rows they are.
        folder: of the edition's own rows.
        added: folders of rows, or of such folders; of a method that several have, the last one's are taken.

    Raises:
        UserError: there are no rows, or those of a folder cannot stand beside the edition's.
    """
    folders = [folder]  # later ones win
    for path in added:
        if not (of_path := folders_of_rows(path)):
            raise UserError(f"--add {path}: there are no rows of edition {edition.version} in it or in its folders")
        folders += of_path
    each = [read_rows(path, edition.problems, edition.version) for path in folders]
    if not each[0]:
        none = f"there are no rows in {folder}; start it in the checkout, or name their folder by --folder"
        if not added:
            raise UserError(none)
        announce(none)
    for path, tables in zip(folders[1:], each[1:], strict=True):
        _check_added(path, tables, each[0], edition)
    rows: dict[str, list[pd.DataFrame]] = {
        name: [tables[name].assign(**{ADDED: tables is not each[0]}) for tables in each if name in tables]
        for name in edition.problems
    }
    return {name: pd.concat(latest(tables), ignore_index=True).copy() for name, tables in rows.items() if tables}


def folders_of_rows(folder: Path) -> list[Path]:
    """Return a folder of rows itself, or those folders in it that have rows."""
    return [path for path in (folder, *sorted(folder.glob("*/"))) if next(path.glob("*.parquet"), None) is not None]


def without_old_rows(rows: dict[str, pd.DataFrame], edition: Edition, method: str) -> dict[str, pd.DataFrame]:
    """Leave the rows of a method out that other code of it has made, and say so."""
    kept = {}
    for name, table in rows.items():
        of_method = table["method"] == method
        if of_method.any():
            old = of_method & ~table["code"].isin(present_code(edition, name, method))
            if old.any():
                says = f"rows that other code of {method} has made are left out; `--problem {name}` makes them again"
                announce(f"{name}: {says}")
            table = table[~old]
        kept[name] = table
    return {name: table for name, table in kept.items() if len(table)}


def _check_added(
    folder: Path, tables: dict[str, pd.DataFrame], base: dict[str, pd.DataFrame], edition: Edition
) -> None:
    """Check that rows can stand beside those of the edition. Raises UserError; says whose place they take."""
    names = [path.name for path in folder.glob("*.parquet") if not path.name.endswith(CURVES)]
    for name in sorted(set(names) - {f"{problem}.parquet" for problem in edition.problems}):
        raise UserError(f"--add {folder / name}: the edition has no such problem")
    replaced: dict[str, None] = {}
    for name, table in tables.items():
        if complaint := next(check_comparable(name, table, base.get(name)), None):
            raise UserError(f"--add {folder / name}.parquet: {complaint}")
        same = sorted(set(table["method"]) & set(base[name]["method"])) if name in base else []
        if BASELINE in same:
            raise UserError(f"--add {folder / name}.parquet has rows of {BASELINE}, which all are compared with")
        replaced |= dict.fromkeys(same)
    if replaced:
        announce(f"{', '.join(replaced)}: rows of {folder} are shown in the place of the edition's")


def latest(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Leave rows of a method out where a later table has it too, so that no method is counted twice."""
    later: set[str] = set()
    kept = []
    for table in reversed(tables):
        kept.append(table[~table["method"].isin(later)])
        later |= set(table["method"])
    return kept[::-1]
