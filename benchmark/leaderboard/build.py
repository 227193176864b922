"""Build a problem of an edition: all trials, the selection by each rule, fresh runs of what is selected, and rows."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from invbench.choices import Rerun, Select
from invbench.console import announce
from invbench.errors import RunFailed, UserError
from invbench.leaderboard.edition import BASELINE, Edition
from invbench.leaderboard.methods import knows
from invbench.leaderboard.rows import CURVE_COLUMNS, REQUIRED
from invbench.results.columns import SECTIONS, as_text
from invbench.results.load import curves_of, load_results
from invbench.results.selection import BEST
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.sweeps.definition import ALL, Sweep, SweepCells
from invbench.sweeps.engines import Engine
from invbench.sweeps.execute import SweepRequest, carry_out_sweep
from invbench.sweeps.rerun_best import sweep_of_best
from invbench.system.provenance import sources_hash
from invbench.training.runner import run_one

SEARCH, LEFT_OUT = "search", "left_out"
RULES = (Select.best_validation, Select.leave_one_env_out, Select.oracle)
"""Rules of selection, the last of which looks at the test data and is shown for comparison only."""
RULES_IN_WORDS = {
    Select.best_validation: (
        "validation",
        "the settings, and of each run the step, with the best score on held-out data of the training environments",
    ),
    Select.leave_one_env_out: (
        "leave one environment out",
        "the settings with the best mean score on environments that were left out of training, each in turn",
    ),
    Select.oracle: ("test data", "the settings with the best score on the test data, which the rule `oracle` looks at"),
}
"""Name of each rule, and what it selects."""
STAGES = (SEARCH, LEFT_OUT, *(rule.value for rule in RULES))
"""Folders of the runs of a problem, and the stages of its rows."""
LEFT_OFF = ("path", "dataset", "protocol", "started", "finished", "backbone", "data.variant")
"""Columns of results that no row needs: they follow from the edition, or differ from machine to machine."""
NO_SUBJECT = re.compile(
    r"(best_validation\.)?(train_.*|.*_loss(_env\d+)?|coefficient\.\d+)|cost\.(?!wall|training|peak).*"
)
"""Columns of metrics and costs that say nothing about how a method does on the data that it is judged by."""


def build(
    edition: Edition,
    name: str,
    out: Path,
    engine: Engine,
    method: str = ALL,
    quiet: bool = False,
    rerun: Rerun = Rerun.missing,
) -> pd.DataFrame:
    """Carry out what is left of a problem, and return its rows.

    A run that fails is a row too; a trial that does is not selected. The first run is done alone: where the data are
    not there, or the code of the method raises an error, all others would fail as well. Where all runs diverge, the
    rows say so, which ranks the method last.

    Args:
        edition, name: which problem.
        out: folder of the runs; what is done there is not done again.
        engine: where runs go.
        method: one, or `*` for all that the problem admits.
        quiet: show no progress.
        rerun: `stale` carries out again what was made by other code.

    Raises:
        UserError: there is no such problem or method, or its data are not there.
        RunFailed: the code of the method raises an error, or all runs of a stage fail and not because they diverge.
        Interrupted: Ctrl-C, or a full disk; the same call continues.
    """
    search, left_out = edition.search(name, method), edition.left_out_search(name, method)
    first = edition.search(name, BASELINE) if method == ALL else search
    _try(first.runs()[0], out / SEARCH, quiet, rerun)

    def carry_out(sweep: Sweep, stage: str) -> None:
        if not quiet:
            announce(f"{name}, {stage}: {len(sweep.runs())} runs")
        _carry_out(sweep, out / stage, engine, quiet, rerun)

    carry_out(search, SEARCH)
    if left_out is not None:
        carry_out(left_out, LEFT_OUT)
    trials = trials_of(edition, name, out, method)
    for rule in _rules(trials):
        if rule is not Select.leave_one_env_out or left_out is not None:
            carry_out(selected(edition, trials, rule, announce), rule.value)
    return rows(edition, name, out, method)


def _rules(trials: pd.DataFrame) -> tuple[Select, ...]:
    """Return the rules that can select a trial; none where all have failed."""
    return RULES if ((trials["stage"] == SEARCH) & (trials["status"] == "done")).any() else ()


def _try(config: RunConfig, out: Path, quiet: bool, rerun: Rerun) -> None:
    """Carry out a run, unless it has a record that stays. Raises RunFailed where the code is wrong."""
    if rerun is Rerun.missing and RunFolder(out / config.spec.run_id).record.exists():
        return
    try:
        run_one(config, Options(out=out, quiet=quiet, threads=1))
    except RunFailed as failure:
        if failure.kind == "error":
            raise


def selected(
    edition: Edition, trials: pd.DataFrame, rule: Select, say: Callable[[str], object] = lambda text: None
) -> Sweep:
    """Return the sweep of the settings that a rule selects for each method, with fresh seeds.

    A method that cannot do without an environment, or of which every trial failed, has no fresh runs.

    Args:
        trials: as `trials_of` returns them.
        rule: of selection.
        say: called with a line about each method of which nothing can be selected.

    Raises:
        UserError: nothing can be selected of any method, or of one that has finished trials with all environments.
    """
    cells: list[SweepCells] = []
    for method, runs in trials.groupby("method"):
        try:
            cells += sweep_of_best(runs, None, rule.value, edition.fresh_seeds).cells
        except UserError as error:
            if rule is not Select.leave_one_env_out and (runs["status"] == "done").any():
                raise
            say(f"{method}: nothing is selected by {rule.value}: {error}")
    if not cells:
        raise UserError(f"nothing is selected by {rule.value}: no run has what it selects by")
    return Sweep(seeds=edition.fresh_seeds, cells=tuple(cells), fuse="auto")


def trials_of(edition: Edition, name: str, out: Path, method: str = ALL) -> pd.DataFrame:
    """Return the runs of a problem's search, also those that left an environment out, as `load_results` has them.

    Runs that the edition does not have, such as those of its earlier form, are left out, but not those of `method`.
    """
    sweeps: dict[str, list[Sweep]] = {SEARCH: [], LEFT_OUT: []}
    for one in dict.fromkeys((ALL, method)):
        sweeps[SEARCH].append(edition.search(name, one))
        if left_out := edition.left_out_search(name, one):
            sweeps[LEFT_OUT].append(left_out)
    parts = [
        _runs_of(searches, out / stage).assign(stage=stage)
        for stage, searches in sweeps.items()
        if searches and (out / stage).exists()
    ]
    return judged(pd.concat(parts, ignore_index=True), edition.problem(name).minus_half).copy()


def _runs_of(sweeps: Iterable[Sweep], folder: Path) -> pd.DataFrame:
    runs = load_results(folder)
    return runs[runs["run_id"].isin([run.spec.run_id for sweep in sweeps for run in sweep.runs()])]


def rows(edition: Edition, name: str, out: Path, method: str = ALL) -> pd.DataFrame:
    """Return the rows of a problem: every run of every stage, with the settings that were searched.

    Those of `method` are there too, if it came after the edition.

    Metrics by which runs are judged and selected have all their digits, others those of single precision.

    Columns: edition, problem, family, stage, method, knows, seed, status, kind, code (hash of the sources); searched
    settings by dotted name; metrics and the rest as `load_results` has them, without those of training data.
    """
    problem, trials = edition.problem(name), trials_of(edition, name, out, method)
    fresh = [
        judged(
            _runs_of([selected(edition, trials, rule)], out / rule.value).assign(stage=rule.value), problem.minus_half
        )
        for rule in _rules(trials)
        if (out / rule.value).exists()
    ]
    runs = pd.concat([trials, *fresh], ignore_index=True).copy()  # in one piece, which makes adding columns fast
    records = [RunFolder(Path(path)).read_record() for path in runs["path"]]
    runs = runs.assign(code=["" if record is None else record.code.get("sources", "") for record in records])
    runs = runs.drop(columns=[name for name in map(str, runs) if NO_SUBJECT.fullmatch(name)])
    settings = [column for column in map(str, runs) if column.startswith(SECTIONS)]
    texts = as_text(runs, settings)
    constant = [column for column in settings if texts[column].nunique() == 1]
    empty = [column for column in map(str, runs) if column not in settings and runs[column].isna().all()]
    kept = runs.drop(columns=[*constant, *empty, *(column for column in LEFT_OFF if column in runs)])
    kept = kept.reindex(columns=list(dict.fromkeys([*kept, *REQUIRED])))  # where no run is done some have no value
    first = ["edition", "problem", "family", "stage", "method", "knows", "seed", "status", "code"]
    kept = kept.assign(
        edition=edition.version, problem=name, family=problem.family or name, knows=kept["method"].map(knows)
    )
    exact = re.compile("|".join(_exact(kept)))
    halved = [column for column in map(str, kept) if not column.startswith(SECTIONS) and not exact.fullmatch(column)]
    kept = kept.astype({column: np.float32 for column in halved if kept[column].dtype == np.float64})
    ordered = kept[[*first, *(column for column in kept if column not in first)]]
    return ordered.sort_values(["stage", "method", "run_id"], ignore_index=True)


def judged(runs: pd.DataFrame, minus_half: str | None) -> pd.DataFrame:
    """Judge runs by their primary metric less half of another, `test_accuracy_minus_half_distance_correlation`.

    Only the last step has both: dependence is not measured before. So it is the one that validation selects here.

    Args:
        runs: of one dataset, with the columns of `load_results`.
        minus_half: the metric half of which is taken off, without its split; of several nuisances their mean. None
            leaves the runs as they are, as does that none is done.

    Raises:
        UserError: the runs do not have that metric.
    """
    if minus_half is None or "data.primary" not in runs or runs["data.primary"].isna().all():
        return runs
    (primary,) = runs["data.primary"].dropna().unique()
    name = f"{primary}_minus_half_{minus_half}"
    names = list(map(str, runs))
    splits = [one.removesuffix(f"_{primary}") for one in names if one.endswith(f"_{primary}") and BEST not in one]
    dependences = {
        split: [one for one in names if re.fullmatch(rf"{re.escape(f'{split}_{minus_half}')}(_\d+)?", one)]
        for split in splits
    }
    differences = {
        f"{split}_{name}": runs[f"{split}_{primary}"] - runs[names_of_split].mean(axis=1, skipna=False) / 2
        for split, names_of_split in dependences.items()
        if names_of_split
    }
    if f"test_{name}" not in differences:
        raise UserError(f"runs have no metric test_{minus_half} to take off test_{primary}")
    at_best = {f"{BEST}{column}": values for column, values in differences.items()}
    at_best |= {f"{BEST}step": pd.to_numeric(runs["trainer.steps"])}
    known = runs["data.primary"].notna()
    facts = {"data.primary": name, "data.metric": f"test_{name}"}
    columns = pd.DataFrame(
        differences | at_best | {column: runs[column].mask(known, fact) for column, fact in facts.items()}
    )
    return pd.concat([runs.drop(columns=[column for column in columns if column in runs]), columns], axis=1)


def _exact(runs: pd.DataFrame) -> list[str]:
    """Return patterns of the columns by which runs are judged and selected."""
    metrics, primaries = (map(re.escape, runs[name].dropna().unique()) for name in ("data.metric", "data.primary"))
    return [
        rf"({re.escape(BEST)})?({metric}|.*_{primary})" for metric, primary in zip(metrics, primaries, strict=False)
    ]


def curves(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the learning curves of the settings that validation selected: method, seed, step, validation and test.

    Args:
        table: rows of the problem; other runs in the folder, such as those of an earlier form, are left out.
        out: folder of the problem's runs.
    """
    rule = RULES[0].value
    run_ids = table.loc[(table["stage"] == rule) & (table["status"] == "done"), "run_id"]
    runs = load_results(out / rule)
    runs = runs[runs["run_id"].isin(run_ids)]
    parts = []
    for (_, run), curve in zip(
        runs.iterrows(), curves_of([RunFolder(Path(path)) for path in runs["path"]]), strict=True
    ):
        names = {f"validation_{run['data.primary']}": "validation", str(run["data.metric"]): "test"}
        if curve is not None and set(names) <= set(curve):
            measured = curve[["step", *names]].rename(columns=names).dropna(subset=["test"])
            parts.append(measured.assign(method=run["method"], seed=run["seed"]))
    if not parts:
        return pd.DataFrame(columns=CURVE_COLUMNS)
    points = pd.concat(parts, ignore_index=True)[[*CURVE_COLUMNS]]
    return points.sort_values(["method", "seed", "step"], ignore_index=True)


def _carry_out(sweep: Sweep, out: Path, engine: Engine, quiet: bool, rerun: Rerun) -> None:
    """Carry out a sweep; that single runs fail is a result, as is that all diverge."""
    if rerun is Rerun.stale and _has_old_failures(sweep, out):
        with suppress(RunFailed):
            carry_out_sweep(SweepRequest(sweep, out, rerun=Rerun.failed, quiet=quiet), engine)
    with suppress(RunFailed):
        carry_out_sweep(SweepRequest(sweep, out, rerun=rerun, quiet=quiet), engine)
    runs = load_results(out)
    if len(runs) and (runs["status"] == "done").any():
        return
    if not len(runs) or (runs["kind"] != "diverged").any():
        raise RunFailed("failed", f"all runs in {out} have failed; `record.json` in their folders says why")
    announce(f"all {len(runs)} runs in {out} have diverged: that is worse than all others")


def present_code(edition: Edition, name: str, method: str) -> set[str]:
    """Return the hashes of the sources that runs of a method on a problem have now."""
    return {sources_hash(*run.classes) for run in edition.search(name, method).runs()}


def _has_old_failures(sweep: Sweep, out: Path) -> bool:
    """Tell whether a run has failed with other code than that of now."""
    records = ((config, RunFolder(out / config.spec.run_id).read_record()) for config in sweep.runs())
    return any(
        record is not None and record.status == "failed" and record.code.get("sources") != sources_hash(*config.classes)
        for config, record in records
    )
