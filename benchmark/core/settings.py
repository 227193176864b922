"""Typed settings of methods, datasets, backbones and the trainer.

Values are checked as JSON data, strictly: a number is not a string, `true` is not 1, unknown names are errors.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from invbench.errors import UserError, brief, did_you_mean, nearest
from invbench.strict_yaml import INTEGERS

LEAST, LARGEST = 1.17549435e-38, 3.4028235e38
"""Smallest and largest positive numbers that float32 has with full precision, as they are usually written."""

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


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
        """Return the range for a run of so many steps."""
        return type(self.share)(max(1, self.share.low * steps), max(1, self.share.high * steps))

    def __str__(self) -> str:
        return f"{self.share} of the run's steps"


@dataclass(frozen=True)
class Depending:
    """Search range that depends on another setting of the same section, by its value."""

    setting: str
    ranges: Mapping[Any, LogUniform]

    def __str__(self) -> str:
        return "; ".join(f"{value}: {search}" for value, search in self.ranges.items())


DrawnRange = Uniform | LogUniform | Choice
"""Search range that values can be drawn from, whatever the run."""
SearchRange = DrawnRange | ShareOfSteps | Depending


@dataclass(frozen=True)
class SearchInfo:
    """Search range of a field, and whether fused runs may differ in it."""

    search: SearchRange | None
    fusable: bool


def setting(
    default: Any, meaning: str, *, search: SearchRange | None = None, fusable: bool = False, **bounds: Any
) -> Any:
    """Declare a documented setting.

    Args:
        default: its value when nothing sets it; ... where something must.
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
    """Tell whether a term with this setting as a factor can be left out.

    Of runs that are stacked the setting is a tensor; either all of theirs are zero, or none is.
    """
    return isinstance(number, int | float) and number == 0


@dataclass(frozen=True)
class SettingInfo:
    """Setting as text, for `bench show` and the documentation."""

    name: str
    type: str
    default: str
    range: str
    search: str
    meaning: str
    fusable: bool


class Settings(BaseModel):
    """Base of everything that has settings. Frozen; extra fields are an error; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "", source: str = "") -> Self:
        """Check values against the fields.

        Args:
            where: the section, such as trainer: names in messages begin with it.
            source: whose values these are, such as a file: messages begin with it.

        Raises:
            UserError: one line naming the first setting that is wrong, the value given, and what is accepted.
        """
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError):  # an object, something that is in itself, or too deep
            raise UserError(
                f"the settings of {where or source} must be plain numbers, strings, lists or tables"
            ) from None
        data = _without_negative_zero(json.loads(text))
        text = json.dumps(data)
        prefix = f"{source}: " if source else ""
        try:
            settings = cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise UserError(prefix + cls._explain(error, where, data)) from None
        for path, number, expected in _odd_numbers(data, [where] if where else []):
            raise UserError(f"{prefix}setting '{path}' is {_show(number)}: input should be {expected}")
        return settings

    def canonical(self) -> dict[str, Any]:
        """Return all settings as JSON data: equal settings give equal text, however they were typed."""
        return self.model_dump(mode="json")

    @classmethod
    def describe(cls) -> Iterator[SettingInfo]:
        """Yield every setting, those of the class itself ahead of what it derives from."""
        fields = sorted(cls.model_fields.items(), key=lambda named: named[0] not in cls.__annotations__)
        for name, field in fields:
            info = search_info(field)
            yield SettingInfo(
                name=name,
                type=_type_name(field.annotation),
                default="null" if field.is_required() else _show(field.get_default(call_default_factory=True)),
                range=_bounds(field),
                search=str(info.search) if info.search else "",
                meaning=field.description or "",
                fusable=info.fusable,
            )

    @classmethod
    def fusable(cls) -> tuple[str, ...]:
        """List the settings in which stacked runs may differ."""
        return tuple(name for name, field in cls.model_fields.items() if search_info(field).fusable)

    @classmethod
    def _fields_at(cls, path: Sequence[str | int]) -> list[str]:
        """List the settings at a path below those of this class."""
        models: list[type[BaseModel]] = [cls]
        for name in path:
            fields = [model.model_fields[name] for model in models if name in model.model_fields]
            models = [below for field in fields for below in _models_in(field.annotation)] or models
        return [name for model in models for name in model.model_fields]

    @classmethod
    def _explain(cls, error: ValidationError, where: str, data: Any) -> str:
        errors = error.errors()  # a name that is not known often is why another one is missing
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        section = [where] if where else []
        name = _joined([*section, *first["loc"]])
        if first["type"] == "extra_forbidden":
            known = cls._fields_at(first["loc"][:-1])
            if not known:
                return f"no setting '{name}'; {cls.__name__} has none"
            return f"no setting '{name}'{did_you_mean(str(first['loc'][-1]), known)}"
        if first["type"] == "missing":
            return f"setting '{name}' is missing"
        if not first["loc"]:
            return _joined([*section, ""], ": ") + _expected([first])
        paths = [_data_path(each["loc"], data) for each in errors if each["loc"][:1] == first["loc"][:1]]
        deepest = max(paths, key=len)  # of several alternatives, the one that was followed furthest
        there = [each for each in errors if _data_path(each["loc"], data) == deepest]
        return f"setting '{_joined([*section, *deepest])}' is {brief(_show(there[0]['input']))}: {_expected(there)}"


def _data_path(location: Sequence[str | int], data: Any) -> list[str | int]:
    """Return the path in the data of an error; pydantic also names the alternatives of a type that it tried."""
    path = []
    for part in location:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            data = data[part]
            path.append(part)
    return path


def _expected(errors: "Sequence[ErrorDetails]") -> str:
    """Describe what one value should have been, from the messages of each alternative of its type."""
    texts = [re.sub("^Value error, |^Assertion failed, |^[A-Z](?=[a-z])", _lowered, one["msg"]) for one in errors]
    more = [text.removeprefix("input should be ") for text in texts[1:]]
    choices = [choice for one in errors if one["type"] == "literal_error" for choice in _choices(one)]
    given = errors[0]["input"]
    close = nearest(given, choices) if isinstance(given, str) else []
    return ", or ".join(dict.fromkeys([texts[0], *more])) + (f"; did you mean '{close[0]}'?" if close else "")


def _lowered(match: re.Match[str]) -> str:
    """Lower the first letter of pydantic's messages, and drop what it writes before ours."""
    return match[0].lower() if len(match[0]) == 1 else ""


def _choices(error: "ErrorDetails") -> list[str]:
    return re.findall("'([^']*)'", error["ctx"]["expected"])


def _odd_numbers(data: Any, path: Sequence[str | int]) -> Iterator[tuple[str, float, str]]:
    """Yield numbers outside of the supported ranges, with their names and what they should be."""
    if isinstance(data, dict | list):
        for part, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _odd_numbers(value, [*path, part])
    elif isinstance(data, int) and data not in INTEGERS:
        yield _joined(path), data, "a whole number below 2^53"
    elif isinstance(data, float) and data and math.isfinite(data) and not LEAST <= abs(data) <= LARGEST:
        yield _joined(path), data, f"0, or from {LEAST} to {LARGEST} in size, which float32 has"


def _without_negative_zero(data: Any) -> Any:
    """Replace -0.0 by 0.0: they are equal, and must make equal text."""
    if isinstance(data, dict):
        return {name: _without_negative_zero(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_without_negative_zero(value) for value in data]
    return 0.0 if isinstance(data, float) and data == 0 else data


def _joined(path: Iterable[str | int], separator: str = ".") -> str:
    return separator.join(map(str, path))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type names, inside lists and alternatives too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def search_info(field: FieldInfo) -> SearchInfo:
    """Return the search range and fusability of a pydantic field."""
    return next((item for item in field.metadata if isinstance(item, SearchInfo)), SearchInfo(None, False))


def _type_name(annotation: Any) -> str:
    text = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "")


def _bounds(field: FieldInfo) -> str:
    symbols = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
    texts = [
        f"{symbol} {getattr(item, name):g}"
        for name, symbol in symbols
        for item in field.metadata
        if hasattr(item, name)
    ]
    return ", ".join(texts)


def _show(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
