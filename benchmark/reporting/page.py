"""Write one page about many runs: a self-contained HTML file that needs no network."""

import base64
import io
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from pydantic_core import to_json

from invbench.core.metric import find_metric
from invbench.errors import UserError
from invbench.files import write_text
from invbench.pytree import flatten
from invbench.reporting import invariance_figures, result_figures
from invbench.reporting import run_figures as figures
from invbench.reporting.drawing import drawn
from invbench.reporting.portable import without_folders
from invbench.results.columns import differing
from invbench.results.layout import PAPER, laid_out, notes
from invbench.results.load import load_results, meeting, unclear
from invbench.results.selection import Select
from invbench.results.table import completeness, omitted, table
from invbench.runs.commands import command_of
from invbench.runs.curves import read_curves
from invbench.runs.folder import RunFolder
from invbench.runs.record import Record, Unreadable, now
from invbench.runs.record_parts import PREFIXES
from invbench.runs.spec import RunSpec
from invbench.terminal import visible_lines

DETAILED = 1000
"""Largest number of runs with details, failed ones first, then the latest; and of rows with a command."""
POINTS = 60
"""Largest number of points of a curve, roughly."""
LINES, LOG_BYTES = 20, 16 * 1024
"""Largest numbers of lines and bytes of the end of a log."""

DARK = """@media (prefers-color-scheme: dark) { svg { fill: #e4e7eb }
[style*="stroke: #000000"] { stroke: #e4e7eb !important } path[style*="fill: #ffffff"] { fill: #14171b !important } }"""
"""Colours on a dark page of what is black and white in a figure: axes, the ground of a legend, and elements without a
colour, which SVG fills with black."""

Drawing = tuple[str, str, Callable[[], Figure]]
"""Kind, caption, and the function that draws the figure."""
Change = Callable[[str], str]
"""A function from text to text."""


def write_report(
    paths: Sequence[Path], out: Path, metric: str | None = None, select: str = "last", where: Sequence[str] = ()
) -> None:
    """Write the page of the runs below the paths that meet all conditions.

    Args:
        paths: folders with runs.
        out: the file.
        metric, select: as in `invbench.table`.
        where: conditions, as in `invbench.results.load.meeting`.

    Raises:
        UserError: there is no run, no such metric or selection, or the file cannot be written.
    """
    page = report(paths, metric, select, where)
    try:
        write_text(out, page)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None


def report(paths: Sequence[Path], metric: str | None = None, select: str = "last", where: Sequence[str] = ()) -> str:
    """Return the page of runs as text; arguments and errors as in `write_report`."""
    results = load_results(paths)
    if not len(results):
        raise UserError(f"no run in {', '.join(map(str, paths))}; `bench run` or `bench sweep` makes some")
    results = meeting(results, where).sort_values(["dataset", "method", "seed", "run_id"], ignore_index=True)
    options = {
        "--where": where,
        "--metric": [metric] if metric else [],
        "--select": [select] if select != Select.last else [],
    }
    public = published_text(paths)
    files = results["path"]
    results = results.map(lambda value: _in_texts(public, value)).assign(path=files)
    done = bool((results["status"] == "done").any())
    means = table(results, metric, select) if done else pd.DataFrame()
    all_means = table(results, metric) if done and select != Select.last else means
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=lambda value: _in_texts(public, value)
    )
    counts = results["status"].value_counts()
    return environment.from_string(_template()).render(
        title=f"Results: {', '.join([*(path.resolve().name or str(path) for path in paths), *where])}",
        counts=f"{len(results)} runs: " + ", ".join(f"{count} {status}" for status, count in counts.items()),
        made=now(),
        version=version("invbench"),
        layout=laid_out(means, style=PAPER) if done else None,
        remarks=[*notes(means, omitted(results), PAPER), *completeness(results)] if done else [],
        figures=_figures(paths, options, results, means, all_means, public) if done else [],
        commands=_commands(means, results),
        failures=_failures(results),
        left_out=_left_out(results),
        data=_data(results, metric, public),
    )


def published_text(paths: Sequence[Path]) -> Change:
    """Return a function that removes folders of this machine from texts and escapes control characters."""
    cut = without_folders(paths)
    return lambda text: visible_lines(cut(text))


def _in_texts(change: Change, value: Any) -> Any:
    """Change all texts in a value, names too; markup stays."""
    if isinstance(value, str):
        return value if isinstance(value, Markup) else change(value)
    if isinstance(value, Mapping):
        return {_in_texts(change, name): _in_texts(change, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_texts(change, part) for part in value]
    return value


def _template() -> str:
    """Read the template of the page."""
    return (files("invbench.reporting") / "page.html").read_text(encoding="utf-8")


def _figures(
    paths: Sequence[Path],
    options: Mapping[str, Sequence[str]],
    results: pd.DataFrame,
    means: pd.DataFrame,
    all_means: pd.DataFrame,
    public: Change,
) -> list[dict[str, str]]:
    """Draw the figures for which these runs have data; each has a caption, a command and a picture.

    Args:
        paths: folders of the page.
        options: --where, --metric and --select of the page, as far as they are given.
        results: the runs.
        means: the table that is shown.
        all_means: the table of all settings.
        public: changes a text to what the page may say.
    """
    drawings: list[Drawing] = [
        ("curves", "Learning curves: mean over seeds and their range.", lambda: result_figures.curves(means, results)),
        ("ranks", "Ranks of methods on datasets.", lambda: result_figures.ranks(means)),
        ("critical", "Mean ranks, and which differ.", lambda: result_figures.critical(means)),
        ("cost", "Performance against time and memory.", lambda: result_figures.cost(means)),
        ("sensitivity", "Performance against settings.", lambda: result_figures.sensitivity(all_means)),
    ]
    folders = [Path(path) for path in results["path"]] if options["--where"] else paths
    paths_of = dict(zip(results["run_id"], results["path"], strict=True))
    folders_of_means = [Path(paths_of[run_id]) for run_ids in means["run_ids"] for run_id in run_ids]
    if any(str(name).startswith("invariance.") for name in results):
        caption = "Change of the prediction under transformations of the input."
        drawings.append(("profile", caption, lambda: figures.profile(folders_of_means)))
    if any(_is_learned(str(name)) for name in results):
        drawings.append(("widths", "What was learned besides the weights.", lambda: figures.widths(folders, [])))
    if invariance_figures.METRIC in results:
        caption = "Is the target, given the prediction, distributed alike in all test environments?"
        drawings.append(("invariance", caption, lambda: invariance_figures.p_values(results)))
    pictures = []
    for kind, caption, draw in drawings:
        try:
            picture = drawn(draw)
        except UserError:  # these runs have nothing to draw, or too much
            continue
        given = [
            part
            for option, values in options.items()
            if kind in result_figures.KINDS_OF.get(option, kind)
            for value in values
            for part in (option, value)
        ]
        command = shlex.join(["bench", "plot", kind, *(public(str(path)) for path in paths), *given])
        pictures.append({"caption": caption, "command": command, "picture": _svg(picture, kind)})
    return pictures


def _svg(figure: Figure, salt: str) -> str:
    """Write a figure as SVG with the colours of a dark page, in base64; equal figures and salts give equal texts."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue().decode().replace("</style>", f"{DARK}</style>", 1)
    return base64.b64encode(text.encode()).decode()


def _is_learned(column: str) -> bool:
    """Tell whether a column, such as `width.rotation`, is a number that a method learned besides the weights."""
    section, dot, _ = column.partition(".")
    return bool(dot) and section not in PREFIXES and find_metric(column) is None


def _commands(means: pd.DataFrame, results: pd.DataFrame) -> list[dict[str, str]]:
    """Return a title and the command of each row of the table."""
    paths = dict(zip(results["run_id"], results["path"], strict=True)) if len(means) else {}
    commands = []
    for _, row in means.head(DETAILED).iterrows():
        path, seeds = Path(paths[row["run_ids"][0]]), [int(seed) for seed in row["seeds"]]
        record = RunFolder(path).read_record()
        name, dataset, metric = (PAPER.name(column, row[column]) for column in ("method", "dataset", "metric"))
        title = f"{name} on {dataset}, {row['n']} seeds: {metric} {PAPER.mean(row['metric'], row['mean'], math.nan)}"
        commands.append({"title": title, "command": _command(record.spec if record else None, seeds, path.parent)})
    return commands


def _command(spec: RunSpec | None, seeds: Sequence[int], out: Path) -> str:
    """Return the command that makes the same runs in the same folder, or why there is none."""
    if spec is None:
        return "its spec.yaml cannot be read"
    try:
        return f"{command_of(spec, seeds)} --out {shlex.quote(str(out))}"
    except UserError as error:
        return f"none here: {error}"


def _failures(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Group failed runs by kind, method and dataset, with the message of the first of each."""
    failed = results[results["status"] == "failed"]
    groups = []
    for (kind, method, dataset), group in failed.groupby(["kind", "method", "dataset"], dropna=False):
        record = RunFolder(Path(group["path"].iloc[0])).read_record()
        groups.append(
            {
                "kind": kind,
                "title": f"{method} on {dataset}",
                "count": f"{len(group)} runs" if len(group) > 1 else f"seed {group['seed'].iloc[0]}",
                "message": record.message if record else "",
                "traceback": record.traceback if record else None,
            }
        )
    return groups


def _data(results: pd.DataFrame, metric: str | None, public: Change) -> Markup:
    """Return the data of the list of runs, as JSON that cannot end the script element around it."""
    metrics = results.get("data.metric", pd.Series(dtype=object)).dropna().unique()
    score = metric or (str(metrics[0]) if len(metrics) == 1 else "score")
    runs = []
    for row, differs in zip(results.to_dict("records"), differing(results), strict=True):
        run = {"run": row["run_id"], **{name: row.get(name) for name in ("status", "method", "dataset")}}
        run |= {
            "settings": ", ".join(f"{name}={value}" for name, value in differs.items()),
            "seed": row.get("seed"),
            score: row.get(metric or row.get("data.metric")),
        }
        run |= {"seconds": row.get("cost.wall_seconds"), "finished": row.get("finished"), "path": row["path"]}
        runs.append(run)
    columns = [name for name in (runs[0] if runs else {}) if name != "path"]
    details = {Path(path).name: _details(RunFolder(Path(path))) for path in _detailed(results)["path"]}
    data = _in_texts(public, {"columns": columns, "runs": runs, "details": details})
    text = to_json(data, inf_nan_mode="null", fallback=_plain)
    return Markup(text.decode().replace("<", "\\u003c"))  # noqa: S704  JSON without a tag in it


def _plain(value: Any) -> Any:
    """Turn pandas' missing values into None and numpy's numbers into Python's."""
    return value.item() if hasattr(value, "item") else None


def _detailed(results: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with details: failed ones first, then the latest."""
    order = results.assign(_failed=results["status"] == "failed", _when=results.get("finished", ""))
    return order.sort_values(["_failed", "_when"], ascending=False, na_position="last").head(DETAILED)


def _left_out(results: pd.DataFrame) -> str:
    """Say how many runs have no details."""
    more = len(results) - DETAILED
    return f"{more} runs are in the list without their details, so that this page stays small." if more > 0 else ""


def _details(folder: RunFolder) -> dict[str, Any]:
    """Return the details of one run: settings, metrics, curves, log, and what failed."""
    record, unreadable = None, None
    try:
        record = folder.load_record()
    except Unreadable as error:
        unreadable = str(error)
    spec = record.spec if record else folder.read_spec()
    rows = read_curves(folder.curves)
    if rows is None and folder.curves.exists():
        unreadable = unreadable or unclear(folder)
    command = _command(spec, [spec.seed] if spec else [], folder.path.parent)
    details: dict[str, Any] = {
        "kind": None, "message": unreadable, "traceback": None, "metrics": {}, "data": {}, "machine": {},
        "settings": spec.flat() if spec else {}, "command": command,
        "curves": _curves(rows, record), "log": _log_tail(folder),
    }  # fmt: skip
    if record is not None:
        details |= {"kind": record.kind, "message": record.message or unreadable, "traceback": record.traceback}
        details |= {"metrics": record.metrics, "data": flatten(record.data)}
        details["machine"] = flatten(
            {"cost": record.cost, "engine": record.engine, **record.machine, "code": record.code}
        )
    return details


def _curves(rows: pd.DataFrame | None, record: Record | None) -> dict[str, Any]:
    """Return the objective, and the primary metric on all_means split, at a few steps."""
    primary = str(record.data.get("primary", "")) if record else ""
    columns = [] if rows is None else list(map(str, rows))
    names = [name for name in columns if name == "objective" or (primary and name.endswith(f"_{primary}"))]
    if rows is None or not names:
        return {"step": [], "series": {}}
    rows = rows[["step", *names]].dropna(subset=names, how="all")
    rows = rows.iloc[:: max(1, -(-len(rows) // POINTS))]
    return {"step": rows["step"].tolist(), "series": {name: rows[name].tolist() for name in names}}


def _log_tail(folder: RunFolder) -> str:
    """Return the last lines of a run's log; empty where it cannot be read."""
    try:
        if not folder.log.is_file():  # reading a pipe would block
            return ""
        with folder.log.open("rb") as file:
            file.seek(max(0, folder.log.stat().st_size - LOG_BYTES))
            text = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LINES:])
