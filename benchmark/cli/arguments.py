"""What arguments need besides what typer has itself: choices by name, and checks to be given as `callback`."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

from invbench.choices import Choice
from invbench.datafiles.paths import why_impossible

Paths = TypeVar("Paths", bound=str | Path | Sequence[Path] | None)
Numbers = TypeVar("Numbers", bound=float | Sequence[float] | None)


def choice(kind: type[Choice], *others: Choice) -> dict[str, Any]:
    """Return the arguments of `typer.Option` for one of these names, but for the others: help and completion list them.

    typer's own way with an enum says less of a name that is misspelt.
    """
    names = [str(name) for name in kind if name not in others]
    return {"parser": kind.of, "metavar": f"[{'|'.join(names)}]", "autocompletion": lambda: names}


def possible(value: Paths) -> Paths:
    """Return the paths. Raises BadParameter where the system allows no file of such a name."""
    paths = [] if value is None else [value] if isinstance(value, str | Path) else value
    if problem := next(filter(None, (why_impossible(Path(path)) for path in paths)), None):
        raise typer.BadParameter(f"{problem}.")
    return value


def null_as_nothing(value: list[str] | None) -> list[str] | None:
    """Return the conditions `COLUMN=VALUE` with null, in any of YAML's ways, as an empty value."""
    return value and [re.sub(r"=\s*(null|~)\s*$", "=", condition) for condition in value]


def finite(value: Numbers) -> Numbers:
    """Return the numbers. Raises BadParameter for nan, which typer takes for within any bounds, and for infinity."""
    numbers = [] if value is None else [value] if isinstance(value, float | int) else value
    if not all(map(math.isfinite, numbers)):
        raise typer.BadParameter("it must be a finite number.")
    return value
