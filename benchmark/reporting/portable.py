"""Remove the folders of this machine from texts, for pages that are shared."""

import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

PACKAGES = ("invbench", "invbench.configs", "invbench.datasets", "invbench.methods")
FOLDERS = re.compile(r"(?<![\w.:/~…-])(?:file://)?(?:/[^/\s'\"`:,;()<>|]+)+/(?=[^/\s])")
"""All but the last part of an absolute path; neither a relative path nor an address matches."""
LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|python3\.\d+)/")


def without_folders(roots: Iterable[Path]) -> Callable[[str], str]:
    """Return a function that shortens the absolute paths in a text.

    A path below a root then begins with the name of the root, one of the package with `invbench/`, one of a library
    with the library. Of any other path the last part is left, behind `…/`.

    Args:
        roots: folders with runs.
    """
    names = dict(_package_folders())
    for root in roots:
        real = Path(os.path.realpath(root))  # unlike `resolve`, it raises no error for a loop of links
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
    """Return the folders of the package on this machine, each with its name in an import."""
    pairs = ((name, folder) for name in PACKAGES for folder in import_module(name).__path__)
    return tuple((str(Path(folder).absolute()), name.replace(".", "/")) for name, folder in pairs)


def _shortened(match: re.Match[str]) -> str:
    """Return what replaces the folders of a path: nothing within a library, else `…/`."""
    library = LIBRARY.match(match[0])
    return match[0][library.end() :] if library else "…/"
