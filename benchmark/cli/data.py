"""`bench data`: where the datasets' files are, and whether they are the official ones."""

from typing import Annotated

import typer

from invbench.errors import UserError
from invbench.registry import DATASETS

data_app = typer.Typer(name="data", help="Data files: what is here, and is it right?")


@data_app.command(name="ls")
def list_data() -> None:
    """Every dataset with its licence, its size and where its files are on this machine."""
    from invbench.sources import CACHE_VARIABLE, DATA_VARIABLE, data_folders, locate

    for name in DATASETS.entries():
        cls = DATASETS.load(name)
        sources = cls.sources
        found = [path for source in sources if (path := locate(source))]
        if not sources:
            state = "always available"
        else:
            size = sum(source.size for source in sources) / 1e6
            where = f" in {found[0].parent}" if found else ""
            state = f"{len(found)} of {len(sources)} files here{where} ({size:.0f} MB)"
        typer.echo(f"{name}: {state}; {cls.licence}")
    folders = ", ".join(str(folder) for folder in data_folders())
    typer.echo(f"searched: {folders} (set {DATA_VARIABLE} or {CACHE_VARIABLE} to change that)")


@data_app.command()
def verify(name: Annotated[str | None, typer.Argument(help="A dataset; all by default.")] = None) -> None:
    """Hash the files that are here and compare with the official sums; exit status 2 if one differs."""
    from invbench.sources import locate, read
    from invbench.sources import verify as check

    bad = []
    for dataset in [name] if name else DATASETS.entries():
        for source in DATASETS.load(dataset).sources:
            path = locate(source)
            if path is None:
                typer.echo(f"{dataset}: {source.path} is not here")
                continue
            try:
                check(read(path), source, path)
                typer.echo(f"{dataset}: {path} is the official file")
            except UserError as error:
                bad.append(path)
                typer.echo(f"{dataset}: {error}")
    if bad:
        raise UserError(f"{len(bad)} files differ from the official ones")
