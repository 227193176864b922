"""`bench leaderboard`: which method works on which problem, tuned alike, with fresh seeds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.choices import Format, Rerun, Select
from invbench.cli.arguments import choice, possible
from invbench.cli.completion import methods
from invbench.cli.output import echo
from invbench.errors import RunFailed, UserError
from invbench.system.gpus import MOST_PROCESSES

if TYPE_CHECKING:
    import pandas as pd

    from invbench.leaderboard.edition import Edition
    from invbench.sweeps.engines import Engine

leaderboard_app = typer.Typer(
    name="leaderboard", help="Which method works on which problem: editions of tuned comparisons.", no_args_is_help=True
)
ROWS, MINE = Path("results/leaderboard"), Path("results/leaderboard-mine")
EditionName = Annotated[str, typer.Option("--edition", help="Edition, a file of configs/leaderboard.")]
RowsFolder = Annotated[Path, typer.Option(callback=possible, help="Folder of the editions' rows.")]
MineFolder = Annotated[Path, typer.Option(callback=possible, help="Folder of methods that `run` has carried out.")]
Problems = Annotated[list[str] | None, typer.Option("--problem", help="Problems (default: all).")]
Workers = Annotated[int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Processes on the CPU, without GPUs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but what went wrong.")]
Rule = Annotated[Select, typer.Option(**choice(Select, Select.last), help="How settings were selected.")]
FormatOption = Annotated[Format, typer.Option("--format", **choice(Format), help="How it is written.")]
MethodOrFile = Annotated[
    str,
    typer.Option("--method", "-m", help="A method, or a Python file that registers one.", autocompletion=methods),
]
Added = Annotated[
    list[Path] | None,
    typer.Option(
        "--add", callback=possible, help="Folder of a method's rows, such as results/leaderboard-mine/small/mine."
    ),
]


@leaderboard_app.command()
def show(
    problem: Annotated[str | None, typer.Option(help="Standings of one problem (default: a summary of all).")] = None,
    rule: Rule = Select.best_validation,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    add: Added = None,
    format_: FormatOption = Format.text,
) -> None:
    """Print the leaderboard: over all problems, or of one, with 95 % intervals and whether ERM can be told apart."""
    from invbench.leaderboard.edition import read_edition

    chosen = read_edition(edition)
    if problem is not None:
        chosen.problem(problem)
    rows = _rows(chosen, folder / edition, add or [])
    if problem is not None and problem not in rows:
        raise UserError(f"there are no rows of {problem} in {folder / edition}; `bench leaderboard build` makes them")
    _print(rows, problem, rule, format_)


@leaderboard_app.command()
def page(
    out: Annotated[Path, typer.Option(callback=possible, help="File.")] = Path("leaderboard.html"),
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    add: Added = None,
) -> None:
    """Write the leaderboard as one page, to sort, filter and click; it needs no network."""
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.page import write_page
    from invbench.leaderboard.rows import read_curves

    chosen = read_edition(edition)
    rows = _rows(chosen, folder / edition, add or [])
    write_page(chosen, rows, read_curves(folder / edition, rows), out)
    echo(f"{out}: {len(rows)} of {len(chosen.problems)} problems", err=True)


@leaderboard_app.command()
def build(
    problem: Problems = None,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    runs: Annotated[
        Path, typer.Option(callback=possible, help="Folder of the runs, which are no part of the edition.")
    ] = Path("results/leaderboard-runs"),
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Carry out what is left of an edition, and write each problem's rows once it is complete.

    A problem whose rows are there is not built again. The same command again continues.
    """
    from invbench.leaderboard.build import build as build_problem
    from invbench.leaderboard.build import curves
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.rows import CURVES, write_rows

    chosen = read_edition(edition)
    names = [name for name in problem or chosen.problems if chosen.problem(name)]
    failures = 0
    for name in names:
        path = folder / edition / f"{name}.parquet"
        if path.exists():
            echo(f"{name}: {path} is there already", err=True)
            continue
        try:
            table = build_problem(chosen, name, runs / edition / name, _engine(workers), quiet=quiet)
        except (RunFailed, UserError) as failure:
            echo(f"{name}: {failure}", err=True)
            failures += 1
            continue
        write_rows(curves(runs / edition / name), path.with_suffix(CURVES))
        write_rows(table, path)
        echo(f"{name}: {path}", err=True)
    if failures:
        raise RunFailed("failed", f"{failures} of {len(names)} problems are not built")


@leaderboard_app.command()
def run(
    method: MethodOrFile,
    problem: Problems = None,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    out: MineFolder = MINE,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Take a method through the same protocol, and print the table with it in its place.

    Its settings are searched like everybody's, selected by each rule, and run with fresh seeds. The same command again
    continues; what was made by other code is made again.
    """
    from invbench.leaderboard.build import build as build_problem
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.rows import write_rows

    chosen, name = read_edition(edition), _registered(method)
    admitted = [one for one in chosen.problems if name in chosen.methods_on(one)]
    for one in problem or []:
        chosen.problem(one)
        if one not in admitted:
            raise UserError(f"{name} cannot be run on {one}; problems that admit it: {', '.join(admitted) or 'none'}")
    asked = problem or admitted
    if lacking := [one for one in asked if not (folder / edition / f"{one}.parquet").is_file()]:
        echo(
            f"there are no rows of other methods on {', '.join(lacking)} in {folder / edition} (--folder), so {name} "
            "will be shown alone there",
            err=True,
        )
    done: list[str] = []
    for one in asked:
        path = out / edition / name / f"{one}.parquet"
        try:
            table = build_problem(
                chosen, one, out / edition / name / "runs" / one, _engine(workers), name, quiet, Rerun.stale
            )
        except (RunFailed, UserError) as failure:
            echo(f"{one}: {failure}", err=True)
            continue
        write_rows(table, path)
        done.append(one)
        if len(done) < len(asked):
            echo(f"{one}: {path}", err=True)
    if not done:
        raise RunFailed("failed", f"{name} has failed on every problem")
    rows = without_old_rows(_rows(chosen, folder / edition, [out / edition / name]), chosen, name)
    _print(rows, done[0] if len(done) == 1 else None, Select.best_validation, Format.text)
    echo(f"\nseconds and cost of {name} were measured here, those of others where the edition was built", err=True)
    echo(f"`bench leaderboard show --add {out / edition / name}` shows it again; `--problem` one problem", err=True)
    if len(done) < len(asked):
        raise RunFailed("failed", f"{name} has failed on {len(asked) - len(done)} of {len(asked)} problems")


@leaderboard_app.command()
def verify(
    sample: Annotated[int, typer.Option(min=1, help="How many rows are carried out again.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    problem: Problems = None,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    out: Annotated[Path, typer.Option(callback=possible, help="Folder of these runs.")] = Path(
        "results/leaderboard-verified"
    ),
    add: Added = None,
    format_: FormatOption = Format.text,
) -> None:
    """Carry a sample of the rows out again, and say to which digit each is reproduced.

    With `--add`, of that folder. Exit status 1 where one is another number, by more than the spread of seeds, or where
    rows are better in the mean than what is found now.
    """
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.rows import read_rows
    from invbench.leaderboard.verify import OTHER, flatters, laid_out
    from invbench.leaderboard.verify import verify as verify_rows

    chosen = read_edition(edition)
    rows = _rows(chosen, folder / edition, add or [])
    if absent := [name for name in problem or [] if chosen.problem(name) and name not in rows]:
        raise UserError(f"there are no rows of {', '.join(absent)} in {folder / edition}")
    rows = {name: rows[name] for name in problem or rows}
    added = [read_rows(path, rows, chosen.version) for path in add or []]
    methods = {method for tables in added for one in tables.values() for method in one["method"]}
    table = verify_rows(chosen, rows, sample, out, seed, lambda line: echo(line, err=True), methods or None)
    _write(*laid_out(table), format_, table)
    if (count := int((table["verdict"] == OTHER).sum())) > 0:
        raise RunFailed("not_reproduced", f"{count} of {len(table)} rows are not reproduced")
    if flatters(table):
        raise RunFailed("not_reproduced", "rows are better than what is found now, by more than chance")


@leaderboard_app.command()
def submit(
    method: MethodOrFile,
    edition: EditionName = "small",
    mine: MineFolder = MINE,
    out: Annotated[
        Path | None, typer.Option(callback=possible, help="Folder that gets the submission (default: the edition's).")
    ] = None,
) -> None:
    """Write a method's rows, code and environment as a folder for a pull request.

    `run` must have carried it out on every problem that admits it.
    """
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.rows import read_rows
    from invbench.leaderboard.submission import write_submission

    chosen, name = read_edition(edition), _registered(method)
    rows = read_rows(mine / edition / name, chosen.problems, chosen.version)
    base = read_rows(ROWS / edition, chosen.problems, chosen.version)
    written = write_submission(chosen, rows, name, base, out or ROWS / edition / "submissions")
    echo(f"{written}: commit it and open a pull request; `bench leaderboard check {written}` checks it")


@leaderboard_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A submission.", callback=possible)],
    edition: EditionName = "small",
    rows: Annotated[Path, typer.Option("--folder", callback=possible, help="Folder of the editions' rows.")] = ROWS,
) -> None:
    """Check a submission without trusting it: that its runs are the edition's, selected by its rules.

    The file that registers its method is imported, which runs its code with your rights: read it first. `verify --add`
    carries some of its runs out again.
    """
    from invbench.core.registry import METHODS
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.rows import read_rows
    from invbench.leaderboard.submission import check_file, check_submission, read_submission

    chosen = read_edition(edition)
    submission, _ = read_submission(chosen, folder)
    complaints = check_file(submission, folder)
    if not complaints:
        if submission.file is not None and submission.method not in METHODS.known():
            _registered(str(folder / submission.file))
        base = read_rows(rows / edition, chosen.problems, chosen.version)
        complaints = check_submission(chosen, folder, base)
    for complaint in complaints:
        echo(complaint)
    if complaints:
        raise RunFailed("not_valid", f"{folder} is no valid submission, for {len(complaints)} reasons")
    echo(f"{folder}: {submission.method} is as edition {chosen.version} asks")


def _rows(edition: "Edition", folder: Path, added: list[Path]) -> "dict[str, pd.DataFrame]":
    """Read the rows of an edition, of its submissions, and of further folders, by problem."""
    import pandas as pd

    from invbench.leaderboard.rows import read_rows

    submissions = sorted(path for path in (folder / "submissions").glob("*") if path.is_dir())
    folders = [*submissions, folder, *added]  # later ones win
    each = [read_rows(path, edition.problems, edition.version) for path in folders]
    for path, tables in zip(added, each[len(folders) - len(added) :], strict=True):
        if not tables:
            raise UserError(f"--add {path}: there are no rows of edition {edition.version}")
    rows = {name: [tables[name] for tables in each if name in tables] for name in edition.problems}
    if not any(rows.values()):
        raise UserError(f"there are no rows in {folder}; `bench leaderboard build` makes them")
    return {name: pd.concat(_latest(tables), ignore_index=True) for name, tables in rows.items() if tables}


def without_old_rows(rows: "dict[str, pd.DataFrame]", edition: "Edition", method: str) -> "dict[str, pd.DataFrame]":
    """Leave the rows of a method out that other code of it has made, and say so."""
    from invbench.leaderboard.build import present_code

    kept = {}
    for name, table in rows.items():
        of_method = table["method"] == method
        if of_method.any():
            old = of_method & ~table["code"].isin(present_code(edition, name, method))
            if old.any():
                says = f"rows that other code of {method} has made are left out; `--problem {name}` makes them again"
                echo(f"{name}: {says}", err=True)
            table = table[~old]
        kept[name] = table
    return {name: table for name, table in kept.items() if len(table)}


def _latest(tables: "list[pd.DataFrame]") -> "list[pd.DataFrame]":
    """Leave rows of a method out where a later table has it too, so that no method is counted twice."""
    later: set[str] = set()
    kept = []
    for table in reversed(tables):
        kept.append(table[~table["method"].isin(later)])
        later |= set(table["method"])
    return kept[::-1]


def _print(rows: "dict[str, pd.DataFrame]", problem: str | None, rule: Select, format_: Format) -> None:
    """Print the standings of a problem, or the summary of all."""
    from invbench.leaderboard import overall, standings

    if problem is not None:
        table = standings.standings(rows[problem], rule)
        _write(*standings.laid_out(problem, table), format_, table)
        return
    table = overall.overall(rows, rule)
    _write(*overall.laid_out(table, rows, rule), format_, table)


def _write(layout: object, remarks: list[str], format_: Format, table: "pd.DataFrame") -> None:
    """Print a table for people, or all its numbers as csv."""
    from invbench.results.formats import written
    from invbench.spreadsheet import csv

    if format_ is Format.csv:
        echo(csv(table), nl=False)
    else:
        echo(written(layout, remarks, format_))  # type: ignore[arg-type]


def _registered(method: str) -> str:
    """Return the name of a method; that which a Python file registers is known to all processes from now on."""
    import os

    from invbench.core.registry import IMPORT_VARIABLE, METHODS, import_file

    if not method.endswith(".py"):
        for part in method.split("+"):
            METHODS.load(part)
        return method
    path = Path(method).resolve()
    module = import_file(path)
    names = [name for name, entry in METHODS.known().items() if entry.origin.startswith(f"{module.__name__}.")]
    if len(names) != 1:
        raise UserError(f"{method} registers {len(names)} methods ({', '.join(names) or 'none'}); it must be one")
    files = [file for file in os.environ.get(IMPORT_VARIABLE, "").split(os.pathsep) if file]
    os.environ[IMPORT_VARIABLE] = os.pathsep.join(dict.fromkeys([*files, str(path)]))
    return names[0]


def _engine(workers: int | None) -> "Engine":
    from invbench.sweeps.engines.local import LocalEngine, LocalResources

    return LocalEngine(LocalResources(workers=workers).slots())
