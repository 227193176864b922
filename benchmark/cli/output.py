"""How a verb writes to stdout and stderr."""

import io
import re
import sys
from typing import TYPE_CHECKING

import typer

from invbench.terminal import visible_lines

if TYPE_CHECKING:
    from pydantic import BaseModel

NOT_ASCII = re.compile(r"[^\0-\x7e]")


def accept_all_text() -> None:
    """Make both streams write characters that their encoding lacks as escapes, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def echo(text: str, err: bool = False, nl: bool = True) -> None:
    """Write lines, their control characters as escapes; to stderr where `err`."""
    typer.echo(visible_lines(text), err=err, nl=nl)


def json_of(record: "BaseModel") -> str:
    """A record as JSON in ASCII, which is safe to show and stays JSON."""
    return NOT_ASCII.sub(_escaped, record.model_dump_json())


def _escaped(match: re.Match[str]) -> str:
    """The UTF-16 units of a character, as JSON escapes them."""
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
