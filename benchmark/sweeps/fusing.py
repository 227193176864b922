"""Which runs of a sweep are trained together: see `invbench.training.fused.loop`."""

import heapq
import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from invbench.core.settings import Settings
from invbench.errors import UserError, brief
from invbench.runs.spec import Cell
from invbench.sweeps.jobs import Job

Fuse = Literal["auto", "off"] | int
"""Whether runs that differ in seed and numbers only are trained together: where it is faster, never, or so many."""
MOST = 64
"""As many runs are trained together where nobody says how many."""


def parse_fuse(text: str) -> Fuse:
    """`auto`, `off` or a number. Raises UserError for anything else."""
    if text == "auto" or text == "off":  # one by one, so that a type checker sees which
        return "auto" if text == "auto" else "off"
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise UserError(f"--fuse {brief(text)}: it is auto, off, or a number of runs from 1 to 999999999")
    return int(text)


def fusion_key(cell: Cell) -> str:
    """Equal for runs that may be trained together: all but the seed and the values of fusable settings."""
    spec = cell.spec.model_dump(exclude={"seed"})
    spec["method_settings"] = {name: _shape(part) for name, part in cell.method.parts.items()}
    spec["trainer"] = _shape(cell.trainer)
    return json.dumps(spec, sort_keys=True)


def _shape(settings: Settings) -> dict[str, Any]:
    """The settings with no more of fusable ones than whether they are zero."""
    fusable = type(settings).fusable()
    return {name: value == 0 if name in fusable else value for name, value in settings.canonical().items()}


def why_apart(cell: Cell) -> str:
    """What a run's settings tell of why it cannot be trained together with others; empty where they tell nothing."""
    for name in ("compile", "autocast"):
        if getattr(cell.trainer, name):
            return f"trainer.{name} is on"
    if cell.trainer.strategy == "loop":
        return "trainer.strategy is loop"
    return cell.method.apart


def jobs_of(cells: Iterable[Cell], fuse: Fuse, places: int) -> list[Job]:
    """The runs as jobs, each of one run or of several that are trained together.

    Args:
        places: jobs that can be done at a time; with `auto` none of them is left idle.
    """
    groups: dict[str, list[str]] = {}
    for cell in cells:
        alone = fuse in ("off", 1) or why_apart(cell)
        groups.setdefault(cell.spec.run_id if alone else fusion_key(cell), []).append(cell.spec.run_id)
    most = fuse if isinstance(fuse, int) else MOST
    found = [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]
    if fuse == "auto":
        found = _spread(found, places)
    return [Job(first, others=tuple(others)) for first, *others in found]


def _spread(groups: list[list[str]], places: int) -> list[list[str]]:
    """The groups, the largest of them halved until there is one for each place."""
    heap = [(-len(group), float(number), group) for number, group in enumerate(groups)]
    heapq.heapify(heap)
    while heap and len(heap) < places and len(heap[0][2]) > 1:
        _, number, group = heapq.heappop(heap)
        half = (len(group) + 1) // 2
        for order, part in ((number, group[:half]), (number + 0.5, group[half:])):
            heapq.heappush(heap, (-len(part), order, part))
    return [group for _, _, group in sorted(heap, key=lambda entry: entry[1])]
