"""Models of a record's parts, which check what every reader of a record relies on."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from invbench.choices import CRITERIA
from invbench.runs.spec import RunSpec

Part = dict[str, Any]
COLUMNS = frozenset(
    {
        "run_id", "status", "kind", "message", "method", "dataset", "backbone", "seed", "protocol", "step", "started",
        "finished", "path", "inactive",
    }
)  # fmt: skip
PREFIXES = frozenset(
    {
        "method", "dataset", "backbone", "trainer", "data", "cost", "invariance", "best_validation",
        *(f"best_{name}" for name in CRITERIA),
    }
)  # fmt: skip
"""Prefixes, before the dot, of the names of columns that are no metrics."""


def _free(name: str) -> str:
    """Refuse a metric's name under which tables of runs have something else."""
    section, dot, _ = name.partition(".")
    if name in COLUMNS or (dot and section in PREFIXES) or not name.isprintable():
        raise ValueError(f"no metric can be called '{name}', the name of another column, or of none")
    return name


def _encodable(text: Any) -> Any:
    """Escape what UTF-8 cannot encode, as the bytes of a file's name may be."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Metrics = dict[Annotated[str, Field(min_length=1), AfterValidator(_free)], FiniteFloat]
Text = Annotated[str, BeforeValidator(_encodable)]


class _Part(BaseModel):
    """Base of the parts: the entries that readers rely on; a record may have more."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Data(_Part):
    """Facts about the data. The first version had neither `primary` nor `higher_is_better`."""

    metric: str = Field(min_length=1)
    variant: str
    fingerprint: str
    primary: str | None = None
    higher_is_better: bool | None = None
    environments: int = Field(1, ge=1, le=2**31)
    units: str = ""
    constant: dict[str, FiniteFloat] = {}


class Engine(_Part):
    """Choices of the engine."""

    fused: int = Field(1, ge=1, lt=2**31)
    inactive: str = ""
    weights: dict[str, str] = {}
    steps: int = Field(ge=0, lt=2**63)
    steps_per_epoch: int = Field(ge=0, lt=2**63)


class Cost(_Part):
    """Cost of the run in seconds and bytes."""

    wall_seconds: float
    seconds_per_step: float
    peak_memory_bytes: float


class Code(_Part):
    """Code that made the run."""

    sources: str
    git_commit: str | None = None


class Profile(_Part):
    """Changes of the predictions at each magnitude of one generator."""

    magnitudes: list[float] = Field(min_length=1)
    changes: list[float]
    by_class: dict[str, float] = {}
    representation: list[float] = []

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len(self.magnitudes) != len(self.changes):
            raise ValueError(f"{len(self.magnitudes)} magnitudes, and {len(self.changes)} changes")
        return self


class Invariance(_Part):
    """Measured invariance, by generator and by layer."""

    generators: dict[str, Profile]
    layers: dict[str, float] = {}


def explained(error: ValidationError) -> str:
    """Return the first error of a validation in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def empty_or(model: type[_Part]) -> AfterValidator:
    """Make a check that a part is empty or valid under the model."""
    return AfterValidator(_check_of(model))


def _check_of(model: type[_Part]) -> Callable[[Part], Part]:
    def check(part: Part) -> Part:
        if part:
            try:
                model.model_validate(part)
            except ValidationError as error:
                raise ValueError(explained(error)) from None
        return part

    return check


def usable(spec: RunSpec) -> RunSpec:
    """Refuse settings with names that no column has, and numbers that nothing can compute with."""
    for name, value in spec.flat().items():
        if not name.isprintable():
            raise ValueError(f"no setting is called {name!r}")
        if not _usable(value):
            raise ValueError(f"{name} has a number that is not finite, or a whole one of more than 64 bits")
    return spec


def _usable(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_usable, value.values() if isinstance(value, dict) else value))
    return abs(value) < 2**63 if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)
