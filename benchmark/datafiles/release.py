"""Official releases: their files, where those may be on this machine, and where they can be downloaded.

A release is described by `configs/releases/<name>.yaml`, or by a `Release` that a third party's dataset carries. This
module imports nothing heavy: `bench ls datasets` asks it what is on this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from invbench.datafiles.checksums import is_regular
from invbench.datafiles.paths import path_of_variable
from invbench.errors import UserError

DATA_VARIABLE = "INVBENCH_DATA"
CACHE_VARIABLE = "INVBENCH_CACHE"


@dataclass(frozen=True)
class SourceFile:
    """File of a release in a data folder.

    Args:
        path: its path below the folder; the same path with `.gz` is accepted too.
        size: in bytes, uncompressed.
        sha256: of the uncompressed file, where the release's is known.
        alternatives: other paths at which the same content in another official format may be.
        optional: the dataset can be made without it, as a part of the whole or with a remark.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    alternatives: tuple[str, ...] = ()
    optional: bool = False

    def within(self, folder: Path) -> Path | None:
        """Return the first copy that exists in a folder; None where there is none."""
        candidates = [self.path, f"{self.path}.gz", *self.alternatives]
        return next((path for name in candidates if is_regular(path := folder / name)), None)


@dataclass(frozen=True)
class Download:
    """Download that yields files of a release.

    Args:
        path: its path below the cache folder.
        urls: its public addresses, tried in order.
        hash: `sha256:` or `md5:` and the published checksum.
        size: in bytes, where it is known.
        unpack: the only folder that is taken out of the archive; empty for a plain file.
    """

    path: str
    urls: tuple[str, ...]
    hash: str
    size: int | None = None
    unpack: str = ""


@dataclass(frozen=True)
class Release:
    """Published data set: its files, downloads, licence and citation."""

    name: str
    licence: str
    citation: str
    files: tuple[SourceFile, ...]
    downloads: tuple[Download, ...] = ()

    @property
    def size(self) -> str:
        """Describe how much there is to fetch."""
        sizes = [download.size for download in self.downloads if download.size]
        return f"{sum(sizes) / 1e6:.0f} MB to fetch" if sizes else "a few MB to fetch"

    def published_hash(self, file: SourceFile) -> str:
        """Return the published checksum of a file's content, such as `md5:...`; empty where there is none."""
        if file.sha256:
            return f"sha256:{file.sha256}"
        return next((download.hash for download in self.downloads if download.path == file.path), "")

    def locate(self, folders: list[Path] | None = None) -> dict[str, Path]:
        """Return the files in the first folder that has all needed ones, by paths in the release; empty if none has.

        Files of two folders are never mixed: one may hold a part of what the other holds whole.
        """
        for folder in data_folders() if folders is None else folders:
            here = {file.path: path for file in self.files if (path := file.within(folder))}
            if all(file.path in here for file in self.files if not file.optional):
                return here
        return {}

    @property
    def state(self) -> str:
        """Describe in a few words what of the release is on this machine."""
        here = self.locate()
        if not here:
            return "not here"
        missing = [file.path for file in self.files if file.path not in here]
        return "here" if not missing else f"here without {len(missing)} of {len(self.files)} files"


def release(name: str | Release) -> Release:
    """Return the release of this name."""
    return name if isinstance(name, Release) else _described(name)


@cache
def _described(name: str) -> Release:
    from invbench.strict_yaml import parse_yaml

    path = files("invbench.configs") / "releases" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no release is named '{name}'; it would be described in configs/releases/{name}.yaml")
    facts: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), f"release {name}.yaml")
    return Release(
        name=name,
        licence=facts["licence"],
        citation=facts["citation"],
        files=tuple(SourceFile(**_tuples(file)) for file in facts["files"]),
        downloads=tuple(Download(**_tuples(download)) for download in facts["downloads"]),
    )


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def data_folders() -> list[Path]:
    """List the folders that are searched, in order: the one that INVBENCH_DATA names, then the cache."""
    given = path_of_variable(DATA_VARIABLE)
    return [*([given] if given else []), cache_folder()]


def cache_folder() -> Path:
    """Return the folder of downloads: INVBENCH_CACHE, else the platform's cache folder."""
    return path_of_variable(CACHE_VARIABLE) or user_cache_path("invbench")


def at_home(name: str) -> Path:
    """Return the path of this name, in the user's home where it begins with `~/`."""
    return Path(name).expanduser() if name.startswith("~/") else Path(name)
