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
from invbench.core.registry import METHODS, NAME
from invbench.core.settings import Settings, setting
from invbench.errors import UserError
from invbench.files import write_text
from invbench.leaderboard.build import LEFT_OUT, RULES, SEARCH, STAGES, present_code
from invbench.leaderboard.edition import Edition
from invbench.leaderboard.methods import is_of_suite, is_registered, knows
from invbench.leaderboard.rows import NAMED, read_rows, write_rows, wrong_columns
from invbench.leaderboard.standings import selected_trial
from invbench.leaderboard.verify import config_of
from invbench.results.selection import BEST
from invbench.runs.commands import parse_seeds
from invbench.strict_yaml import read_yaml
from invbench.sweeps.definition import Sweep
from invbench.sweeps.rerun_best import cell_of
from invbench.system.provenance import code_version, describe

FILE = "submission.yaml"
METHOD = re.compile(rf"{NAME.pattern}(\+{NAME.pattern})*")
"""Pattern of the name of a method that can be submitted: registered names joined by `+`."""


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
    complaints = [*_check_method(edition, method), *check_rows(edition, rows, method, base)]
    complaints += [] if complaints else _check_code(edition, rows, method)
    if complaints:
        raise UserError(f"{method} cannot be submitted: {'; '.join(complaints)}")
    folder = out / method
    (file,) = _files_of(method)
    source = file.read_text(encoding="utf-8")
    content = Submission(
        edition=edition.version,
        method=method,
        file=f"{method}.py",
        file_sha256=sha256(source.encode()).hexdigest(),
        code=code_version(*map(METHODS.load, method.split("+"))),
        environment=describe(torch.device("cpu")),
    )
    try:
        for problem, table in rows.items():
            write_rows(table, folder / f"{problem}.parquet")
        write_text(folder / f"{method}.py", source)
        write_text(folder / FILE, yaml.safe_dump(content.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


def _files_of(method: str) -> set[Path]:
    """Return the files that register the parts of a method which do not come with the suite."""
    return {Path(inspect.getfile(METHODS.load(name))) for name in method.split("+") if not is_of_suite(name)}


def _check_method(edition: Edition, method: str) -> Iterator[str]:
    """Yield why a method is none that can be submitted."""
    if not METHOD.fullmatch(method):
        yield f"{method!r} is no name of a method"
    elif not is_registered(method):
        yield f"the file that registers {method} is not there, or registers another method"
    elif is_of_suite(method):
        yield f"{method} comes with the suite; its rows are those of `bench leaderboard build`"
    elif len(_files_of(method)) > 1:
        yield f"the parts of {method} are registered by several files; put them into one"
    elif not any(method in edition.admitted(name) for name in edition.problems):
        yield f"{method} is admitted by no problem"


def _check_code(edition: Edition, rows: Mapping[str, pd.DataFrame], method: str) -> Iterator[str]:
    """Yield what was made by other code than the present one."""
    for name, table in rows.items():
        if set(table["code"]) - present_code(edition, name, method):
            yield f"{name}: rows were made by other code; `bench leaderboard run --problem {name}` makes them again"


def read_submission(edition: Edition, folder: Path) -> tuple[Submission, dict[str, pd.DataFrame]]:
    """Read a submission. Raises UserError where it is no folder of one, or of another edition."""
    path = folder / FILE
    submission = Submission.parse(read_yaml(path, FILE), source=str(path))
    if submission.edition != edition.version:
        raise UserError(f"{path} is of edition {submission.edition}, and this is {edition.version}; they are not mixed")
    names = [name for name in edition.problems if (folder / f"{name}.parquet").is_file()]
    return submission, read_rows(folder, names, edition.version)


def check_submission(edition: Edition, folder: Path, base: Mapping[str, pd.DataFrame]) -> list[str]:
    """Check a submission without believing it. Returns complaints; none where it is right.

    The runs must be those that the edition asks for, by their identities; what each rule selects is computed again
    from the trials; numbers must be possible; data must be those of the edition's runs. The class of its method must be
    registered, so its file has been imported, which runs its code.

    Args:
        edition: which it is for.
        folder: of the submission.
        base: the edition's own rows by problem, whose metrics it must have.

    Raises:
        UserError: the folder is no submission.
    """
    submission, rows = read_submission(edition, folder)
    complaints = [*check_file(submission, folder), *_check_method(edition, submission.method)]
    if complaints:
        return complaints
    complaints = list(check_rows(edition, rows, submission.method, base))
    codes = {code for table in rows.values() for code in table["code"].unique()}
    if codes - {str(submission.code.get("sources"))}:
        complaints.append("rows were made by other code than submission.yaml says")
    return complaints


def check_file(submission: Submission, folder: Path) -> list[str]:
    """Check the file of a submission, before it is imported. Returns complaints."""
    if not METHOD.fullmatch(submission.method):
        return [f"{submission.method!r} is no name of a method"]
    if submission.file is None:
        return [f"the file that registers {submission.method} is not there"]
    path = folder / f"{submission.method}.py"
    if submission.file != path.name or path.is_symlink() or not path.is_file():
        return [f"{submission.file} is no file of the folder that is named after the method"]
    if sha256(path.read_bytes()).hexdigest() != submission.file_sha256:
        return [f"{submission.file} is not the file of file_sha256"]
    return []


def check_rows(
    edition: Edition, rows: Mapping[str, pd.DataFrame], method: str, base: Mapping[str, pd.DataFrame]
) -> Iterator[str]:
    """Yield what is wrong with the rows of a method; arguments as for `check_submission`."""
    needed = [name for name in edition.problems if method in edition.admitted(name)]
    if missing := sorted(set(needed) - set(rows)):
        yield f"there are no rows for {', '.join(missing)}"
    for name, table in rows.items():
        complaints = list(wrong_columns(table)) or list(_check_problem(edition, name, table, method))
        if not complaints and name in base:
            complaints = [*_check_metric(table, base[name]), *_check_data(table, base[name])]
        yield from (f"{name}: {complaint}" for complaint in complaints)


def check_comparable(name: str, table: pd.DataFrame, base: pd.DataFrame | None) -> Iterator[str]:
    """Yield why rows of a problem cannot stand beside the edition's."""
    if wrong := sorted(method for method in set(map(str, table["method"])) if not METHOD.fullmatch(method)):
        yield f"{wrong[0]!r} is no name of a method"
    if set(table["problem"]) != {name}:
        yield "rows are of another problem"
    if base is not None:
        yield from _check_metric(table, base)


def _check_metric(table: pd.DataFrame, base: pd.DataFrame) -> Iterator[str]:
    """Check that runs are judged by the metric of the edition's rows."""
    done = table[table["status"] == "done"]
    for name in ("data.metric", "data.primary", "data.higher_is_better"):
        expected = set(base[name].dropna())
        if len(done) and set(done[name]) != expected:
            yield f"{name} is not {', '.join(map(str, expected))} in all rows"


def _check_data(table: pd.DataFrame, base: pd.DataFrame) -> Iterator[str]:
    """Check that each seed has the data that it has in the edition's rows."""
    seeds, prints = (base[column] for column in ("seed", "data.fingerprint"))
    known = set(zip(seeds, prints, strict=True))
    done = table[table["status"] == "done"]
    given = set(zip(done["seed"], done["data.fingerprint"], strict=True))
    if others := sorted({int(seed) for seed, fingerprint in given - known if seed in set(seeds)}):
        yield f"the data of seeds {', '.join(map(str, others[:NAMED]))} are not those of the edition's runs"


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
    if done.empty:
        return
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
