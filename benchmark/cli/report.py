"""`bench report`: one page to look at and to share."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from invbench.choices import Select
from invbench.cli.arguments import choice, possible
from invbench.cli.output import echo
from invbench.cli.table import Where
from invbench.errors import UserError


def report(
    results: Annotated[
        list[Path] | None, typer.Argument(callback=possible, help="Folders with runs (default: results).")
    ] = None,
    out: Annotated[
        Path, typer.Option(callback=possible, help="The page, one .html file that needs no network.")
    ] = Path("report.html"),
    metric: Annotated[str | None, typer.Option(help="What is shown (default: each task's own).")] = None,
    select: Annotated[
        Select, typer.Option(**choice(Select), help="Which step and settings, as in `bench table`.")
    ] = Select.last,
    where: Where = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Answer on this machine instead of writing a file; made anew at each visit.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="--serve: where; 0 takes any free one.")] = 8000,
) -> None:
    """Write a page with the table, the figures, every run to look into, what failed, and how to reproduce each row."""
    if not serve and (out.suffix != ".html" or not out.absolute().parent.is_dir()):
        raise UserError(f"--out {out}: it must end in .html, in a folder that exists")
    from invbench.reporting.page import published_text, write_report
    from invbench.reporting.page import report as page
    from invbench.reporting.serving import Server
    from invbench.results.load import folders

    paths = results or [Path("results")]
    if not serve:
        write_report(paths, out, metric, select, where or [])
        echo(str(out))
        return
    folders(paths)  # a folder that is not there is said now, not to the first visitor
    with Server(lambda: page(paths, metric, select, where or []), port, published_text(paths)) as running:
        echo(f"http://127.0.0.1:{running.server_address[1]}/ (Ctrl-C ends it)", err=True)
        with suppress(KeyboardInterrupt):
            running.serve_forever()
