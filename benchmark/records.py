"""What a run leaves behind: one folder, whose files tell the status."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from invbench.claims import Claim, claimed, held
from invbench.errors import UserError
from invbench.files import write_text
from invbench.spec import RunSpec

SCHEMA: Literal[2] = 2
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda record: record | {"best_validation": None},
}
"""What makes a record of a version one of the next; `schema_version` itself is counted up by `migrated`."""
Status = Literal["queued", "running", "lost", "done", "failed", "stale"]


class Chosen(BaseModel):
    """The step of a run that was best on the validation set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    metrics: dict[str, float]
    """What was measured there."""


class Record(BaseModel):
    """A finished run, done or failed. Written last, so that its presence means that the run is over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = SCHEMA
    run_id: str
    status: Literal["done", "failed"]
    kind: str | None = None
    """What went wrong, in one word; None for a run that is done."""
    message: str | None = None
    traceback: str | None = None
    spec: RunSpec
    metrics: dict[str, float]
    """At the last step: `<split>_<metric>`, and what was learned besides the weights, such as `width.rotation`."""
    best_validation: Chosen | None = None
    """None where there is no validation set, it was not watched, or an older version made the record."""
    invariance: dict[str, Any] = {}
    """How far predictions change when inputs are transformed: see `invbench.invariance.measure`."""
    data: dict[str, Any] = {}
    """Variant, fingerprint and sizes of the data."""
    engine: dict[str, Any] = {}
    """What the engine chose: strategy, steps, parameters."""
    cost: dict[str, float] = {}
    """wall_seconds, seconds_per_step, peak_memory_bytes."""
    code: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    started: str = ""
    finished: str

    @classmethod
    def of_failure(cls, spec: RunSpec, kind: str, message: str) -> Self:
        """Of a run whose process could not write one itself."""
        return cls(
            run_id=spec.run_id, status="failed", kind=kind, message=message, spec=spec, metrics={}, finished=now()
        )


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

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
    def claim(self) -> Path:
        return self.path / "claim.json"

    def create(self, spec: RunSpec) -> bool:
        """Make the folder and write the specification; whether it is new.

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
    def claimed(self) -> Iterator[Claim]:
        """Hold the run for this process.

        Raises:
            RunHeld: another process works on it.
            UserError: the folder cannot be written to.
        """
        with ExitStack() as stack:
            try:
                claim = stack.enter_context(claimed(self.claim))
            except OSError as error:
                raise unwritable(self.path, error) from None
            yield claim

    @property
    def previous(self) -> Path:
        """The record that was there before the run was repeated."""
        return self.path / "record.previous.json"

    def read_record(self) -> Record | None:
        """The record, or None where there is none yet or it cannot be understood.

        Raises:
            UserError: a newer version of invbench made it.
        """
        return read_record(self.record)

    def write_record(self, record: Record) -> None:
        """Write the record atomically."""
        write_text(self.record, record.model_dump_json(indent=1))

    def set_aside(self) -> None:
        """Keep the previous attempt's record under another name, so that the run is open again."""
        if self.record.exists():
            self.record.replace(self.previous)

    def discard(self) -> None:
        """Remove a folder in which nothing has happened."""
        shutil.rmtree(self.path, ignore_errors=True)

    def status(self, sources: str | None = None) -> Status:
        """Derived from the files. `sources`, the code's hash now, tells stale from done."""
        record = self.read_record()
        if record is not None:
            stale = record.status == "done" and sources is not None and record.code.get("sources") != sources
            return "stale" if stale else record.status
        if held(self.claim):
            return "running"
        return "lost" if self.checkpoint.exists() or self.claim.exists() else "queued"

    def read_spec(self) -> RunSpec | None:
        """The specification, or None where it cannot be understood."""
        try:
            return RunSpec.model_validate(yaml.safe_load(self.spec.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValidationError):
            return None


def read_record(path: Path) -> Record | None:
    """The record in a file; as `RunFolder.read_record`."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    try:
        return Record.model_validate_json(text)
    except ValidationError:
        return migrated(text, path)


def migrated(text: bytes, source: Path) -> Record | None:
    """A record that another version wrote, as this one has them; None where it is no record at all.

    Args:
        source: its file, for messages.

    Raises:
        UserError: a newer version wrote it.
    """
    try:
        data = from_json(text)
        version = data.pop("schema_version")
        if version > SCHEMA:
            raise UserError(
                f"{source} was written by a newer invbench (records of version {version}; this one knows up to "
                f"{SCHEMA}); update invbench, or use another folder"
            )
        for step in range(version, SCHEMA):
            data = MIGRATIONS[step](data)
        return Record.model_validate(data)
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell the user of a results folder that refuses."""
    return UserError(f"cannot write to {path}: {error.strerror}; choose another folder with --out")


def now() -> str:
    """The time, as records say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_folders(path: Path) -> list[RunFolder]:
    """Every run at or below a path, in a stable order."""
    try:
        with os.scandir(path) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:  # gone by now, or not ours to read
        return []
    if "spec.yaml" in found:
        return [RunFolder(path)]
    return [folder for name in sorted(found) if found[name] for folder in run_folders(path / name)]
