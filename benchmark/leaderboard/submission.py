"""Submissions of a method: a folder of rows for a pull request, and checks that do not trust it.

<method>/submission.yaml       edition, method, hash of the code, packages and hardware
<method>/<method>.py           the file that registers the method, where it is not part of the suite
<method>/<problem>.parquet     the rows, as `build` makes them
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from invbench.choices import Select
from invbench.core.registry import METHODS
from invbench.core.settings import Settings, setting
from invbench.errors import UserError
from invbench.files import write_text
from invbench.leaderboard.build import LEFT_OUT, RULES, SEARCH, STAGES, read_rows, write_rows
from invbench.leaderboard.edition import Edition
from invbench.leaderboard.methods import knows
from invbench.leaderboard.standings import selected_trial
from invbench.leaderboard.verify import config_of
from invbench.results.selection import BEST
from invbench.runs.commands import parse_seeds
from invbench.strict_yaml import read_yaml
from invbench.sweeps.definition import Sweep
from invbench.sweeps.rerun_best import cell_of
from invbench.system.provenance import code_version, describe

FILE = "submission.yaml"
NAMED = 3
"""Largest number of examples that a complaint names."""
REQUIRED = (
    "edition", "problem", "stage", "method", "knows", "seed", "status", "code", "run_id", "data.metric", "data.primary",
    "data.higher_is_better", "data.fingerprint", "best_validation.step", "cost.wall_seconds",
)  # fmt: skip
NUMBERS = re.compile(
    r"seed|fused|(best_validation\.)?(test|validation|held_out)_.*|best_validation\.step|(cost|invariance)\..*"
)
"""Columns that rows must have, and those that hold numbers."""
STATUSES = {"done", "failed"}


class Submission(Settings):
    """What a submission says of itself; none of it is believed."""

    edition: str = setting(..., "version of the edition")
    method: str = setting(..., "registered name")
    file: str | None = setting(None, "name of the method's file in the folder")
    file_sha256: str | None = setting(None, "of that file")
    code: dict[str, Any] = setting({}, "version, hash of the sources and commit")
    environment: dict[str, Any] = setting({}, "packages and hardware")


def write_submission(
    edition: Edition, rows: Mapping[str, pd.DataFrame], method: str, base: Mapping[str, pd.DataFrame], out: Path
) -> Path:
    """Write the submission of a method. Returns its folder.

    Args:
        rows: of the method alone, by problem.
        base: the edition's own rows by problem.
        out: folder that gets a folder with the method's name.

    Raises:
        UserError: rows are missing or not as the edition says; nothing is written.
    """
    if complaints := list(check_rows(edition, rows, method, base)):
        raise UserError(f"{method} cannot be submitted: {'; '.join(complaints)}")
    folder = out / method
    cls = _class_of(method)
    source = Path(inspect.getfile(cls)).read_text(encoding="utf-8") if _is_foreign(cls) else None
    name = f"{method}.py" if source is not None else None
    content = Submission(
        edition=edition.version,
        method=method,
        file=name,
        file_sha256=None if source is None else sha256(source.encode()).hexdigest(),
        code=code_version(cls),
        environment=describe(torch.device("cpu")),
    )
    for problem, table in rows.items():
        write_rows(table, folder / f"{problem}.parquet")
    if name is not None and source is not None:
        write_text(folder / name, source)
    write_text(folder / FILE, yaml.safe_dump(content.model_dump(mode="json"), sort_keys=False))
    return folder


def _class_of(method: str) -> type[Any]:
    return METHODS.load(method.partition("+")[0])


def _is_foreign(cls: type[Any]) -> bool:
    """Tell whether a method is no part of the suite."""
    return not cls.__module__.startswith("invbench.")


def read_submission(edition: Edition, folder: Path) -> tuple[Submission, dict[str, pd.DataFrame]]:
    """Read a submission. Raises UserError where it is no folder of one, or of another edition."""
    path = folder / FILE
    submission = Submission.parse(read_yaml(path, FILE), source=str(path))
    if submission.edition != edition.version:
        raise UserError(f"{path} is of edition {submission.edition}, and this is {edition.version}; they are not mixed")
    names = [name for name in edition.problems if (folder / f"{name}.parquet").is_file()]
    return submission, read_rows(folder, names, edition.version)


def check_submission(edition: Edition, folder: Path, base: Mapping[str, pd.DataFrame]) -> list[str]:
    """Check a submission without trusting it and without running its code. Returns complaints; none where it is right.

    The runs must be those that the edition asks for, by their identities; what each rule selects is computed again
    from the trials; numbers must be possible. The class of its method must be registered.

    Args:
        edition: which it is for.
        folder: of the submission.
        base: the edition's own rows by problem, whose metrics it must have.

    Raises:
        UserError: the folder is no submission.
    """
    submission, rows = read_submission(edition, folder)
    complaints = list(check_rows(edition, rows, submission.method, base))
    codes = {str(code) for table in rows.values() if "code" in table for code in table["code"].unique()}
    if codes - {str(submission.code.get("sources"))}:
        complaints.append("rows were made by other code than submission.yaml says")
    if submission.file is None and _is_foreign(_class_of(submission.method)):
        complaints.append(f"the file that registers {submission.method} is not there")
    return [*check_file(submission, folder), *complaints]


def check_file(submission: Submission, folder: Path) -> list[str]:
    """Check the file of a submission, before it is imported. Returns complaints."""
    if submission.file is None:
        return []
    path = folder / submission.file
    if submission.file != f"{submission.method}.py" or path.is_symlink() or not path.is_file():
        return [f"{submission.file} is no file of the folder that is named after the method"]
    if sha256(path.read_bytes()).hexdigest() != submission.file_sha256:
        return [f"{submission.file} is not the file of file_sha256"]
    return []


def check_rows(
    edition: Edition, rows: Mapping[str, pd.DataFrame], method: str, base: Mapping[str, pd.DataFrame]
) -> Iterator[str]:
    """Yield what is wrong with the rows of a method; arguments as for `check_submission`."""
    needed = [name for name in edition.problems if method in edition.methods_on(name)]
    if missing := sorted(set(needed) - set(rows)):
        yield f"there are no rows for {', '.join(missing)}"
    for name, table in rows.items():
        complaints = list(_check_columns(table)) or list(_check_problem(edition, name, table, method))
        if not complaints and name in base:
            complaints = list(_check_metric(table, base[name]))
        yield from (f"{name}: {complaint}" for complaint in complaints)


def _check_columns(table: pd.DataFrame) -> Iterator[str]:
    """Check that all columns are there and hold what they must."""
    if lacking := [name for name in REQUIRED if name not in table]:
        yield f"there is no column {', '.join(lacking)}"
        return
    names = [str(name) for name in table if NUMBERS.fullmatch(str(name))]
    if wrong := [name for name in names if not pd.api.types.is_numeric_dtype(table[name])]:
        yield f"{', '.join(wrong[:NAMED])} {'holds' if len(wrong) == 1 else 'hold'} other than numbers"
    if not pd.api.types.is_integer_dtype(table["seed"]):
        yield "seeds are no integers"
    if others := sorted(set(map(str, table["status"])) - STATUSES):
        yield f"status is {', '.join(map(repr, others[:NAMED]))}, not done or failed"
    if not (table["status"] == "done").any():
        yield "no run is done"


def _check_metric(table: pd.DataFrame, base: pd.DataFrame) -> Iterator[str]:
    """Check that runs are judged by the metric of the edition's rows."""
    done = table[table["status"] == "done"]
    for name in ("data.metric", "data.primary", "data.higher_is_better"):
        expected = set(base[name].dropna())
        if set(done[name]) != expected:
            yield f"{name} is not {', '.join(map(str, expected))} in all rows"


def _check_problem(edition: Edition, name: str, table: pd.DataFrame, method: str) -> Iterator[str]:
    if set(table["method"]) != {method} or set(table["problem"]) != {name}:
        yield "rows of another method or problem"
        return
    if set(table["knows"]) != {knows(method)}:
        yield f"knows is not '{knows(method)}' in all rows"
    if unknown := sorted(set(map(str, table["stage"])) - set(STAGES)):
        yield f"there is no stage {', '.join(unknown[:NAMED])}"
    left_out = edition.left_out_search(name, method)
    for stage, sweep in ((SEARCH, edition.search(name, method)), (LEFT_OUT, left_out)):
        expected = {run.spec.run_id for run in sweep.runs()} if sweep is not None else set()
        given = list(table.loc[table["stage"] == stage, "run_id"])
        if len(given) != len(set(given)) or set(given) != expected:
            others = len(set(given) - expected)
            yield f"stage {stage} has {len(set(given) & expected)} of {len(expected)} runs, and {others} others"
    done = table[table["status"] == "done"]
    yield from _check_identities(edition, table)
    yield from _check_numbers(done)
    for rule in RULES:
        if rule is not Select.leave_one_env_out or left_out is not None:
            yield from _check_selection(edition, table, rule)


def _check_identities(edition: Edition, table: pd.DataFrame) -> Iterator[str]:
    """Check that the settings of each run make its identity, and are those of a trial."""
    wrong = []
    for _, row in table.iterrows():
        try:
            if edition.is_trial(str(row["problem"]), config_of(edition, row).spec):
                continue
        except UserError:
            pass
        wrong.append(str(row["run_id"]))
    if wrong:
        examples = ", ".join(wrong[:NAMED])
        yield f"{len(wrong)} runs have other settings than the edition's, or than their identities say: {examples}"


def _check_numbers(done: pd.DataFrame) -> Iterator[str]:
    """Check that metrics are finite, accuracies are shares, and times are positive."""
    for name in map(str, done):
        if name.startswith("cost.") and not (np.isfinite(done[name]) & (done[name] >= 0) | done[name].isna()).all():
            yield f"{name} is negative or infinite"
        is_share = "accuracy" in name and "_minus_" not in name and not name.startswith("data.")
        if is_share and not done[name].dropna().between(0, 1).all():
            yield f"{name} is no share"
    if not (done["cost.wall_seconds"] > 0).all():
        yield "cost.wall_seconds is not positive for all runs that are done"
    metric, primary = (str(done[name].iloc[0]) for name in ("data.metric", "data.primary"))
    names = [metric, f"validation_{primary}", f"{BEST}{metric}", f"{BEST}validation_{primary}"]
    whole = done[done["stage"] != LEFT_OUT]
    for name in names:
        if name not in done or not np.isfinite(whole[name].to_numpy(float)).all():
            yield f"{name} is not finite in runs that are done"


def _check_selection(edition: Edition, table: pd.DataFrame, rule: Select) -> Iterator[str]:
    """Check that the fresh runs are those of the settings that the rule selects, with the fresh seeds."""
    given = list(table.loc[table["stage"] == rule.value, "run_id"])
    expected: set[str] = set()  # where the rule can select nothing
    with suppress(UserError):
        chosen = config_of(edition, selected_trial(table, rule)).spec
        sweep = Sweep(seeds=tuple(parse_seeds(edition.fresh_seeds)), cells=(cell_of(chosen, rule),))
        expected = {run.spec.run_id for run in sweep.runs()}
    if len(given) != len(set(given)) or set(given) != expected:
        counts = f"{len(set(given) & expected)} of the {len(expected)} fresh runs", len(set(given) - expected)
        yield f"stage {rule.value} has {counts[0]} of the settings that the rule selects, and {counts[1]} others"
