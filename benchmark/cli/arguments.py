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
    """For an option that takes one of these names, but for the others: its help and completion list them.

    typer's own way with an enum says less of a name that is misspelt.
    """
    names = [str(name) for name in kind if name not in others]
    return {"parser": kind.of, "metavar": f"[{'|'.join(names)}]", "autocompletion": lambda: names}


def possible(value: Paths) -> Paths:
    """Paths at which there may be something."""
    paths = [] if value is None else [value] if isinstance(value, str | Path) else value
    if problem := next(filter(None, (why_impossible(Path(path)) for path in paths)), None):
        raise typer.BadParameter(f"{problem}.")
    return value


def null_as_nothing(value: list[str] | None) -> list[str] | None:
    """Conditions `COLUMN=VALUE`: null, in any of YAML's ways, is no value."""
    return value and [re.sub(r"=\s*(null|~)\s*$", "=", condition) for condition in value]


def finite(value: Numbers) -> Numbers:
    """Numbers that are some, and not infinite: typer takes nan for within any bounds."""
    numbers = [] if value is None else [value] if isinstance(value, float | int) else value
    if not all(map(math.isfinite, numbers)):
        raise typer.BadParameter("it must be a finite number.")
    return value
