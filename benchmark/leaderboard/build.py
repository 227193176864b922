"""Build a problem of an edition: all trials, the selection by each rule, fresh runs of what is selected, and rows."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd

from invbench.choices import Select
from invbench.console import announce
from invbench.errors import RunFailed, UserError
from invbench.files import replacing
from invbench.leaderboard.edition import Edition
from invbench.results.columns import SECTIONS, as_text
from invbench.results.load import load_results
from invbench.sweeps.definition import ALL, Sweep, SweepCells
from invbench.sweeps.engines import Engine
from invbench.sweeps.execute import SweepRequest, carry_out_sweep
from invbench.sweeps.rerun_best import sweep_of_best

SEARCH, LEFT_OUT = "search", "left_out"
RULES = (Select.best_validation, Select.leave_one_env_out, Select.oracle)
"""Rules of selection, the last of which looks at the test data and is shown for comparison only."""
STAGES = (SEARCH, LEFT_OUT, *(rule.value for rule in RULES))
"""Folders of the runs of a problem, and the stages of its rows."""
LEFT_OFF = ("path", "dataset", "protocol", "started", "finished", "fused", "backbone", "data.variant")
"""Columns of results that no row needs: they follow from the edition, or differ from machine to machine."""


def build(
    edition: Edition, name: str, out: Path, engine: Engine, method: str = ALL, quiet: bool = False
) -> pd.DataFrame:
    """Carry out what is left of a problem, and return its rows.

    A trial that fails is a row too; it is not selected.

    Args:
        edition, name: which problem.
        out: folder of the runs; what is done there is not done again.
        engine: where runs go.
        method: one, or `*` for all that the problem admits.

    Raises:
        UserError: there is no such problem or method.
        Interrupted: Ctrl-C, or a full disk; the same call continues.
    """
    left_out = edition.left_out_search(name, method)
    _carry_out(edition.search(name, method), out / SEARCH, engine, quiet)
    if left_out is not None:
        _carry_out(left_out, out / LEFT_OUT, engine, quiet)
    for rule in RULES:
        if rule is not Select.leave_one_env_out or left_out is not None:
            _carry_out(selected(edition, out, rule), out / rule.value, engine, quiet)
    return rows(edition, name, out)


def selected(edition: Edition, out: Path, rule: Select) -> Sweep:
    """Return the sweep of the settings that a rule selects for each method, with fresh seeds.

    A method of which a rule can select nothing, such as one that cannot do without an environment, has no fresh runs.
    """
    trials = load_results([folder for folder in (out / SEARCH, out / LEFT_OUT) if folder.exists()])
    cells: list[SweepCells] = []
    for method, runs in trials.groupby("method"):
        try:
            cells += sweep_of_best(runs, None, rule.value, edition.fresh_seeds).cells
        except UserError as error:
            announce(f"{method}: nothing is selected by {rule.value}: {error}")
    return Sweep(seeds=edition.fresh_seeds, cells=tuple(cells), fuse="auto")


def rows(edition: Edition, name: str, out: Path) -> pd.DataFrame:
    """Return the rows of a problem: every run of every stage, with the settings that were searched.

    Columns: edition, problem, stage, method, seed, status, kind; searched settings by dotted name; metrics and the
    rest as `load_results` has them.
    """
    runs = pd.concat(_stages(out), ignore_index=True)
    settings = [column for column in map(str, runs) if column.startswith(SECTIONS)]
    texts = as_text(runs, settings)
    constant = [column for column in settings if texts[column].nunique() == 1]
    empty = [column for column in map(str, runs) if column not in settings and runs[column].isna().all()]
    kept = runs.drop(columns=[*constant, *empty, *(column for column in LEFT_OFF if column in runs)])
    first = ["edition", "problem", "stage", "method", "seed", "status"]
    kept = kept.assign(edition=edition.version, problem=name)
    ordered = kept[[*first, *(column for column in kept if column not in first)]]
    return ordered.sort_values(["stage", "method", "run_id"], ignore_index=True)


def _stages(out: Path) -> Iterator[pd.DataFrame]:
    for stage in STAGES:
        if (out / stage).exists():
            yield load_results(out / stage).assign(stage=stage)


def _carry_out(sweep: Sweep, out: Path, engine: Engine, quiet: bool) -> None:
    """Carry out a sweep; that single runs fail is a result."""
    with suppress(RunFailed):
        carry_out_sweep(SweepRequest(sweep, out, quiet=quiet), engine)
    if not (load_results(out)["status"] == "done").any():
        raise UserError(f"all runs in {out} have failed; their folders say why")


def write_rows(table: pd.DataFrame, path: Path) -> None:
    """Write the rows of a problem, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table.to_parquet(temporary, compression="zstd", index=False)
