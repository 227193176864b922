"""`bench ls` and `bench show`: what exists, and what can be set."""

import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invbench.cli.arguments import possible
from invbench.cli.completion import anything_shown, dataset_settings
from invbench.cli.output import echo, echo_json
from invbench.cli.plot import writable_picture
from invbench.core.registry import BACKBONES, DATASETS, METHODS, Registry, unmet
from invbench.errors import UserError, did_you_mean
from invbench.runs.config import sweep_names
from invbench.terminal import visible

if TYPE_CHECKING:
    from invbench.core.data import Dataset, Problem
    from invbench.core.method import Method
    from invbench.core.settings import Settings


class What(StrEnum):
    """Things that `bench ls` can list."""

    methods = "methods"
    datasets = "datasets"
    backbones = "backbones"
    sweeps = "sweeps"
    published = "published"
    cells = "cells"


KINDS = {What.methods: METHODS, What.datasets: DATASETS, What.backbones: BACKBONES}
NAMED = 30
"""Largest number of environments or groups that are counted on a line."""


def ls(
    what: Annotated[
        str | None,
        typer.Argument(
            help="methods, datasets, backbones, sweeps, published or cells (default: the first three).",
            autocompletion=lambda: list(What),
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
) -> None:
    """List methods, datasets and backbones; or the sweeps, or the published claims, of the package; or the cells."""
    if what not in (None, *What):
        raise UserError(f"nothing to list is named '{what}'{did_you_mean(str(what), What)}")
    kinds = list(KINDS) if what is None else [What(what)]
    if as_json:
        echo_json({kind.value: _data(kind) for kind in kinds})
        return
    for kind in kinds:
        _list(kind)


def _list(what: What) -> None:
    if what is What.cells:
        _cells()
    elif what is What.sweeps:
        echo("\n".join(sweep_names()))
    elif what is What.published:
        _published()
    else:
        _names(what.value, KINDS[what])


def _data(what: What) -> Any:
    """Return what `ls` lists, as JSON data."""
    if what is What.cells:
        return _runnable()
    if what is What.sweeps:
        return sweep_names()
    if what is What.published:
        from invbench.published.claims import sources

        return {
            source_name: {
                "source": source.source,
                "claims": {name: claim.what for name, claim in source.claims.items()},
            }
            for source_name, source in sources().items()
        }
    registry = KINDS[what]
    return [
        {"name": name, registry.trait: list(registry.traits(name)), "summary": entry.summary}
        | ({"on_this_machine": availability(name)} if registry is DATASETS else {})
        for name, entry in registry.entries().items()
    ]


def show(
    name: Annotated[
        str, typer.Argument(help="A method, dataset or backbone, or `trainer`.", autocompletion=anything_shown)
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", callback=possible, help="Draw a contact sheet of the dataset to this .png, .pdf or .svg."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="DATASET.KEY=VALUE",
            help="Of the dataset whose examples are counted or drawn.",
            autocompletion=dataset_settings,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the dataset whose examples are counted or drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, and nothing else.")] = False,
) -> None:
    """Show every setting with its type, default, range, search range and meaning.

    Of a dataset also its recipe, and how many examples its splits, environments and groups have.
    """
    from invbench.core.trainer import TrainerConfig

    if picture is not None:
        if as_json:
            raise UserError("--picture draws and --json describes; give one of them")
        _draw(name, picture, settings or [], seed)
        return
    if (settings or seed) and (as_json or name not in DATASETS.known()):
        raise UserError("--set and --seed are of a dataset whose examples are counted or drawn, without --json")
    if name == "trainer":
        if as_json:
            echo_json([{"kind": name, "name": name, "settings": _described(TrainerConfig)}])
        else:
            _settings("trainer", TrainerConfig, "settings of the training loop")
        return
    counted = [] if as_json or name not in DATASETS.known() else list(sizes_of(name, settings or [], seed))
    homes = [registry for registry in (METHODS, DATASETS, BACKBONES) if name in registry.known()]
    if not homes:
        from invbench.published.claims import sources

        known = [entry for registry in (METHODS, DATASETS, BACKBONES) for entry in registry.known()]
        aliases = METHODS.aliases | DATASETS.aliases
        if name in {claim for source in sources().values() for claim in source.claims}:
            raise UserError(f"'{name}' is a published claim; `bench reproduce {name} --dry-run` shows it")
        raise UserError(f"nothing is named '{name}'{did_you_mean(name, [*known, 'trainer'], aliases)}")
    if as_json:
        echo_json([_shown(registry, name) for registry in homes])
        return
    for registry in homes:
        entry = registry.known()[name]
        cls = registry.load(name)
        _settings(registry.kind, cls, f"{registry.kind} {name}: {entry.summary}")
        echo(f"{registry.trait}: {', '.join(registry.traits(name)) or 'nothing'}")
        if registry is METHODS:
            echo(f"formulas and sources: {inspect.getsourcefile(cls)}")
            echo(f"trained together (bench sweep --fuse): {trained_together(name, cls)}")
        if registry is DATASETS:
            echo("\n".join(provenance(name, cls)))
            echo("\n".join(counted))
            echo(f"recipe:\n{recipe_of(name, cls) or 'none'}")


def recipe_of(name: str, cls: "type[Dataset]") -> str | None:
    """Return the YAML of a dataset's recipe, or of its defaults where these need no file to tell; None without any."""
    import yaml

    from invbench.runs.config import recipe_text

    if (text := recipe_text(name)) is not None:
        return text
    with suppress(UserError, AttributeError):  # the user's file says what fits, and none is named
        if defaults := cls.model_construct().defaults():
            return yaml.safe_dump(defaults, sort_keys=False)
    return None


def _shown(registry: Registry, name: str) -> dict[str, Any]:
    """Return what `show` shows of a name, as JSON data."""
    cls = registry.load(name)
    facts: dict[str, Any] = {"kind": registry.kind, "name": name, "summary": registry.known()[name].summary}
    facts |= {registry.trait: list(registry.traits(name)), "settings": _described(cls)}
    if registry is METHODS:
        facts["trained_together"] = trained_together(name, cls)
    if registry is DATASETS:
        from invbench.strict_yaml import parse_yaml

        text = recipe_of(name, cls)
        facts["recipe"] = None if text is None else parse_yaml(text, f"recipe {name}.yaml")
    return facts


def _described(cls: "type[Settings]") -> list[dict[str, Any]]:
    """Return every setting as JSON data; its default as a value, ranges as text."""
    return [
        {
            "name": info.name, "type": info.type, "default": json.loads(info.default), "range": info.range,
            "search_range": info.search, "meaning": info.meaning, "fusable": info.fusable,
        }
        for info in cls.describe()
    ]  # fmt: skip


def trained_together(name: str, method: "type[Method]") -> str:
    """Tell in which settings runs of a method may differ that are trained together, or why they are not."""
    from invbench.core.composition import Composition
    from invbench.core.trainer import TrainerConfig

    reason = Composition({name: method()}).fuse_obstacle
    if reason:
        return f"no, {reason}"
    may = [*(f"method.{one}" for one in method.fusable()), *(f"trainer.{one}" for one in TrainerConfig.fusable())]
    return f"yes, runs that differ in seed, {', '.join(may)}"


def _draw(name: str, picture: Path, settings: list[str], seed: int) -> None:
    """Draw the contact sheet of a dataset."""
    from invbench.reporting.contact_sheet import contact_sheet
    from invbench.runs.config import parse_assignments

    writable_picture(picture, "--picture")
    problem = _problem(name, parse_assignments(settings), seed)
    contact_sheet(problem, " ".join([name, *settings]), picture)
    echo(f"{picture}: {name}, fingerprint {problem.fingerprint[:16]}")


def sizes_of(name: str, settings: list[str], seed: int) -> Iterator[str]:
    """Yield lines with the numbers of examples of a dataset's splits, environments and groups; or why they are unknown.

    Raises:
        UserError: the settings are wrong, or the data are.
    """
    from invbench.runs.config import parse_assignments

    cls = DATASETS.load(name)
    if not settings and (cls.required_setting or (cls.release and not cls().files())):
        more = f"; give --set {cls.required_setting}=..." if cls.required_setting else ""
        yield f"splits: known once its files are here{more}"
        return
    try:
        problem = _problem(name, parse_assignments(settings), seed)
    except UserError as error:
        if settings:
            raise
        yield f"splits: {error}"
        return
    yield "splits: " + ", ".join(f"{split} {len(part)}" for split, part in problem.splits.items())
    env = problem.splits["train"].env
    if env is not None:
        counts = env.bincount(minlength=len(problem.environment_names)).tolist()
        yield "environments of train: " + _counted(problem.environment_names or range(len(counts)), counts)
    for split, groups in problem.group_counts.items():
        yield f"groups of {split}: " + _counted(problem.group_names, groups)


def _counted(names: Iterable[object], counts: Iterable[int]) -> str:
    """Return names with their counts on a line, NAMED at most; those without examples are left out."""
    texts = [f"{name} {count}" for name, count in zip(names, counts, strict=True) if count]
    return "; ".join(texts[:NAMED]) + (f"; and {len(texts) - NAMED} more" if len(texts) > NAMED else "")


def _problem(name: str, settings: dict[str, Any], seed: int) -> "Problem":
    """Load a dataset's problem. Without a recipe, take any network that accepts it, and any trainer."""
    from invbench.runs.config import Layer, recipe_text
    from invbench.runs.resolve import resolve
    from invbench.training.build import load_problem

    layers: list[Layer] = []
    if recipe_text(name) is None:
        provided = set(DATASETS.traits(name))
        fitting = [one for one in BACKBONES.entries() if provided & set(BACKBONES.traits(one))]
        layers = [{"trainer": {"epochs": 1}}, *({"backbone": {"name": one}} for one in fitting[:1])]
    return load_problem(resolve("erm", name, seed, settings, layers))


def _names(title: str, registry: Registry) -> None:
    header: tuple[str, ...] = ("name", registry.trait, "summary")
    rows: list[tuple[str, ...]] = [
        (name, ", ".join(registry.traits(name)), entry.summary) for name, entry in registry.entries().items()
    ]
    if registry is DATASETS:
        header = (*header[:2], "on this machine", header[2])
        rows = [(*row[:2], availability(row[0]), row[2]) for row in rows]
    _print(title, header, rows)


def availability(dataset: str) -> str:
    """Tell whether a dataset's files are on this machine."""
    from invbench.datafiles.release import release

    if DATASETS.literal(dataset, "required_setting", ""):
        return "bring your own"
    needed = DATASETS.literal(dataset, "release", "")
    return release(needed).state if needed else "always"


def provenance(name: str, dataset: "type[Dataset]") -> Iterator[str]:
    """Yield lines on where the data come from and on which terms."""
    if not dataset.release:
        yield f"licence: {dataset.licence}"
        yield f"citation: {dataset.citation}"
        return
    from invbench.datafiles.release import release

    needed = release(dataset.release)
    yield f"release: {needed.name}, {needed.size}, {needed.state}"
    yield f"licence: {needed.licence}"
    yield f"citation: {needed.citation}" + (f"; {dataset.citation}" if dataset.citation else "")
    yield from (f"source: {url}" for download in needed.downloads for url in download.urls[:1])
    if not needed.locate():
        yield f"get it: bench data fetch {name}"


def _published() -> None:
    """Print the published claims, which `bench reproduce` puts to the test."""
    from invbench.published.claims import sources

    for source_name, source in sources().items():
        rows = [
            (
                name,
                "" if claim.verified else "recalled",
                ", ".join(number.shown for number in claim.numbers),
                claim.what,
            )
            for name, claim in source.claims.items()
        ]
        _print(f"{source_name} ({source.source})", ("claim", "", "published", "what"), rows)


MOST_SPACED = 28
"""Largest number of columns that have a space between them in 80 columns."""


def _runnable() -> dict[str, list[str]]:
    """Return the datasets that each method can be run on."""
    provided = {dataset: DATASETS.traits(dataset) for dataset in DATASETS.entries()}
    return {
        method: [dataset for dataset, traits in provided.items() if not unmet(METHODS.traits(method), traits)]
        for method in METHODS.entries()
    }


def _cells() -> None:
    """Print methods by datasets, whose numbers stand above them and are explained below: both fit into 80 columns."""
    numbers = {dataset: str(number) for number, dataset in enumerate(DATASETS.entries(), 1)}
    space = " " if len(numbers) <= MOST_SPACED else ""
    tens, units = (space.join(number.rjust(2)[digit] for number in numbers.values()) for digit in (0, 1))
    rows = [
        (method, space.join("×" if dataset in able else "·" for dataset in numbers))
        for method, able in _runnable().items()
    ]
    _print("cells (× can be run)", ("", tens), [("method", units), *rows])
    echo("datasets, and what they provide:")
    for dataset, number in numbers.items():
        line = f"  {number.rjust(2)} {dataset}: {', '.join(DATASETS.traits(dataset))}"
        echo(textwrap.fill(line, 80, subsequent_indent=" " * 5))


def _settings(section: str, cls: "type[Settings]", title: str) -> None:
    """Print settings as a list rather than a table: meanings are sentences."""
    echo(title)
    for line in (cls.__doc__ or "").strip().splitlines():
        echo(f"  {line.strip()}")
    for info in cls.describe():
        limits = f", {info.range}" if info.range else ""
        search = f"; search {info.search}" if info.search else ""
        echo(f"  {section}.{info.name} = {info.default}  ({info.type}{limits}{search})\n      {info.meaning}")


def _print(title: str, header: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Print aligned columns; the last one takes what is left of the line. Plain, since rich takes long to import."""
    table = [tuple(map(visible, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    echo(f"{title}:")
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        echo("  " + "  ".join([*cells, row[-1]]).rstrip())
