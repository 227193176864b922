"""Typed settings: the one place where a method, dataset, backbone or trainer says what can be set.

Values are checked as JSON data, strictly: a number is not a string, `true` is not 1, unknown names are errors.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from invbench.errors import UserError, brief, did_you_mean


@dataclass(frozen=True)
class Uniform:
    """Search range: uniform on [low, high]."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"U({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class LogUniform:
    """Search range: 10 to the power of a uniform draw, between low and high."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"log-U({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Choice:
    """Search range: one of the values, with equal probability."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return "{" + ", ".join(_show(value) for value in self.values) + "}"


@dataclass(frozen=True)
class ShareOfSteps:
    """Search range of a number of steps: a share of the run's, from another range; a step at least."""

    share: Uniform | LogUniform

    def of(self, steps: int) -> Uniform | LogUniform:
        """The range for a run of so many steps."""
        return type(self.share)(max(1, self.share.low * steps), max(1, self.share.high * steps))

    def __str__(self) -> str:
        return f"{self.share} of the run's steps"


@dataclass(frozen=True)
class Depending:
    """Search range that depends on another setting of the same section, by its value."""

    setting: str
    ranges: Mapping[Any, LogUniform]

    def __str__(self) -> str:
        return "; ".join(f"{value}: {own}" for value, own in self.ranges.items())


DrawnRange = Uniform | LogUniform | Choice
"""A search range that values can be drawn from, whatever the run."""
SearchRange = DrawnRange | ShareOfSteps | Depending


@dataclass(frozen=True)
class SearchInfo:
    """What a field carries beside its type: where to search it, and whether fused runs may differ in it."""

    search: SearchRange | None
    fusable: bool


def setting(
    default: Any, meaning: str, *, search: SearchRange | None = None, fusable: bool = False, **bounds: Any
) -> Any:
    """A documented setting.

    Args:
        default: its value when nothing sets it.
        meaning: one line for `bench show`, with units and source.
        search: the range that a random search draws from.
        fusable: a number that hooks use in tensor arithmetic only, so runs that differ in it can be stacked; whether
            it is 0 is asked by `is_zero`.
        bounds: pydantic's constraints, such as ``ge`` and ``le``.
    """
    field = Field(default, description=meaning, **bounds)
    field.metadata.append(SearchInfo(search, fusable))
    return field


def is_zero(number: Any) -> bool:
    """Whether a term with this setting in front can be left out.

    Of runs that are stacked the setting is a tensor; either all of theirs are zero, or none is.
    """
    return isinstance(number, int | float) and number == 0


@dataclass(frozen=True)
class SettingInfo:
    """One setting as text, for `bench show` and the documentation."""

    name: str
    type: str
    default: str
    range: str
    search: str
    meaning: str
    fusable: bool


class Settings(BaseModel):
    """Base of everything that has settings. Frozen; extra fields are an error; infinities are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Check values against the fields. `where` ('method', 'trainer', ...) prefixes the names in messages.

        Raises:
            UserError: one line naming the first setting that is wrong, the value given, and what is accepted.
        """
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError):  # an object, something that is in itself, or too deep
            raise UserError(f"the settings of {where} must be plain numbers, strings, lists or tables") from None
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise UserError(cls._explain(error, where)) from None

    def canonical(self) -> dict[str, Any]:
        """Every setting with its value, as JSON data: equal settings give equal text, however they were typed."""
        return self.model_dump(mode="json")

    @classmethod
    def describe(cls) -> Iterator[SettingInfo]:
        """Every setting in the order of the class."""
        for name, field in cls.model_fields.items():
            info = search_info(field)
            yield SettingInfo(
                name=name,
                type=_type_name(field.annotation),
                default=_show(field.get_default(call_default_factory=True)),
                range=_bounds(field),
                search=str(info.search) if info.search else "",
                meaning=field.description or "",
                fusable=info.fusable,
            )

    @classmethod
    def fusable(cls) -> tuple[str, ...]:
        """Names of the settings in which stacked runs may differ."""
        return tuple(name for name, field in cls.model_fields.items() if search_info(field).fusable)

    @classmethod
    def _fields_at(cls, path: Sequence[str | int]) -> list[str]:
        """Names of the settings at a place below this kind's."""
        models: list[type[BaseModel]] = [cls]
        for name in path:
            fields = [model.model_fields[name] for model in models if name in model.model_fields]
            models = [below for field in fields for below in _models_in(field.annotation)] or models
        return [name for model in models for name in model.model_fields]

    @classmethod
    def _explain(cls, error: ValidationError, where: str) -> str:
        errors = error.errors()  # a name that is not known often is why another one is missing
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = cls._fields_at(first["loc"][:-1])
            return f"no setting '{where}.{path}'{did_you_mean(str(first['loc'][-1]), known)}"
        if first["type"] == "missing":
            return f"setting '{where}.{path}' is missing"
        if not path:
            return f"{where}: {first['msg'].removeprefix('Value error, ')}"
        expected = first["msg"][0].lower() + first["msg"][1:].removeprefix("alue error, ")
        return f"setting '{where}.{path}' is {brief(_show(first['input']))}: {expected}"


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The kinds of settings that a type names, inside lists and alternatives too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def search_info(field: FieldInfo) -> SearchInfo:
    """The search range and fusability of a pydantic field."""
    return next((item for item in field.metadata if isinstance(item, SearchInfo)), SearchInfo(None, False))


def _type_name(annotation: Any) -> str:
    text = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "")


def _bounds(field: FieldInfo) -> str:
    symbols = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
    found = [
        f"{symbol} {getattr(item, name):g}"
        for name, symbol in symbols
        for item in field.metadata
        if hasattr(item, name)
    ]
    return ", ".join(found)


def _show(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
