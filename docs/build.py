"""The documentation site: the project's own pages, and those that `reference.py` makes of classes, commands and claims.

    python docs/build.py            writes site/index.html, to be opened from the disk; any warning is an error

Pages are put together in a folder in which they lie as they do in the project, so that links between them stay as they
are; links to the files of methods, datasets and examples are made to lead to their pages.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from invbench.core.registry import DATASETS, METHODS
from invbench.leaderboard.page import write_page

try:
    import reference
    from sphinx.cmd.build import build_main
except ModuleNotFoundError as error:
    sys.exit(
        f"error: the site needs the extra docs ({error.name} is missing): pip install -c constraints.txt '.[docs]'"
    )

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "results/reference/README.md",
    "results/leaderboard/README.md",
)
PICTURES = ("docs/**/*.png", "results/reference/*.png")
MADE = {
    "reference/backbones": reference.backbones,
    "reference/trainer": reference.trainer,
    "reference/commands": reference.commands,
    "reference/sweeps": reference.sweeps,
    "reference/published": reference.published,
    "reference/faithful": reference.faithful,
    "reference/leaderboard": reference.leaderboard,
}
CONTENTS = {
    "Which method works?": ["reference/leaderboard", "docs/leaderboard"],
    "Use": [
        "docs/own-data",
        "docs/groups",
        "docs/invariance",
        "docs/use",
        "docs/ideas",
        "docs/pretrained",
        "docs/examples/index",
        "docs/clusters",
        "docs/gpu",
        "reference/sweeps",
        "docs/results",
        "docs/analysis",
        "docs/glossary",
    ],
    "What there is": [
        "docs/methods",
        "docs/datasets",
        "reference/backbones",
        "reference/trainer",
        "reference/commands",
    ],
    "Is it right?": [
        "The five sources <docs/sources>",
        "results/reference/README",
        "results/leaderboard/README",
        "reference/published",
        "reference/faithful",
    ],
    "The engine": ["docs/performance", "CONTRIBUTING", "docs/decisions", "CHANGELOG"],
}
BELOW = {"docs/methods": "/methods/*", "docs/datasets": "/datasets/*"}
"""Lists, and the pages that they lead to."""


def main() -> None:
    """Put the pages together and let Sphinx build them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        copy_pages(source)
        make_pages(source)
        add_contents(source)
        options = ["-W", "--keep-going", "-q", "-E", "-c", str(ROOT / "docs")]
        if build_main([*options, str(source), str(SITE)]):
            sys.exit("the site has errors, see above")
    write_page(*reference.leaderboard_rows(), SITE / "leaderboard.html")
    print(f"{SITE / 'index.html'}")


def copy_pages(folder: Path) -> None:
    """Copy the pages that are written by hand, and their pictures."""
    for path in (path for pattern in PAGES for path in ROOT.glob(pattern)):
        write(folder / path.relative_to(ROOT), linked(path.read_text("utf-8")))
    for path in (path for pattern in PICTURES for path in ROOT.glob(pattern)):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "README.md").rename(folder / "index.md")


def make_pages(folder: Path) -> None:
    """Make the pages that are generated from classes, commands and claims."""
    for name in reference.built_in(METHODS):
        write(folder / "methods" / f"{name}.md", reference.method(name))
    for name in reference.built_in(DATASETS):
        write(folder / "datasets" / f"{name}.md", reference.dataset(name))
        reference.draw(name, folder / "datasets" / f"{name}.png")
    for page, make in MADE.items():
        write(folder / f"{page}.md", make())
    write(folder / "docs" / "examples" / "index.md", reference.examples())


def write(path: Path, text: str) -> None:
    """Write a page, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def linked(text: str) -> str:
    """Turn links to the files of methods, datasets and examples into links to their pages."""
    text = re.sub(r"\]\(((?:\.\./)?(?:methods|datasets)/\w+)\.py\)", r"](\1.md)", text)
    return re.sub(r"\]\(((?:docs/)?examples)/?\)", r"](\1/index.md)", text)


def add_contents(folder: Path) -> None:
    """Tell Sphinx which page lies below which."""
    trees = {"index": "\n".join(toctree(pages, f":caption: {caption}") for caption, pages in CONTENTS.items())}
    trees |= {page: toctree([pages], ":glob:") for page, pages in BELOW.items()}
    for page, tree in trees.items():
        path = folder / f"{page}.md"
        path.write_text(f"{path.read_text('utf-8')}\n{tree}", "utf-8")


def toctree(pages: Iterable[str], option: str) -> str:
    """Format a list of pages for the sidebar."""
    return "\n".join(["```{toctree}", ":hidden:", option, "", *pages, "```", ""])


if __name__ == "__main__":
    main()
