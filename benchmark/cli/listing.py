"""`bench ls` and `bench show`: what exists, and what can be set."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.arguments import possible
from invbench.cli.output import echo
from invbench.cli.plot import writable_picture
from invbench.configuration import sweep_names
from invbench.errors import UserError, did_you_mean
from invbench.registry import BACKBONES, DATASETS, METHODS, Registry, unmet
from invbench.terminal import visible

if TYPE_CHECKING:
    from invbench.method import Method
    from invbench.problem import Dataset
    from invbench.settings import Settings


class What(StrEnum):
    """What can be listed."""

    methods = "methods"
    datasets = "datasets"
    backbones = "backbones"
    sweeps = "sweeps"
    published = "published"
    cells = "cells"


def ls(what: Annotated[What | None, typer.Argument(help="One kind; all by default.")] = None) -> None:
    """List methods, datasets and backbones; or the sweeps, or the published claims, of the package; or the cells."""
    if what is What.cells:
        _cells()
        return
    if what is What.sweeps:
        echo("\n".join(sweep_names()))
        return
    if what is What.published:
        _published()
        return
    kinds = {What.methods: METHODS, What.datasets: DATASETS, What.backbones: BACKBONES}
    for kind, registry in kinds.items():
        if what in (None, kind):
            _list(kind.value, registry)


def show(
    name: Annotated[str, typer.Argument(help="A method, dataset or backbone, or `trainer`.")],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", callback=possible, help="Draw a contact sheet of the dataset to this .png, .pdf or .svg."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="DATASET.KEY=VALUE", help="Of the dataset that is drawn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the dataset that is drawn.")] = 0,
) -> None:
    """Every setting with its type, default, range, search range and meaning; for a dataset also its recipe."""
    from invbench.configuration import recipe_text
    from invbench.trainer import Trainer

    if picture is not None:
        _draw(name, picture, settings or [], seed)
        return
    if settings or seed:
        raise UserError("--set and --seed say what is drawn; give --picture too")
    if name == "trainer":
        _settings("trainer", Trainer, "settings of the training loop")
        return
    homes = [registry for registry in (METHODS, DATASETS, BACKBONES) if name in registry.known()]
    if not homes:
        known = [entry for registry in (METHODS, DATASETS, BACKBONES) for entry in registry.known()]
        raise UserError(f"nothing is named '{name}'{did_you_mean(name, [*known, 'trainer'])}")
    for registry in homes:
        entry = registry.known()[name]
        cls = registry.load(name)
        _settings(registry.kind, cls, f"{registry.kind} {name}: {entry.summary}")
        echo(f"{registry.trait}: {', '.join(registry.traits(name)) or 'nothing'}")
        if registry is METHODS:
            echo(f"trained together (bench sweep --fuse): {trained_together(name, cls)}")
        if registry is DATASETS:
            echo("\n".join(provenance(name, cls)))
            echo(f"recipe:\n{recipe_text(name) or 'none'}")


def trained_together(name: str, method: "type[Method]") -> str:
    """In which settings runs of a method may differ that are trained together, or why they are not."""
    from invbench.composition import Composition
    from invbench.trainer import Trainer

    reason = Composition({name: method()}).apart
    if reason:
        return f"no, {reason}"
    may = [*(f"method.{one}" for one in method.fusable()), *(f"trainer.{one}" for one in Trainer.fusable())]
    return f"yes, runs that differ in seed, {', '.join(may)}"


def _draw(name: str, picture: Path, settings: list[str], seed: int) -> None:
    """The contact sheet of a dataset."""
    from invbench.configuration import parse_assignments
    from invbench.loading import load_problem
    from invbench.pictures import contact_sheet
    from invbench.spec import resolve

    writable_picture(picture, "--picture")
    problem = load_problem(resolve("erm", name, seed, parse_assignments(settings)))
    contact_sheet(problem, " ".join([name, *settings]), picture)
    echo(f"{picture}: {name}, fingerprint {problem.fingerprint[:16]}")


def _list(title: str, registry: Registry) -> None:
    header: tuple[str, ...] = ("name", registry.trait, "summary")
    rows: list[tuple[str, ...]] = [
        (name, ", ".join(registry.traits(name)), entry.summary) for name, entry in registry.entries().items()
    ]
    if registry is DATASETS:
        header = (*header[:2], "on this machine", header[2])
        rows = [(*row[:2], availability(row[0]), row[2]) for row in rows]
    _print(title, header, rows)


def availability(dataset: str) -> str:
    """Whether a dataset's files are on this machine."""
    from invbench.sources import release

    needed = DATASETS.literal(dataset, "release", "")
    return release(needed).state if needed else "always"


def provenance(name: str, dataset: "type[Dataset]") -> Iterator[str]:
    """Where the data come from and on which terms."""
    if not dataset.release:
        yield f"licence: {dataset.licence}"
        yield f"citation: {dataset.citation}"
        return
    from invbench.sources import release

    needed = release(dataset.release)
    yield f"release: {needed.name}, {needed.size}, {needed.state}"
    yield f"licence: {needed.licence}"
    yield f"citation: {needed.citation}" + (f"; {dataset.citation}" if dataset.citation else "")
    yield from (f"source: {url}" for download in needed.downloads for url in download.urls[:1])
    if not needed.found():
        yield f"get it: bench data fetch {name}"


def _published() -> None:
    """Claims of others, which `bench reproduce` puts to the test."""
    from invbench.published import sources

    for name, source in sources().items():
        rows = [
            (claim, "" if own.verified else "recalled", ", ".join(number.shown for number in own.numbers), own.what)
            for claim, own in source.claims.items()
        ]
        _print(f"{name} ({source.source})", ("claim", "", "published", "what"), rows)


def _cells() -> None:
    rows = []
    for method in METHODS.entries():
        missing = {dataset: unmet(METHODS.traits(method), DATASETS.traits(dataset)) for dataset in DATASETS.entries()}
        able = [dataset for dataset, needs in missing.items() if not needs]
        unable = [f"{dataset} (no {', '.join(needs)})" for dataset, needs in missing.items() if needs]
        rows.append((method, ", ".join(able), ", ".join(unable)))
    _print("cells", ("method", "runs on", "not on"), rows)


def _settings(section: str, cls: "type[Settings]", title: str) -> None:
    """A list rather than a table: meanings are sentences."""
    echo(title)
    for line in (cls.__doc__ or "").strip().splitlines():
        echo(f"  {line.strip()}")
    for info in cls.describe():
        limits = f", {info.range}" if info.range else ""
        search = f"; search {info.search}" if info.search else ""
        echo(f"  {section}.{info.name} = {info.default}  ({info.type}{limits}{search})\n      {info.meaning}")


def _print(title: str, header: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Aligned columns; the last one takes what is left of the line. Plain, since rich costs as much as all the rest."""
    table = [tuple(map(visible, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    echo(f"{title}:")
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        echo("  " + "  ".join([*cells, row[-1]]).rstrip())
