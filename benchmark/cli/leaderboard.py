"""`bench leaderboard`: which method works on which problem, tuned alike, with fresh seeds."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.choices import Format, Rerun, Select
from invbench.cli.arguments import choice, possible
from invbench.cli.completion import methods
from invbench.cli.output import echo
from invbench.errors import RunFailed, UserError, did_you_mean
from invbench.system.gpus import MOST_PROCESSES

if TYPE_CHECKING:
    import pandas as pd

    from invbench.leaderboard.edition import Edition
    from invbench.sweeps.engines import Engine

leaderboard_app = typer.Typer(
    name="leaderboard", help="Which method works on which problem: editions of tuned comparisons.", no_args_is_help=True
)
ROWS, MINE, SUBMISSIONS = Path("results/leaderboard"), Path("results/leaderboard-mine"), "submissions"
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
        "--add", callback=possible, help="Folder of rows of a method, or of such folders, that are shown too."
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
    from invbench.leaderboard.added import folders_of_rows, rows_of_edition
    from invbench.leaderboard.build import RULES
    from invbench.leaderboard.edition import read_edition

    chosen = read_edition(edition)
    if rule not in RULES:
        raise UserError(f"--rule {rule.value}: the leaderboard selects by {', '.join(map(str, RULES))}")
    if problem is not None:
        chosen.problem(problem)
    rows = rows_of_edition(chosen, folder / edition, add or [])
    if problem is not None and problem not in rows:
        raise UserError(f"there are no rows of {problem} in {folder / edition}; `bench leaderboard build` makes them")
    _print(rows, problem, rule, format_)
    submissions = folder / edition / SUBMISSIONS
    if not add and (count := len(folders_of_rows(submissions))):
        echo(f"\n{count} submitted methods are not shown; `--add {submissions}` does", err=True)


@leaderboard_app.command()
def page(
    out: Annotated[Path, typer.Option(callback=possible, help="File.")] = Path("leaderboard.html"),
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    add: Added = None,
) -> None:
    """Write the leaderboard as one page, to sort, filter and click; it needs no network."""
    from invbench.leaderboard.added import rows_of_edition
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.page import write_page
    from invbench.leaderboard.rows import read_curves

    chosen = read_edition(edition)
    rows = rows_of_edition(chosen, folder / edition, add or [])
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
    with _engine(workers) as engine:
        for name in names:
            path = folder / edition / f"{name}.parquet"
            if path.exists():
                echo(f"{name}: {path} is there already", err=True)
                continue
            try:
                table = build_problem(chosen, name, runs / edition / name, engine, quiet=quiet)
            except (RunFailed, UserError) as failure:
                echo(f"{name}: {failure}", err=True)
                failures += 1
                continue
            write_rows(curves(table, runs / edition / name), path.with_suffix(CURVES))
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
    from invbench.leaderboard.added import rows_of_edition, without_old_rows
    from invbench.leaderboard.edition import BASELINE, read_edition

    chosen, name = read_edition(edition), _registered(method)
    if name == BASELINE:
        raise UserError(f"all are compared with {name}; `bench leaderboard verify --method {name}` runs it again")
    admitted = [one for one in chosen.problems if name in chosen.admitted(one)]
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
    with _engine(workers) as engine:
        done = _carry_out(chosen, name, asked, out / edition / name, engine, quiet)
    if not done:
        raise RunFailed("failed", f"{name} has failed on every problem")
    rows = without_old_rows(rows_of_edition(chosen, folder / edition, [out / edition / name]), chosen, name)
    _print(rows, done[0] if len(done) == 1 else None, Select.best_validation, Format.text)
    echo(
        f"\nseconds and cost of {name} were measured here, those of others where the edition was built and where more "
        "runs were trained together, which makes them cheaper",
        err=True,
    )
    echo(f"`bench leaderboard show --add {out / edition / name}` shows it again; `--problem` one problem", err=True)
    if len(done) < len(asked):
        raise RunFailed("failed", f"{name} has failed on {len(asked) - len(done)} of {len(asked)} problems")


@leaderboard_app.command()
def verify(
    sample: Annotated[int, typer.Option(min=1, help="How many rows are carried out again.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    problem: Problems = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Methods (default: all).", autocompletion=methods)
    ] = None,
    edition: EditionName = "small",
    folder: RowsFolder = ROWS,
    out: Annotated[Path, typer.Option(callback=possible, help="Folder of these runs.")] = Path(
        "results/leaderboard-verified"
    ),
    add: Added = None,
    format_: FormatOption = Format.text,
) -> None:
    """Carry a sample of the rows out again, and say to which digit each is reproduced.

    One process, one run after the other: 20 take two to four minutes. With `--add`, of that folder, whose method's file
    is imported, which runs its code with your rights. Exit status 1 where more than one row in twenty is another
    number, by more than the spread of seeds, or where rows are better in the mean than what is found now.
    """
    from invbench.leaderboard.added import rows_of_edition
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.standings import ADDED
    from invbench.leaderboard.verify import MOST_OTHERS, OTHER, flatters, laid_out
    from invbench.leaderboard.verify import verify as verify_rows

    chosen = read_edition(edition)
    rows = rows_of_edition(chosen, folder / edition, add or [])
    if absent := [name for name in problem or [] if chosen.problem(name) and name not in rows]:
        raise UserError(f"there are no rows of {', '.join(absent)} in {folder / edition}")
    rows = {name: rows[name] for name in problem or rows}
    if add:
        _register_methods(add, rows)
    some = {name: table[table[ADDED]] if add else table for name, table in rows.items()}
    known, asked = {str(one) for table in some.values() for one in table["method"].unique()}, set(method or [])
    if unknown := sorted(asked - known):
        raise UserError(f"there are no such rows of {', '.join(unknown)}{did_you_mean(unknown[0], known)}")
    if not known:
        raise UserError(f"{', '.join(map(str, add or []))}: there are no rows of {', '.join(rows)}")
    some = {name: table[table["method"].isin(asked or known)] for name, table in some.items()}
    table = verify_rows(chosen, rows, sample, out, seed, lambda line: echo(line, err=True), some)
    _write(*laid_out(table), format_, table)
    others = table.loc[table["verdict"] == OTHER, "method"]
    if len(others) > MOST_OTHERS * len(table):
        names = ", ".join(f"{count} of {name}" for name, count in others.value_counts().items())
        raise RunFailed("not_reproduced", f"{len(others)} of {len(table)} rows are not reproduced: {names}")
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
    written = write_submission(chosen, rows, name, base, out or ROWS / edition / SUBMISSIONS)
    echo(
        f"{written}: commit it and open a pull request; `bench leaderboard check {written}` checks it, and `bench "
        f"leaderboard show --add {written}` shows it"
    )


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
    from invbench.leaderboard.edition import read_edition
    from invbench.leaderboard.rows import read_rows
    from invbench.leaderboard.submission import check_file, check_submission, read_submission

    chosen = read_edition(edition)
    submission, _ = read_submission(chosen, folder)
    complaints = check_file(submission, folder)
    if not complaints:
        _register(submission.method, folder)
        base = read_rows(rows / edition, chosen.problems, chosen.version)
        complaints = check_submission(chosen, folder, base)
    for complaint in complaints:
        echo(complaint)
    if complaints:
        raise RunFailed("not_valid", f"{folder} is no valid submission, for {len(complaints)} reasons")
    echo(f"{folder}: {submission.method} is as edition {chosen.version} asks")


def _carry_out(
    edition: "Edition", method: str, problems: list[str], out: Path, engine: "Engine", quiet: bool
) -> list[str]:
    """Carry out a method on problems, and write its rows. Returns those on which it has not failed, and says why."""
    from invbench.leaderboard.build import build as build_problem
    from invbench.leaderboard.rows import write_rows

    done: list[str] = []
    for name in problems:
        path = out / f"{name}.parquet"
        try:
            table = build_problem(edition, name, out / "runs" / name, engine, method, quiet, Rerun.stale)
        except (RunFailed, UserError) as failure:
            echo(f"{name}: {failure}", err=True)
            continue
        write_rows(table, path)
        done.append(name)
        if len(done) < len(problems):
            echo(f"{name}: {path}", err=True)
    return done


def _register_methods(added: list[Path], rows: "dict[str, pd.DataFrame]") -> None:
    """Import the files of added methods, which submissions have with them. Raises UserError where there is none."""
    from invbench.leaderboard.added import folders_of_rows
    from invbench.leaderboard.standings import ADDED

    folders = [path for one in added for path in folders_of_rows(one)]
    for method in sorted({str(one) for table in rows.values() for one in table.loc[table[ADDED], "method"].unique()}):
        _register(method, *folders)


def _register(method: str, *folders: Path) -> None:
    """Import the file of a method from the first of the folders that has it, unless the method is registered."""
    from invbench.core.registry import IMPORT_VARIABLE
    from invbench.leaderboard.methods import is_registered

    if is_registered(method):
        return
    file = next((path for folder in folders if (path := folder / f"{method}.py").is_file()), None)
    if file is None:
        raise UserError(f"{method} is not registered: set {IMPORT_VARIABLE} to the file that registers it")
    _registered(str(file))


def _print(rows: "dict[str, pd.DataFrame]", problem: str | None, rule: Select, format_: Format) -> None:
    """Print the standings of a problem, or the summary of all."""
    from invbench.leaderboard import overall, standings

    if problem is not None:
        table = standings.standings(rows[problem], rule)
        _write(*standings.laid_out(problem, table), format_, table)
        _say_what_lacks(rows, table)
        return
    table = overall.overall(rows, rule)
    _write(*overall.laid_out(table, rows, rule), format_, table)
    _say_what_lacks(rows, table)


def _say_what_lacks(rows: "dict[str, pd.DataFrame]", table: "pd.DataFrame") -> None:
    """Say which added methods are not in a table."""
    from invbench.leaderboard.standings import ADDED

    added = {str(method) for one in rows.values() for method in one.loc[one[ADDED], "method"].unique()}
    if lacking := sorted(added - set(table["method"])):
        echo(f"{', '.join(lacking)}: no fresh runs here by this rule", err=True)


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


def _engine(workers: int | None) -> "AbstractContextManager[Engine]":
    """Return an engine of this machine whose processes outlive a sweep: a problem is five of them."""
    from invbench.sweeps.engines.local import LocalEngine, LocalResources

    return LocalEngine(LocalResources(workers=workers).slots()).kept_warm()
