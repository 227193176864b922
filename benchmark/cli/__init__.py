"""The `bench` command. Imports everything, inside the verbs: `bench ls` answers without torch."""

import atexit
import os
import re
import signal
import sys
import warnings
from typing import Annotated, Any

import typer

from invbench.cli.analyze import analyze_app
from invbench.cli.average import average
from invbench.cli.compare import compare
from invbench.cli.completion import words_put_together
from invbench.cli.data import data_app
from invbench.cli.doctor import doctor
from invbench.cli.leaderboard import leaderboard_app
from invbench.cli.listing import ls, show
from invbench.cli.output import NO_OUTPUT, accept_all_text, echo
from invbench.cli.plot import plot
from invbench.cli.report import report
from invbench.cli.reproduce import reproduce
from invbench.cli.rerun_best import rerun_best
from invbench.cli.run import run
from invbench.cli.sweep import sweep
from invbench.cli.table import table
from invbench.errors import Interrupted, RunFailed, UserError
from invbench.files import FULL_DISK
from invbench.terminal import visible

USER_ERROR, RUN_FAILED, INTERRUPTED = 2, 1, 130
# click's UsageError, wherever typer keeps its click: its newer versions bring their own.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="bench",
    help="Which invariance method works on which problem, by how much, and at what cost.",
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(sweep)
app.command()(reproduce)
app.command("rerun-best")(rerun_best)
app.command()(average)
app.command()(ls)
app.command()(show)
app.command()(table)
app.command()(compare)
app.add_typer(leaderboard_app)
app.command()(plot)
app.add_typer(analyze_app)
app.command()(report)
app.add_typer(data_app)
app.command()(doctor)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        echo(f"invbench {version('invbench')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks instead of one-line errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before any verb."""


def main() -> None:
    """Run the command with the arguments of the process, and exit with its status.

    Errors are one line on stderr. The status is 2 for a mistake in the request, 1 for a failed run, 130 for Ctrl-C.
    """
    accept_all_text()
    warnings.formatwarning = _in_one_line
    _forget_odd_sizes()
    arguments = sys.argv[1:] or ["--help"]
    if "--debug" in arguments:
        app(arguments)
    try:
        with words_put_together():
            status = app(arguments, standalone_mode=False)
    except UserError as error:
        status = _say(error, USER_ERROR)
    except RunFailed as error:
        status = _say(error, RUN_FAILED)
    except (Interrupted, KeyboardInterrupt) as error:
        status = _say(str(error) or "interrupted", INTERRUPTED)
    except _UsageError as error:
        command = error.ctx.command_path.split(" ", 1)[1:] if error.ctx else []
        status = _say(f"{error.format_message().rstrip('.')}; see `{' '.join(['bench', *command])} --help`", USER_ERROR)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK and error.filename is None:  # typer's help
            status = _say(NO_OUTPUT.format(error.strerror), USER_ERROR)
        else:
            text = f"unexpected {type(error).__name__}: {error}; `bench --debug` with the same shows where"
            status = _say(text, RUN_FAILED)
    # A process that ends tells how its work went. What is registered last, after torch's own, comes first.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _in_one_line(message: Warning | str, *_: object, **__: object) -> str:
    return visible(f"warning: {' '.join(str(message).split())}") + "\n"


def _forget_odd_sizes() -> None:
    """Remove COLUMNS and LINES from the environment where rich could not read them."""
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[0-9]{1,5}", os.environ.get(name, "")):
            os.environ.pop(name, None)


def _say(message: object, status: int) -> int:
    echo(f"error: {' '.join(str(message).split())}", err=True)
    return status
