"""Run selected settings again with seeds that had no part in selecting them."""

from pathlib import Path

import pandas as pd

from invbench.errors import UserError
from invbench.results.selection import Select
from invbench.results.table import table
from invbench.runs.commands import assignments_of, parse_seeds, ranges
from invbench.runs.folder import RunFolder
from invbench.runs.record import MEAN
from invbench.runs.spec import RunSpec
from invbench.sweeps.definition import Sweep, SweepCells


def sweep_of_best(results: pd.DataFrame, metric: str | None, select: str, seeds: str | None = None) -> Sweep:
    """Return a sweep of the settings that a selection chooses, a cell each, with fresh seeds.

    The protocol of its runs is the name of the selection. Means of runs are left out: none of them was trained.

    Args:
        results: as `load_results` returns it.
        metric: the metric by which the oracle selects; for other selections any metric of the runs.
        select: best_validation, leave_one_env_out or oracle.
        seeds: such as 10-14; by default as many as the chosen settings had, above all seeds of the runs.

    Raises:
        UserError: nothing can be selected, or a seed was used for the selection.
    """
    if select == Select.last:
        raise UserError("--select last selects nothing; give best_validation, leave_one_env_out or oracle")
    means = table(results, metric, select)
    used = {int(seed) for seed in results["seed"].dropna()}
    first = max(used) + 1
    fresh = parse_seeds(f"{first}-{first + int(means['n'].max()) - 1}" if seeds is None else seeds)
    if common := sorted(used & set(fresh)):
        raise UserError(
            f"seeds {ranges(common)} were used to select the settings, so they prove nothing; take others, such as "
            f"{first}-{first + len(fresh) - 1}"
        )
    paths = dict(zip(results["run_id"], results["path"], strict=True))
    records = [RunFolder(Path(paths[run_ids[0]])).load_record() for run_ids in means["run_ids"]]
    specs = [record.spec for record in records if record is not None and MEAN not in record.engine]
    if not specs:
        raise UserError("there are only means of runs; run the settings of their members again, and average those")
    cells = [cell_of(spec, Select(select)) for spec in specs]
    return Sweep(seeds=tuple(fresh), cells=tuple(cells))


def cell_of(spec: RunSpec, select: Select) -> SweepCells:
    """Return the cell that repeats a run under the protocol of the selection."""
    settings = assignments_of(spec.model_copy(update={"protocol": select.value}))
    return SweepCells(method=spec.method, dataset=spec.dataset, set=settings, protocol=select.value)
