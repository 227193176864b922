"""Names and values that a shell completes. No third party's code is imported for it."""

import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer

from invbench.core.registry import BACKBONES, DATASETS, METHODS, Registry
from invbench.datafiles.paths import why_impossible
from invbench.errors import UserError
from invbench.runs.config import SECTIONS, sweep_names

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

MOST_VALUES = 100
"""Maximum number of values that are offered of a column of results."""
Values = Callable[[], list[str]]


def methods(incomplete: str) -> list[str]:
    """Return names of methods for the shell to complete; of a composition `a+b` its last part."""
    before, plus, _ = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in METHODS.known()]


def datasets() -> list[str]:
    """Return the names of all datasets, for the shell to complete."""
    return list(DATASETS.known())


def data_files() -> list[str]:
    """Return the names that `bench data` fetches and verifies."""
    return ["all", *DATASETS.known()]


def anything_shown() -> list[str]:
    """Return the names that `bench show` accepts, for the shell to complete."""
    return [*METHODS.known(), *DATASETS.known(), *BACKBONES.known(), "trainer"]


def sweeps(incomplete: str) -> list[str]:
    """Return names of the package's sweeps, for the shell to complete; it completes files by itself."""
    return [name for name in sweep_names() if name.startswith(incomplete)]


def claims() -> list[str]:
    """Return what `bench reproduce` accepts: sources, and each of their claims."""
    from invbench.published.claims import sources

    return [*sources(), *(claim for source in sources().values() for claim in source.claims)]


def settings(context: typer.Context, incomplete: str) -> list[str]:
    """Return `SECTION.NAME=VALUE` for `--set`: the settings of the method and dataset that are named before it."""
    given, dot, _ = incomplete.partition(".")
    sections = [one for one in SECTIONS if one.startswith(given)]
    if not dot and len(sections) != 1:
        return [f"{one}." for one in sections]
    named = {name: str(context.params.get(name) or "") for name in ("method", "dataset")}
    return [one for section in sections[:1] for one in _assignments(_settings_of(section, **named), incomplete)]


def dataset_settings(context: typer.Context, incomplete: str) -> list[str]:
    """Return `dataset.NAME=VALUE` for the `--set` of `bench show`."""
    return _assignments(_settings_of("dataset", dataset=next(iter(context.args), "")), incomplete)


def conditions(context: typer.Context, incomplete: str) -> list[str]:
    """Return `COLUMN=VALUE` for `--where`, by the columns and values of the results."""
    from invbench.results.columns import as_text
    from invbench.results.load import load_results

    # The option that still lacks its value keeps arguments from getting to their names.
    paths = [Path(text) for text in context.args]
    folders = [path for path in paths if not why_impossible(path) and path.is_dir()] or [Path("results")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            runs = load_results(folders)
        except UserError:
            return []

    def values_of(name: str) -> Values:
        return lambda: sorted({text or "null" for text in as_text(runs, [name])[name]})[:MOST_VALUES]

    return _assignments({str(name): values_of(str(name)) for name in runs}, incomplete)


def _assignments(values: Mapping[str, Values], incomplete: str) -> list[str]:
    """Return `NAME=` for every name that fits; `NAME=VALUE` where only one name is left.

    A shell puts a space behind a sole word, and nobody wants one behind `NAME=`.
    """
    name, equals, _ = incomplete.partition("=")
    names = [one for one in values if (one == name if equals else one.startswith(name))]
    if len(names) > 1:
        return [f"{one}=" for one in names]
    every = [f"{one}={value}" for one in names for value in values[one]() if shlex.quote(value) == value]
    return every if equals else [*(f"{one}=" for one in names), *every]


def _settings_of(section: str, method: str = "", dataset: str = "") -> dict[str, Values]:
    """Return the dotted names of a section's settings, with values to choose from."""
    if section == "backbone":
        return {"backbone.name": lambda: list(BACKBONES.known())}
    if section == "trainer":
        from invbench.core.trainer import TrainerConfig

        return _values_of("trainer", TrainerConfig.model_fields)
    if section == "dataset":
        return _values_of("dataset", _fields(DATASETS, dataset))
    parts = method.split("+")
    prefixes = {part: "method" if len(parts) == 1 else f"method.{part}" for part in parts}
    each = (_values_of(prefixes[part], _fields(METHODS, part)) for part in parts)
    return {name: values for part_values in each for name, values in part_values.items()}


def _fields(registry: Registry, name: str) -> "Mapping[str, FieldInfo]":
    """Return the settings of a name of this package; none of any other, whose code is not imported."""
    entry = registry.known().get(name)
    if entry is None or entry.literals is None:
        return {}
    fields: Mapping[str, FieldInfo] = registry.load(name).model_fields
    return fields


def _values_of(section: str, fields: "Mapping[str, FieldInfo]") -> dict[str, Values]:
    def values(field: "FieldInfo") -> Values:
        default = [] if field.is_required() else [_typed(field.get_default(call_default_factory=True))]
        return lambda: _choices(field.annotation) or default

    return {f"{section}.{name}": values(field) for name, field in fields.items()}


def _choices(annotation: Any) -> list[str]:
    """Return all values of a type that are words; none of a number's, whose default is an example."""
    if annotation is bool:
        return ["false", "true"]
    if annotation is NoneType:
        return ["null"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


@contextmanager
def words_put_together() -> Iterator[None]:
    """Join words for bash's completion behind a `=`, which splits `a=b` into three and replaces only the last."""
    text = os.environ.get("COMP_WORDS", "")
    if os.environ.get("_BENCH_COMPLETE") != "complete_bash" or "\n=" not in text:
        yield
        return
    lines = text.split("\n")[: int(os.environ.get("COMP_CWORD", "0")) + 1]
    words = re.sub("\n=(?:\n|$)", "=", "\n".join(lines)).split("\n")
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    before = words[-1].removesuffix(lines[-1]) if lines[-1] != "=" else words[-1]
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        sys.stdout.write("\n".join(line.removeprefix(before) for line in output.getvalue().split("\n")))
