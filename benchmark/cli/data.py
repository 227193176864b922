"""`bench data`: where the datasets' files are, how to get them, and whether they are the official ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench.cli.arguments import possible
from invbench.cli.completion import data_files, datasets, settings
from invbench.cli.output import draw, echo
from invbench.core.registry import DATASETS
from invbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from invbench.datafiles.release import Release

data_app = typer.Typer(name="data", help="Data files: what is here, how to get the rest, and is it right?")


@data_app.command(name="ls")
def list_data() -> None:
    """List every dataset with its licence, its size and where its files are on this machine."""
    from invbench.datafiles.release import CACHE_VARIABLE, DATA_VARIABLE, data_folders, release

    for name in DATASETS.entries():
        if setting := DATASETS.literal(name, "required_setting", ""):
            echo(f"{name}: bring your own; name it by {setting}")
            continue
        needed = DATASETS.literal(name, "release", "")
        if not needed:
            cls = DATASETS.load(name)
            echo(f"{name}: always available; {cls.licence}; {cls.citation}")
            continue
        files = release(needed)
        here = files.locate()
        where = f" in {next(iter(here.values())).parent}" if here else f"; get it with: bench data fetch {name}"
        source = f"from {files.downloads[0].urls[0]}" if files.downloads else "bring your own"
        echo(f"{name}: {files.state}{where}; {files.size} {source}; licence: {files.licence}; {files.citation}")
    folders = ", ".join(str(folder) for folder in data_folders())
    echo(f"searched: {folders} (set {DATA_VARIABLE} or {CACHE_VARIABLE} to change that)")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A dataset or release; `all` for every one.", autocompletion=data_files)],
) -> None:
    """Download a release into the cache; the same command again continues what broke off."""
    from invbench.datafiles.download import fetch as get
    from invbench.datafiles.release import DATA_VARIABLE, cache_folder, data_folders

    releases = list(_releases(name))
    if not releases:
        echo(f"{name} needs no files")
    failed = []
    for release in releases:
        try:
            if all(file.path in release.locate() for file in release.files) or not get(release):
                echo(f"{release.name}: all files are here already")
                continue
        except UserError as error:
            failed.append(str(error))
            continue
        echo(f"{release.name}: fetched into {cache_folder()}")
        if release.locate(data_folders()[:-1]):
            echo(f"{release.name}: but {DATA_VARIABLE} has a part of it and comes first; unset it to use the whole")
    if failed:
        raise UserError("; ".join(failed))


@data_app.command()
def verify(
    name: Annotated[
        str, typer.Argument(help="A dataset or release; all by default.", autocompletion=data_files)
    ] = "all",
) -> None:
    """Hash the files that are here and compare with the published sums; exit status 2 if one differs.

    Where no sum of a file is published, the one that was taken when it was fetched counts.
    """
    bad = 0
    for release in _releases(name):
        paths = release.locate()
        if not paths:
            echo(f"{release.name}: not here")
        for path, text, right in _compared(release) if paths else ():
            echo(f"{release.name}: {path} {text}")
            bad += not right
    if bad:
        raise UserError(f"{bad} file{'s differ' if bad > 1 else ' differs'} from what should be there")


@data_app.command()
def embed(
    dataset: Annotated[str, typer.Argument(help="A dataset, such as images.", autocompletion=datasets)],
    backbone: Annotated[
        str, typer.Option(help="A backbone, with the network's name where it has several: timm:resnet18.")
    ],
    out: Annotated[Path, typer.Option(callback=possible, help="File that is written, such as pacs.safetensors.")],
    weights: Annotated[str, typer.Option(help="none (random), default (published), or the path of a file.")] = "none",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of dataset or backbone; may be repeated.", autocompletion=settings),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "auto",
) -> None:
    """Write what a network makes of every example to a file: dataset `embedded` trains methods on it in no time."""
    from invbench.console import counting
    from invbench.runs.config import parse_assignments
    from invbench.training.embedding import embed as write

    chosen = parse_assignments(set_ or [])
    with counting("embedding") as on_progress:
        problem = write(
            dataset,
            backbone,
            out,
            weights=weights,
            settings=chosen,
            seed=seed,
            device=device,
            on_progress=on_progress,
        )
    sizes = ", ".join(f"{name} {len(split)}" for name, split in problem.splits.items())
    echo(f"{out}: {problem.input_shape[0]} numbers of each example; {sizes}")
    echo(f"bench run -m erm -d embedded --set dataset.path={out}")


@data_app.command()
def shift(
    names: Annotated[list[str], typer.Argument(help="Datasets with a test split.", autocompletion=datasets)],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the datasets; may be repeated.", autocompletion=settings),
    ] = None,
    split: Annotated[str, typer.Option(help="What is compared with training.")] = "test",
    seeds: Annotated[str, typer.Option(help="Of data and networks: 0, 0-4 or 0,3.")] = "0-2",
    out: Annotated[Path | None, typer.Option(callback=possible, help="A picture: .png, .pdf or .svg.")] = None,
) -> None:
    """Measure how the test data differ from the training data: diversity and correlation shift (OoD-Bench)."""
    from rich.table import Table

    from invbench.analysis.shift import shift_table
    from invbench.console import counting, output_console
    from invbench.reporting.analysis_figures import shifts
    from invbench.results.rounding import rounded
    from invbench.runs.commands import parse_seeds
    from invbench.runs.config import parse_assignments

    with counting("problems") as on_progress:
        table = shift_table(names, parse_seeds(seeds), parse_assignments(set_ or []), split, on_progress)
    view = Table("dataset", "diversity", "correlation", "of random halves", "examples told apart")
    for row in table.to_dict("records"):
        halves = f"{row['diversity_of_halves']:.2f}, {row['correlation_of_halves']:.2f}"
        means = (rounded(row[name], row[f"{name}_half_width"], 2) for name in ("diversity", "correlation"))
        view.add_row(row["dataset"], *means, halves, f"{row['accuracy']:.0%}")
    output_console().print(view)
    echo(f"means and 95 % t-intervals over seeds {seeds}; of random halves: what so few examples make without a shift")
    draw(lambda: shifts(table), out)


def _releases(name: str) -> "Iterable[Release]":
    """Return the release of a dataset, the release of that name, or for `all` every one that a dataset needs."""
    from invbench.datafiles.release import release

    by_dataset = {entry: DATASETS.literal(entry, "release", "") for entry in DATASETS.entries()}
    needed = {files.name: files for files in (release(value) for value in by_dataset.values() if value)}
    if name == "all":
        return needed.values()
    if name in needed:
        return [needed[name]]
    if name not in by_dataset:
        raise UserError(
            f"no dataset or release is named '{name}'{did_you_mean(name, [*by_dataset, *needed], DATASETS.aliases)}"
        )
    if not by_dataset[name]:
        return []
    return [release(by_dataset[name])]


def _compared(release: "Release") -> Iterable[tuple[str, str, bool]]:
    """Yield the path of every file that is here, the verdict on it, and whether it is right."""
    from invbench.datafiles.checksums import MAX_UNPACKED, digest, sha256
    from invbench.datafiles.download import kept_sums

    kept, paths = kept_sums(release), release.locate()
    for file in (file for file in release.files if file.path in paths):
        path = paths[file.path]
        algorithm, _, published = release.published_hash(file).partition(":")
        try:
            sum_ = digest(path, algorithm or "sha256", max(file.size or 0, MAX_UNPACKED))
        except UserError as error:
            yield str(path), f"is damaged: {error}", False
            continue
        if published:
            right = sum_ == published
            differs = f"is not the published file, but a part of it or damaged: {algorithm} {sum_}, not {published}"
            verdict = "is the official file" if right else differs
        elif path in kept:
            right = sha256(path) == kept[path]
            verdict = "is as it was fetched" if right else "has changed since it was fetched"
        else:
            right, verdict = True, f"has sha256 {sum_}; no sum of it is published"
        yield str(path), verdict, right
