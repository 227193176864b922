"""The two ways in which a command can fail, and what each owes its reader."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

SHOWN = 200
"""Characters of what a user gave that a message repeats."""
LISTED = 30
"""As many known names are listed where none is close to the given one; of more, the nearest."""


class UserError(Exception):
    """The request cannot be met: one line that says what is wrong and what to do. Exit status 2."""


class NotProvided(UserError):
    """The method requires something that the dataset does not provide."""


class RunHeld(UserError):
    """Another process works on the run."""


class CannotFuse(Exception):
    """Reason why runs cannot be trained together, or should not be."""


class RunFailed(Exception):
    """A run started and did not finish. Exit status 1.

    Args:
        kind: what went wrong in one word, such as ``diverged``; recorded with the run.
        message: one line for the reader.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unusable(Exception):
    """Reason why a checkpoint cannot be used."""


class Interrupted(Exception):
    """The run was asked to stop and has kept its checkpoint. Exit status 130."""


def did_you_mean(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """Suggest the known name closest to a given one: `; did you mean 'x'?`, or else the list of known names.

    Args:
        aliases: other names, such as those that papers use, with the known names that they stand for.
    """
    known = sorted(set(known))
    if close := nearest(name, known, aliases):
        return f"; did you mean '{close[0]}'?"
    if len(known) > LISTED:
        return f"; the nearest of {len(known)} are {', '.join(nearest(name, known, number=3, cutoff=0))}"
    return f"; known: {', '.join(known) or 'none'}"


def nearest(
    name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None, number: int = 1, cutoff: float = 0.5
) -> list[str]:
    """Return known names close to a given one, ignoring case, `-`, `_` and spaces; for aliases see `did_you_mean`."""
    known = list(known)
    spelled = {_letters(alias): one for alias, one in (aliases or {}).items() if one in known}
    spelled |= {_letters(one): one for one in known}
    return [spelled[close] for close in get_close_matches(_letters(name), spelled, number, cutoff)]


def _letters(name: str) -> str:
    return name.casefold().translate(str.maketrans("", "", "-_ "))


def brief(text: str) -> str:
    """Shorten a text that may be long, for a message."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
