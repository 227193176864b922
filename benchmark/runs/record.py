"""The record of a finished run, and the reading of records that other versions wrote."""

import stat
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from invbench.errors import UserError
from invbench.runs.record_parts import Code, Cost, Data, Engine, Invariance, Metrics, Text, empty_or, explained, usable
from invbench.runs.spec import RunSpec
from invbench.terminal import visible

SCHEMA: Literal[2] = 2
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda record: record | {"best_validation": None},
}
"""Functions that turn a record of a version into one of the next; `migrated` counts up `schema_version`."""
MEAN = "mean_of"
"""Entry of `engine` in the record of a mean of runs: their ids, in the order in which they joined."""
MOST_BYTES = 2**24
"""Maximum size of a record or a specification, in bytes."""


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
    best_by: dict[str, BestStep] = {}
    """Best steps by other metrics of the validation set, by their name in `invbench.choices.CRITERIA`."""
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


def load_record(path: Path) -> Record | None:
    """Load the record in a file; None where there is none. Raises Unreadable where it cannot be understood."""
    content = file_content(path)
    if content is None:
        return None
    try:
        return Record.model_validate_json(content)
    except ValidationError:
        return migrated(content, path)


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


def now() -> str:
    """Return the present time in the format of records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
