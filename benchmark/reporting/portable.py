"""Texts about runs without the folders of the machine that made them, for pages that are shared."""

import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

PACKAGES = ("invbench", "invbench.configs", "invbench.datasets", "invbench.methods")
FOLDERS = re.compile(r"(?<![\w.:/~…-])(?:file://)?(?:/[^/\s'\"`:,;()<>|]+)+/(?=[^/\s])")
"""Of an absolute path all but its last part; not of a relative one, nor of an address."""
LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|python3\.\d+)/")


def without_folders(roots: Iterable[Path]) -> Callable[[str], str]:
    """What cuts the absolute paths in a text.

    Those below a root begin with its name, those of the package with `invbench/`, those of libraries with the library;
    of others only the name is left, behind `…/`.

    Args:
        roots: folders with runs.
    """
    names = dict(_package_folders())
    for root in roots:
        real = Path(os.path.realpath(root))  # as `resolve`, but of a loop of links it makes no error
        names |= {str(path): real.name for path in (root.absolute(), real) if path.name}
    longest = sorted(names, key=len, reverse=True)
    known = re.compile(rf"(?<![\w.:/~…-])(?:file://)?({'|'.join(map(re.escape, longest))})(?![\w.-])")

    @cache
    def cut(text: str) -> str:
        if "/" not in text:
            return text
        return FOLDERS.sub(_shortened, known.sub(lambda match: names[match[1]], text))

    return cut


@cache
def _package_folders() -> tuple[tuple[str, str], ...]:
    """Where the package's folders are on this machine, and what they are called in an import."""
    places = ((name, folder) for name in PACKAGES for folder in import_module(name).__path__)
    return tuple((str(Path(folder).absolute()), name.replace(".", "/")) for name, folder in places)


def _shortened(match: re.Match[str]) -> str:
    library = LIBRARY.match(match[0])
    return match[0][library.end() :] if library else "…/"
