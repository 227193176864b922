"""Pages of the site that are made of what the code says of itself."""

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from typer.main import get_command

from invbench.choices import Format, Select
from invbench.cli import app
from invbench.cli.listing import provenance, recipe_of, trained_together
from invbench.core.hooks import changed_by
from invbench.core.registry import BACKBONES, DATASETS, METHODS, Registry, datasets_with_defaults, unmet
from invbench.core.settings import Settings
from invbench.core.trainer import TrainerConfig
from invbench.datafiles.release import release
from invbench.leaderboard import overall, standings
from invbench.leaderboard.edition import Edition, read_edition
from invbench.leaderboard.rows import read_curves, read_rows
from invbench.published.claims import Claim, sources
from invbench.reporting.contact_sheet import contact_sheet
from invbench.results.formats import written
from invbench.runs.config import recipe_layers, sweep_names, sweep_text
from invbench.runs.resolve import resolve
from invbench.training.build import load_problem

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = (
    "why_erm_fails",
    "or_against_and",
    "linear_regression",
    "rotation_range",
    "which_symmetry",
    "decorrelate",
    "composition",
    "own_method",
    "own_dataset",
)
"""In the order in which one might read them."""
FAITHFUL = """# Faithful or not

What each method and dataset does otherwise than the code or paper it comes from, in its own file's words, and what came
of the published numbers; what is in neither count has no verdict there. *None* stands where there is nothing to
depart from: a baseline, or data of our own. The claims are among the [published numbers](published.md); how each was
judged is in the [reference results](../results/reference/README.md).
"""
PUBLISHED = """# Published numbers

`bench reproduce CLAIM` runs what a claim needs and judges it, `--dry-run` tells first what that costs;
`bench table --vs-published` puts finished runs beside all of them. The verdicts are those of the
[reference results](../results/reference/README.md), where there is one. Numbers *recalled* were not read in their
source, and are never judged.
"""
SWEEPS = "The package's own sweeps are examples; `bench sweep NAME --dry-run` tells what they cost.\n"


def built_in(registry: Registry) -> list[str]:
    """List the entries of the project itself, not those of packages installed beside it."""
    return [name for name, entry in registry.entries().items() if entry.origin.startswith("invbench.")]


def method(name: str) -> str:
    """Describe a method: paper, formula, deviations, settings, and where it runs."""
    cls = METHODS.load(name)
    cells = [data for data in built_in(DATASETS) if not unmet(METHODS.traits(name), DATASETS.traits(data))]
    lines = [
        titled(name, docstring("methods", name)),
        f"- changes: {changes(name)}",
        f"- requires: {', '.join(METHODS.traits(name)) or 'nothing'}",
        f"- runs on: {', '.join(f'[{data}](../datasets/{data}.md)' for data in cells)}",
        f"- several runs can be trained together: {trained_together(name, cls)}",
        f"\n```sh\nbench run --method {name} --dataset {suggested(name, cells)}\n```\n",
        "## Settings\n",
        settings("method", cls),
    ]
    rows = [row for row in claims() if name in row[1].method.split("+")]
    return "\n".join([*lines, "## Published numbers\n", claims_table(rows)] if rows else lines)


def suggested(name: str, cells: Iterable[str]) -> str:
    """Suggest a dataset that needs no files, if possible with settings for this method."""
    ready = set(datasets_with_defaults())
    offline = [data for data in cells if data in ready and not DATASETS.literal(data, "release", "")]
    tuned = [
        data for data in offline if any(name in layer.get("method", {}) for layer in recipe_layers(data, [name], {}))
    ]
    return tuned[0] if tuned else "spirals" if "spirals" in offline else offline[-1]


def dataset(name: str) -> str:
    """Describe a dataset: construction, picture, licence, settings and recipe."""
    cls = DATASETS.load(name)
    needed = cls.required_setting or cls.release
    picture = f"![examples of {name}]({name}.png)" if available(name) else f"(The picture needs {needed}.)"
    required = f" --set {cls.required_setting}=..." if cls.required_setting else ""
    facts = (line.partition(": ") for line in provenance(name, cls))
    return "\n".join(
        [
            titled(name, docstring("datasets", name)),
            f"{picture}\n",
            f"- provides: {', '.join(DATASETS.traits(name))}",
            *(f"- {what}: {text}" for what, _, text in facts if what in ("licence", "citation", "source")),
            f"\n```sh\nbench show {name}{required} --picture sheet.png\n```\n",
            "## Settings\n",
            settings("dataset", cls),
            f"## Recipe\n\n```yaml\n{(recipe_of(name, cls) or '# none').strip()}\n```\n",
        ]
    )


def draw(name: str, path: Path) -> None:
    """Draw a dataset's picture, where its data are on this machine."""
    if available(name):
        contact_sheet(load_problem(resolve("erm", name, 0, {})), name, path)


def available(name: str) -> bool:
    """Whether a dataset can be drawn here."""
    if DATASETS.literal(name, "required_setting", ""):
        return False
    needed = DATASETS.literal(name, "release", "")
    return not needed or bool(release(needed).locate())


def backbones() -> str:
    """Describe all networks."""
    parts = ["# Backbones\n\n`--set backbone.name=...` takes another than the recipe's.\n"]
    for name in built_in(BACKBONES):
        cls = BACKBONES.load(name)
        accepted = f"Accepts {', '.join(BACKBONES.traits(name))}.\n"
        parts += [f"## {name}\n", inspect.cleandoc(cls.__doc__ or ""), "", accepted, settings("backbone", cls)]
    return "\n".join(parts)


def trainer() -> str:
    """Describe the settings of the loop."""
    text = inspect.cleandoc(TrainerConfig.__doc__ or "")
    return f"# The training loop\n\n{text}\n\n{settings('trainer', TrainerConfig)}"


def commands() -> str:
    """Describe every command with its arguments and options."""
    parts = ["# Commands\n"]
    for words, command in walk("bench", get_command(app)):
        rows = []
        for given in command.params:
            argument = given.param_type_name == "argument"
            names = given.name.upper() if argument else ", ".join([*given.opts, *given.secondary_opts])
            rows.append((f"`{names}`", getattr(given, "help", None) or ""))
        parts += [f"## {words}\n", inspect.cleandoc(command.help or ""), "", table(("option", "meaning"), rows)]
    return "\n".join(parts)


def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield the commands by what one types."""
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from walk(f"{words} {name}", below)
        else:
            yield f"{words} {name}", below


def sweeps() -> str:
    """Describe the format of a sweep's file, and the package's sweeps."""
    first, _, rest = docstring("benchmark/sweeps", "definition").partition("\n")
    parts = [f"# Sweep files\n\n{first}\n\n```text\n{rest.strip()}\n```\n", SWEEPS]
    return "\n".join([*parts, *(f"## {name}\n\n```yaml\n{sweep_text(name).strip()}\n```\n" for name in sweep_names())])


def published() -> str:
    """List every claim."""
    parts = [PUBLISHED]
    for source in sources().values():
        rows = [row for row in claims() if row[0] in source.claims]
        parts += [f"## {source.source}\n", claims_table(rows)]
    return "\n".join(parts)


LEADERBOARD = """# The leaderboard: results

<a href="../leaderboard.html">The whole leaderboard</a>: to sort, to filter and to click, with a view of each problem
and the command behind each number. [How it is made and read](../docs/leaderboard.md). Below are the standings by
validation.
"""


def leaderboard() -> str:
    """Print the summary and the standings of each problem."""
    edition, rows, _ = leaderboard_rows()
    rule = Select.best_validation
    summary = overall.laid_out(overall.overall(rows, rule), rows, rule)
    parts = [LEADERBOARD, written(*summary, Format.markdown)]
    for name, table in rows.items():
        layout, remarks = standings.laid_out(name, standings.standings(table, rule))
        parts += [f"## {name}\n\n{edition.problem(name).what}\n", written(layout, remarks, Format.markdown)]
    return "\n\n".join(parts)


def leaderboard_rows() -> tuple[Edition, dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Read the edition, its rows and its curves."""
    edition, folder = read_edition("small"), ROOT / "results" / "leaderboard" / "small"
    rows = read_rows(folder, edition.problems, edition.version)
    return edition, rows, read_curves(folder, rows)


@cache
def claims() -> list[tuple[str, Claim, str]]:
    """Name, claim, and the verdict of the table in the reference results, where there is one."""
    lines = (ROOT / "results" / "reference" / "README.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    verdicts = {row[3].strip("`"): row[6] for row in cells if len(row) == 9}
    every = {name: claim for source in sources().values() for name, claim in source.claims.items()}
    return [(name, claim, verdicts.get(name, "")) for name, claim in every.items()]


def claims_table(rows: Iterable[tuple[str, Claim, str]]) -> str:
    """Format claims as a table."""
    lines = []
    for name, claim, verdict in rows:
        numbers = ", ".join(f"{number.metric} {number.shown}" for number in claim.numbers)
        lines.append((f"`{name}`", claim.what, numbers, verdict if claim.verified else "recalled"))
    return table(("claim", "what", "published", "verdict"), lines)


def faithful() -> str:
    """List what departs from the sources, and the numbers that follow."""
    parts = [FAITHFUL]
    for folder, registry in (("methods", METHODS), ("datasets", DATASETS)):
        rows = []
        for name in built_in(registry):
            tried = [row for row in claims() if name in (*row[1].method.split("+"), row[1].dataset)]
            reproduced = sum(verdict.startswith("reproduced") for _, _, verdict in tried)
            missed = sum(verdict.startswith("not reproduced") for _, _, verdict in tried)
            summary = (
                f"{reproduced} of {len(tried)} reproduced" + (f", {missed} not" if missed else "") if tried else ""
            )
            rows.append((f"[{name}](../{folder}/{name}.md)", deviations(docstring(folder, name)), summary))
        parts += [
            f"## {folder.capitalize()}\n",
            table(("name", "departs from its source by", "published numbers"), rows),
        ]
    return "\n".join(parts)


def deviations(text: str) -> str:
    """Return the paragraph of a docstring that begins with its deviations."""
    match = re.search(r"Deviations?\b[^:]*:(.*?)(?:\n\n|\Z)", text, re.DOTALL)
    return match[1].strip().replace("\n- ", " • ").removeprefix("- ") if match else "None"


def examples() -> str:
    """Show each script with what it prints and draws."""
    parts = [
        "# Worked examples\n\nScripts in `docs/examples/`, each under two minutes on a laptop; the tests run them.\n"
    ]
    folder = ROOT / "docs" / "examples"
    if set(EXAMPLES) != {path.stem for path in folder.glob("*.py")}:
        sys.exit("EXAMPLES in docs/reference.py must name every script in docs/examples")
    for name in EXAMPLES:
        source = (folder / f"{name}.py").read_text("utf-8")
        first, _, rest = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
        body = source.split('"""', 2)[2].strip()
        parts += [f"## {first.rstrip('.')}\n\n{rest}\n\n![{name}]({name}.png)\n", f"```python\n{body}\n```\n"]
    return "\n".join(parts)


def settings(section: str, cls: type[Settings]) -> str:
    """Format every setting of a class."""
    rows = []
    for info in cls.describe():
        limits = ", ".join(part for part in (info.type, info.range) if part)
        search = f"; search {info.search}" if info.search else ""
        rows.append((f"`{section}.{info.name}`", f"`{info.default}`", f"{info.meaning} ({limits}{search})"))
    return table(("setting", "default", "meaning"), rows)


def changes(name: str) -> str:
    """Say which of the three things, or which others, a method changes."""
    method = METHODS.load(name)
    return " and ".join(changed_by(method)) or "nothing"


def docstring(folder: str, name: str) -> str:
    """Return the docstring of a file as Markdown, its indented formulas as they are."""
    return ast.get_docstring(ast.parse((ROOT / folder / f"{name}.py").read_text("utf-8"))) or ""


def titled(name: str, text: str) -> str:
    """Format a docstring as the beginning of a page: its first line below the name."""
    first, _, rest = text.partition("\n")
    return f"# {name}\n\n**{first}**\n{rest}\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a table in Markdown, or nothing where it has no rows."""
    lines = [" | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) for row in rows]
    names = list(header)
    head = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*head, *(f"| {line} |" for line in lines), ""]) if lines else ""
