"""invbench: which invariance method works on which problem, by how much, and at what cost.

import invbench
record = invbench.run("and_mask", "spirals", seed=0)
table = invbench.load_results("results")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from invbench.system.threads import wait_passively

if TYPE_CHECKING:
    from invbench.results.load import load_curves, load_results
    from invbench.results.table import table
    from invbench.sweeps.execute import sweep
    from invbench.training.runner import run

__all__ = ["load_curves", "load_results", "run", "sweep", "table"]

wait_passively()

_HOMES = {
    "load_curves": "invbench.results.load",
    "load_results": "invbench.results.load",
    "run": "invbench.training.runner",
    "sweep": "invbench.sweeps.execute",
    "table": "invbench.results.table",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `bench ls` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'invbench' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
