"""Submissions of a method: a folder of rows for a pull request, and checks that do not trust it.

<method>/submission.yaml       edition, method, hash of the code, packages and hardware
<method>/<method>.py           the file that registers the method, where it is not part of the suite
<method>/<problem>.parquet     the rows, as `build` makes them
"""

import inspect
import math
from collections.abc import Iterator, Mapping
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
from invbench.leaderboard.build import LEFT_OUT, RULES, SEARCH, read_rows, write_rows
from invbench.leaderboard.edition import Edition
from invbench.leaderboard.standings import selected_settings
from invbench.leaderboard.verify import config_of
from invbench.results.columns import as_text
from invbench.runs.commands import parse_seeds
from invbench.strict_yaml import read_yaml
from invbench.system.provenance import code_version, describe

FILE = "submission.yaml"
NAMED = 3
"""Largest number of examples that a complaint names."""


class Submission(Settings):
    """What a submission says of itself; none of it is believed."""

    edition: str = setting(..., "version of the edition")
    method: str = setting(..., "registered name")
    file: str | None = setting(None, "name of the method's file in the folder")
    file_sha256: str | None = setting(None, "of that file")
    code: dict[str, Any] = setting({}, "version, hash of the sources and commit")
    environment: dict[str, Any] = setting({}, "packages and hardware")


def write_submission(edition: Edition, rows: Mapping[str, pd.DataFrame], method: str, out: Path) -> Path:
    """Write the submission of a method. Returns its folder.

    Args:
        rows: of the method alone, by problem.
        out: folder that gets a folder with the method's name.

    Raises:
        UserError: rows are missing or not as the edition says; nothing is written.
    """
    if complaints := list(check_rows(edition, rows, method)):
        raise UserError(f"{method} cannot be submitted: {'; '.join(complaints)}")
    folder = out / method
    cls = METHODS.load(method.partition("+")[0])
    foreign = not cls.__module__.startswith("invbench.")
    source = Path(inspect.getfile(cls)).read_text(encoding="utf-8") if foreign else None
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


def read_submission(edition: Edition, folder: Path) -> tuple[Submission, dict[str, pd.DataFrame]]:
    """Read a submission. Raises UserError where it is no folder of one, or of another edition."""
    path = folder / FILE
    submission = Submission.parse(read_yaml(path, FILE), source=str(path))
    if submission.edition != edition.version:
        raise UserError(f"{path} is of edition {submission.edition}, and this is {edition.version}; they are not mixed")
    names = [name for name in edition.problems if (folder / f"{name}.parquet").is_file()]
    return submission, read_rows(folder, names, edition.version)


def check_submission(edition: Edition, folder: Path) -> list[str]:
    """Check a submission without trusting it and without running its code. Returns complaints; none where it is right.

    The runs must be those that the edition asks for, by their identities; what each rule selects is computed again
    from the trials; numbers must be possible.

    Raises:
        UserError: the folder is no submission.
    """
    submission, rows = read_submission(edition, folder)
    complaints = list(check_rows(edition, rows, submission.method))
    if submission.file is not None:
        path = folder / submission.file
        if path.parent != folder or not path.is_file():
            complaints.append(f"{submission.file} is no file of the folder")
        elif sha256(path.read_bytes()).hexdigest() != submission.file_sha256:
            complaints.append(f"{submission.file} is not the file of file_sha256")
    return complaints


def check_rows(edition: Edition, rows: Mapping[str, pd.DataFrame], method: str) -> Iterator[str]:
    """Yield what is wrong with the rows of a method; its class must be registered."""
    needed = [name for name in edition.problems if method in edition.methods_on(name)]
    if missing := sorted(set(needed) - set(rows)):
        yield f"there are no rows for {', '.join(missing)}"
    for name, table in rows.items():
        for complaint in _check_problem(edition, name, table, method):
            yield f"{name}: {complaint}"


def _check_problem(edition: Edition, name: str, table: pd.DataFrame, method: str) -> Iterator[str]:
    if set(table["method"]) != {method} or set(table["problem"]) != {name}:
        yield "rows of another method or problem"
        return
    left_out = edition.left_out_search(name, method)
    for stage, sweep in ((SEARCH, edition.search(name, method)), (LEFT_OUT, left_out)):
        expected = {run.spec.run_id for run in sweep.runs()} if sweep is not None else set()
        given = list(table.loc[table["stage"] == stage, "run_id"])
        if len(given) != len(set(given)) or set(given) != expected:
            others = len(set(given) - expected)
            yield f"stage {stage} has {len(set(given) & expected)} of {len(expected)} runs, and {others} others"
    done = table[table["status"] == "done"]
    yield from _check_identities(edition, done)
    yield from _check_numbers(done)
    for rule in RULES:
        if rule is not Select.leave_one_env_out or left_out is not None:
            yield from _check_selection(edition, table, rule)


def _check_identities(edition: Edition, done: pd.DataFrame) -> Iterator[str]:
    """Check that the settings of each run make its identity."""
    wrong = []
    for _, row in done.iterrows():
        try:
            config_of(edition, row)
        except UserError:
            wrong.append(str(row["run_id"]))
    if wrong:
        yield f"{len(wrong)} runs have other settings than their identities say, such as {', '.join(wrong[:NAMED])}"


def _check_numbers(done: pd.DataFrame) -> Iterator[str]:
    """Check that metrics are finite, accuracies are shares, and times are positive."""
    for name in map(str, done):
        if name.startswith("cost.") and (done[name].dropna() < 0).any():
            yield f"{name} is negative"
        if "accuracy" in name and not name.startswith("data.") and not done[name].dropna().between(0, 1).all():
            yield f"{name} is no share"
    metric = str(done["data.metric"].iloc[0])
    if not np.isfinite(done[metric].to_numpy(float)).all():
        yield f"{metric} is not finite in runs that are done"


def _check_selection(edition: Edition, table: pd.DataFrame, rule: Select) -> Iterator[str]:
    """Check that the fresh runs have the settings that the rule selects, and the fresh seeds."""
    fresh = table[table["stage"] == rule.value]
    if not len(fresh):
        yield f"no fresh runs of what {rule.value} selects"
        return
    seeds = parse_seeds(edition.fresh_seeds)
    if sorted(map(int, fresh["seed"])) != sorted(seeds):
        yield f"fresh runs of {rule.value} have seeds {sorted(map(int, fresh['seed']))}, not {edition.fresh_seeds}"
    chosen = selected_settings(table, rule)
    texts = as_text(fresh, list(chosen.index))
    differing = [name for name in chosen.index if (texts[name] != chosen[name]).any()]
    if differing:
        yield f"fresh runs of {rule.value} have other settings than it selects: {', '.join(differing)}"
    if fresh["status"].eq("done").any() and math.isnan(float(fresh["cost.wall_seconds"].median())):
        yield f"fresh runs of {rule.value} have no cost"
