"""How a verb writes to stdout and stderr."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from invbench.errors import UserError
from invbench.terminal import Lasting, visible_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pydantic import BaseModel

QUIET_AND_VERBOSE = "--quiet shows less and --verbose more; give one of them"
NO_OUTPUT = "the output cannot be written: {}"
NOT_ASCII = re.compile(r"[^\0-\x7e]")


class _Log(Lasting):
    """Pass a terminal off as a log file, so that nothing is drawn in place."""

    def isatty(self) -> bool:
        return False


@contextmanager
def in_lines(enabled: bool) -> Iterator[None]:
    """Show progress as lines inside a `with` statement, on a terminal too, where it is enabled."""
    with redirect_stderr(cast(IO[str], _Log(sys.stderr))) if enabled else nullcontext():
        yield


def accept_all_text() -> None:
    """Make both streams write characters that their encoding lacks as escapes, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def echo(text: str, err: bool = False, nl: bool = True) -> None:
    """Write lines, their control characters as escapes; to stderr where `err`.

    Raises:
        UserError: the output goes to a full disk, or the like.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # it was closed before the start
        return
    try:
        stream.write(visible_lines(text) + "\n" * nl)
        stream.flush()
    except BrokenPipeError:  # a reader who has seen enough, such as `head`
        raise
    except OSError as error:
        raise UserError(NO_OUTPUT.format(error.strerror)) from None


def echo_json(data: object) -> None:
    """Write data as one JSON document in ASCII, which is safe to show."""
    echo(json.dumps(data, indent=1, allow_nan=False))


def json_of(record: "BaseModel") -> str:
    """Return a record as JSON in ASCII, which is safe to show and stays JSON."""
    return NOT_ASCII.sub(_escaped, record.model_dump_json())


def _escaped(match: re.Match[str]) -> str:
    """Return the UTF-16 units of a character, as JSON escapes them."""
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def draw(make: "Callable[[], Figure]", out: Path | None) -> None:
    """Write a picture and say where it is; nothing without a path."""
    from invbench.reporting.drawing import drawn, save

    if out is not None:
        save(drawn(make), out)
        echo(str(out))
