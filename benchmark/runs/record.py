"""The folder of a run: its record, its other files, and the status that they imply."""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from invbench.errors import RunFailed, UserError
from invbench.files import FULL_DISK, remove_remains, replacing, write_text
from invbench.runs.lease import LOCK, Lease, hold_lease, is_held
from invbench.runs.record_parts import Code, Cost, Data, Engine, Invariance, Metrics, Text, empty_or, explained, usable
from invbench.runs.spec import RunSpec
from invbench.terminal import visible

SCHEMA: Literal[2] = 2
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda record: record | {"best_validation": None},
}
"""Functions that turn a record of a version into one of the next; `migrated` counts up `schema_version`."""
REPLACED = ("claim.json", "record.json", "checkpoint.safetensors", "curves.parquet", "curves.csv")
"""Names of a run's files that are replaced while it is worked on."""
RUN_FILES = {"spec.yaml", "record.json"}
"""Names of files of which a run's folder has at least one."""
EARLIER = re.compile(r"record\.previous(?:\.(\d+))?\.json")
"""Names of the records of earlier attempts: `record.previous.json`, `record.previous.2.json`, ..."""
Status = Literal["queued", "running", "lost", "done", "failed", "stale", "newer"]
MOST_BYTES = 2**24
"""Maximum size of a record or a specification, in bytes."""
DEEPEST = 40
"""Maximum number of levels of a specification."""
LONGEST = 2**14
"""Maximum number of characters of one value of a specification."""
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Unreadable(UserError):
    """A run's record or specification is there and cannot be understood."""


class Newer(Unreadable):
    """A record that a newer version of invbench wrote."""


class BestStep(BaseModel):
    """Step of a run with the best score on the validation set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0, lt=2**63)
    metrics: Metrics
    """Metrics that were measured at this step."""


class Record(BaseModel):
    """A finished run, done or failed. Written last, so that its presence means that the run is over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = SCHEMA
    run_id: str
    status: Literal["done", "failed"]
    kind: Text | None = None
    """Kind of failure, in one word; None for a run that is done."""
    message: Text | None = None
    traceback: Text | None = None
    spec: Annotated[RunSpec, AfterValidator(usable)]
    metrics: Metrics
    """Metrics at the last step: `<split>_<metric>`, and what was learned besides weights, such as `width.rotation`."""
    best_validation: BestStep | None = None
    """Best step; None where there is no validation set, it was not measured, or an older version made the record."""
    invariance: Annotated[dict[str, Any], empty_or(Invariance)] = {}
    """Changes of the predictions when inputs are transformed: see `invbench.evaluation.invariance.measure`."""
    data: Annotated[dict[str, Any], empty_or(Data)] = {}
    """Variant, fingerprint and sizes of the data."""
    engine: Annotated[dict[str, Any], empty_or(Engine)] = {}
    """Choices of the engine: strategy, steps, parameters."""
    cost: Annotated[dict[str, float], empty_or(Cost)] = {}
    """Cost: wall_seconds, seconds_per_step, peak_memory_bytes."""
    code: Annotated[dict[str, Any], empty_or(Code)] = {}
    machine: dict[str, Any] = {}
    started: str = ""
    finished: str

    @model_validator(mode="after")
    def _complete(self) -> Self:
        parts = ("metrics", "data", "cost", "code") if self.status == "done" else ()
        if empty := [name for name in parts if not getattr(self, name)]:
            raise ValueError(f"the run is done, but nothing tells its {' and '.join(empty)}")
        return self

    def __repr__(self) -> str:
        run, status, *others = self._facts()
        return f"Record({', '.join([f'{run[1]}: {status[1]}', *map(' '.join, others)])})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Return a small table, which notebooks show in the place of the text."""
        message = [("message", visible(self.message))] if self.message else []
        rows = (
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            for name, value in (*self._facts(), ("run_id", visible(self.run_id)), *message)
        )
        return f"<table><tbody>{''.join(rows)}</tbody></table>"

    def _facts(self) -> list[tuple[str, str]]:
        """List the run, its status, and, as far as known, the metric that tables show and the time that it took."""
        facts = [("run", f"{self.spec.method} on {self.spec.dataset}, seed {self.spec.seed}")]
        facts.append(("status", f"{self.status} ({self.kind})" if self.kind else self.status))
        if (name := self.data.get("metric")) in self.metrics:
            facts.append((str(name), f"{self.metrics[str(name)]:.4g}"))
        if "wall_seconds" in self.cost:
            facts.append(("time", f"{self.cost['wall_seconds']:.3g} s"))
        return [(visible(name), visible(value)) for name, value in facts]

    @classmethod
    def of_failure(cls, spec: RunSpec, kind: str, message: str) -> Self:
        """Make the record of a failed run whose process could not write one itself."""
        return cls(
            run_id=spec.run_id, status="failed", kind=kind, message=message, spec=spec, metrics={}, finished=now()
        )


@dataclass(frozen=True)
class RunFolder:
    """Files of one run.

    Args:
        path: the folder.
        holder: this process's lease of the run, if it has one; files are replaced only while that holds.
    """

    path: Path
    holder: Lease | None = None

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
                lease = stack.enter_context(hold_lease(self.claim))
                with lease.writing():
                    remove_remains(self.path, REPLACED)
            except OSError as error:
                raise unwritable(self.path, error) from None
            yield replace(self, holder=lease)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guard a block that replaces or removes files of the run.

        Raises:
            Interrupted: another process has taken the run over; the block is not entered.
        """
        with self.holder.writing() if self.holder else nullcontext():
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
            if {path.name for path in self.path.iterdir()} <= {self.spec.name, self.claim.name, LOCK}:
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
        if is_held(self.claim):
            return "running"
        return "lost" if self.checkpoint.exists() or self.claim.exists() else "queued"

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


def load_record(path: Path) -> Record | None:
    """Load the record in a file; None where there is none. Raises Unreadable where it cannot be understood."""
    content = file_content(path)
    if content is None:
        return None
    try:
        return Record.model_validate_json(content)
    except ValidationError:
        return migrated(content, path)


def _failed(path: Path) -> bool:
    """Tell whether the record in a file is of an attempt that failed."""
    try:
        record = load_record(path)
    except Unreadable:
        return False
    return record is not None and record.status == "failed"


def migrated(content: bytes, source: Path) -> Record:
    """Convert a record that another version wrote into one of this version.

    Args:
        source: its file, for messages.

    Raises:
        Unreadable: it is no record.
        Newer: a newer version wrote it.
    """
    try:
        data = from_json(content)
    except ValueError as error:
        raise Unreadable(f"{source} is not JSON: {error}") from None
    version = data.pop("schema_version", SCHEMA) if isinstance(data, dict) else None
    if type(version) is not int or not 1 <= version < 2**31:
        raise Unreadable(f"{source} is not the record of a run")
    if version > SCHEMA:
        raise Newer(
            f"{source} was written by a newer invbench (records of version {version}; this one knows up to "
            f"{SCHEMA}); update invbench, or use another folder"
        )
    for step in range(version, SCHEMA):
        data = MIGRATIONS[step](data)
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        raise Unreadable(f"{source}: {explained(error)}") from None


def file_content(path: Path) -> bytes | None:
    """Read the bytes of a file; None where there is none. Raises Unreadable where it is no file, or too large."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise Unreadable(f"{path} is not a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise Unreadable(f"{path} is larger than {MOST_BYTES >> 20} MiB")
    return content


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


def unwritable(path: Path, error: OSError) -> UserError | RunFailed:
    """Turn the error of a results folder that cannot be written to into one for the user."""
    if error.errno in FULL_DISK:
        return RunFailed("disk_full", f"cannot write to {path}: {error.strerror}; make room, and repeat the command")
    return UserError(f"cannot write to {path}: {error.strerror}; choose another folder with --out")


def now() -> str:
    """Return the present time in the format of records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_folders(path: Path) -> list[RunFolder]:
    """List every run at or below a path, in a stable order.

    A link to a run is one; other links to folders are not followed, since they may lead back.
    """
    runs = []
    for folder, inner, files in os.walk(path):  # what is gone by now, or not ours to read, is left out
        if RUN_FILES & {*inner, *files}:
            runs.append(RunFolder(Path(folder)))
            inner.clear()
        inner.sort()
        runs += [RunFolder(Path(folder, name)) for name in inner if _links_to_run(Path(folder, name))]
    return runs


def _links_to_run(path: Path) -> bool:
    try:
        return path.is_symlink() and any((path / name).exists() for name in RUN_FILES)
    except OSError:
        return False
