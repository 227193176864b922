"""Names that a shell completes. No third party's code is imported for it."""

from invbench.configuration import sweep_names
from invbench.registry import BACKBONES, DATASETS, METHODS


def methods(incomplete: str) -> list[str]:
    """Names of methods for the shell to complete; of a composition `a+b` its last part."""
    before, plus, _ = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in METHODS.known()]


def datasets() -> list[str]:
    """The names of all datasets, for the shell to complete."""
    return list(DATASETS.known())


def anything_shown() -> list[str]:
    """The names that `bench show` accepts, for the shell to complete."""
    return [*METHODS.known(), *DATASETS.known(), *BACKBONES.known(), "trainer"]


def sweeps(incomplete: str) -> list[str]:
    """Names of the package's sweeps, for the shell to complete; it completes files by itself."""
    return [name for name in sweep_names() if name.startswith(incomplete)]
