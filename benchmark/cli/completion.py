"""Names that a shell completes. No third party's code is imported for it."""

from invbench.configuration import sweep_names
from invbench.registry import BACKBONES, DATASETS, METHODS


def methods(incomplete: str) -> list[str]:
    """Of compositions the last part."""
    before, plus, _ = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in METHODS.known()]


def datasets() -> list[str]:
    """Every dataset."""
    return list(DATASETS.known())


def anything_shown() -> list[str]:
    """What `bench show` knows."""
    return [*METHODS.known(), *DATASETS.known(), *BACKBONES.known(), "trainer"]


def sweeps(incomplete: str) -> list[str]:
    """Those of the package; a file of one is completed as any file."""
    return [name for name in sweep_names() if name.startswith(incomplete)]
