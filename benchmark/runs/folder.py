"""The folder of a run: its files, its specification, and the status that they imply."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from invbench.errors import RunFailed, UserError
from invbench.files import FULL_DISK, remove_remains, replacing, write_text
from invbench.runs.lease import LOCK, Lease, hold_lease, is_held
from invbench.runs.record import Newer, Record, Unreadable, file_content, load_record
from invbench.runs.record_parts import explained, usable
from invbench.runs.spec import RunSpec

REPLACED = ("claim.json", "record.json", "checkpoint.safetensors", "curves.parquet", "curves.csv")
"""Names of a run's files that are replaced while it is worked on."""
RUN_FILES = {"spec.yaml", "record.json"}
"""Names of files of which a run's folder has at least one."""
EARLIER = re.compile(r"record\.previous(?:\.(\d+))?\.json")
"""Names of the records of earlier attempts: `record.previous.json`, `record.previous.2.json`, ..."""
Status = Literal["queued", "running", "lost", "done", "failed", "stale", "newer"]
DEEPEST = 40
"""Maximum number of levels of a specification."""
LONGEST = 2**14
"""Maximum number of characters of one value of a specification."""
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FIRST_STAGES = "first_stages"
"""Folder in a folder of runs with those that runs of two stages begin from; no table counts them."""


@dataclass(frozen=True)
class RunFolder:
    """Files of one run.

    Args:
        path: the folder.
        lease: this process's lease of the run, if it has one; files are replaced only while that holds.
    """

    path: Path
    lease: Lease | None = None

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def curves(self) -> Path:
        return self.path / "curves.parquet"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lease_file(self) -> Path:
        return self.path / "claim.json"

    def create(self, spec: RunSpec) -> bool:
        """Make the folder and write the specification. Returns whether it is new.

        Raises:
            UserError: the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.spec.exists():
                return False
            write_text(self.spec, yaml.safe_dump(spec.model_dump(), sort_keys=False))
        except OSError as error:
            raise unwritable(self.path, error) from None
        return True

    @contextmanager
    def hold(self) -> "Iterator[RunFolder]":
        """Hold the lease of the run for this process; yields the folder with that lease.

        Raises:
            RunHeld: another process works on it.
            UserError: the folder cannot be written to.
            RunFailed: the disk is full.
        """
        with ExitStack() as stack:
            try:
                lease = stack.enter_context(hold_lease(self.lease_file))
                with lease.writing():
                    remove_remains(self.path, REPLACED)
            except OSError as error:
                raise unwritable(self.path, error) from None
            yield replace(self, lease=lease)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guard a block that replaces or removes files of the run.

        Raises:
            Interrupted: another process has taken the run over; the block is not entered.
        """
        with self.lease.writing() if self.lease else nullcontext():
            yield

    def replacing(self, path: Path) -> AbstractContextManager[Path]:
        """Yield a temporary name to write one of the run's files to; see `invbench.files.replacing`.

        Raises:
            Interrupted: another process has taken the run over; its file stays as it is.
        """
        return replacing(path, self.writing)

    @property
    def previous(self) -> dict[int, Path]:
        """Return the paths of earlier attempts' records by their numbers, the last one first."""
        names = [(EARLIER.fullmatch(path.name), path) for path in self.path.iterdir()]
        numbered = {int(match[1] or 1): path for match, path in names if match}
        return dict(sorted(numbered.items(), reverse=True))

    def load_record(self) -> Record | None:
        """Load the record; None where there is none yet. Raises Unreadable where it cannot be understood."""
        return load_record(self.record)

    def read_record(self) -> Record | None:
        """Load the record; None where there is none yet or it cannot be understood.

        Raises:
            UserError: a newer version of invbench made it.
        """
        try:
            return self.load_record()
        except Newer:
            raise
        except Unreadable:
            return None

    def write_record(self, record: Record) -> None:
        """Write the record atomically."""
        with self.replacing(self.record) as temporary:
            temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")

    def set_aside(self) -> None:
        """Rename the record, so that the run is open again.

        Every finished record is kept for good, that of a failure until the next one is.
        """
        if not self.record.exists():
            return
        number, last = next(iter(self.previous.items()), (0, None))
        if last is None or not _failed(last):
            number += 1
        name = "record.previous.json" if number == 1 else f"record.previous.{number}.json"
        with self.writing():
            self.record.replace(self.path / name)

    def discard(self) -> None:
        """Remove the folder, unless others have worked in it before the lease was held."""
        with self.writing():
            if {path.name for path in self.path.iterdir()} <= {self.spec.name, self.lease_file.name, LOCK}:
                shutil.rmtree(self.path, ignore_errors=True)

    def status(self, sources: str | None = None) -> Status:
        """Derive the status from the files.

        Args:
            sources: hash of the present code, by which a record is `stale` or `done`; None skips that.

        Returns:
            The status; `newer` where a newer version wrote the record.
        """
        try:
            record = self.read_record()
        except Newer:
            return "newer"
        if record is not None:
            stale = record.status == "done" and sources is not None and record.code.get("sources") != sources
            return "stale" if stale else record.status
        if is_held(self.lease_file):
            return "running"
        return "lost" if self.checkpoint.exists() or self.lease_file.exists() else "queued"

    def load_spec(self) -> RunSpec:
        """Load the specification. Raises Unreadable where there is none that can be understood."""
        content = file_content(self.spec)
        if content is None:
            raise Unreadable(f"{self.spec} is not there")
        try:
            return usable(RunSpec.model_validate(_plain_yaml(content)))
        except ValidationError as error:
            raise Unreadable(f"{self.spec}: {explained(error)}") from None
        except (yaml.YAMLError, ValueError) as error:
            raise Unreadable(f"{self.spec} cannot be understood: {' '.join(str(error).split())}") from None

    def read_spec(self) -> RunSpec | None:
        """Load the specification; None where it cannot be understood."""
        try:
            return self.load_spec()
        except Unreadable:
            return None


def _failed(path: Path) -> bool:
    """Tell whether the record in a file is of an attempt that failed."""
    try:
        record = load_record(path)
    except Unreadable:
        return False
    return record is not None and record.status == "failed"


def _plain_yaml(content: bytes) -> Any:
    """Parse YAML as `RunFolder.create` writes it.

    Raises:
        ValueError: it has aliases or tags, or is too deep: nothing could be said of what reading it would take.
    """
    depth = 0
    for event in yaml.parse(content, Loader=_YAML):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ValueError("it has an alias or a tag")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:  # such as a number to base 60
            raise ValueError(f"it has a value of more than {LONGEST} characters")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} levels")
    loader = _YAML(content)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def first_stages_of(results: Path) -> Path:
    """Return the folder of the runs that those in a folder of results begin from; theirs are there, too."""
    return results if results.name == FIRST_STAGES else results / FIRST_STAGES


def unwritable(path: Path, error: OSError) -> UserError | RunFailed:
    """Turn the error of a results folder that cannot be written to into one for the user."""
    if error.errno in FULL_DISK:
        return RunFailed("disk_full", f"cannot write to {path}: {error.strerror}; make room, and repeat the command")
    return UserError(f"cannot write to {path}: {error.strerror}; choose another folder with --out")


def run_folders(path: Path) -> list[RunFolder]:
    """List every run at or below a path, in a stable order; of first stages those of `path` itself only.

    A link to a run is one; other links to folders are not followed, since they may lead back.
    """
    runs = []
    for folder, inner, files in os.walk(path):  # what is gone by now, or not ours to read, is left out
        if RUN_FILES & {*inner, *files}:
            runs.append(RunFolder(Path(folder)))
            inner.clear()
        inner[:] = sorted(name for name in inner if name != FIRST_STAGES)
        runs += [RunFolder(Path(folder, name)) for name in inner if _links_to_run(Path(folder, name))]
    return runs


def _links_to_run(path: Path) -> bool:
    try:
        return path.is_symlink() and any((path / name).exists() for name in RUN_FILES)
    except OSError:
        return False
