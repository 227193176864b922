"""Many runs from one file: cells, settings, seeds, in a small and a full size.

seeds: 100-131                       whole numbers and ranges
set: {trainer.evaluate_every: 3000}  settings of all runs
cells:                               each item is a product of its lists
  - method: [erm, irmv1]
    dataset: irm_regression
    set: {dataset.scramble: false}   settings of these runs; they win over the above
    grid: {method.weight: [1, 10]}   one run for each value, for each combination of several
tiers:
  small:                             what is otherwise than in the whole sweep
    seeds: 100-103
    set: {trainer.steps: 3000}       wins over all of the above
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from invbench.configuration import parse_yaml, sweep_names, sweep_text
from invbench.errors import UserError, did_you_mean
from invbench.settings import Settings, setting
from invbench.spec import Cell, resolve

FULL = "full"
Names = str | tuple[str, ...]
Seeds = str | int | tuple[int, ...]


class SweepCells(Settings):
    """One item of a sweep: every method with every dataset, with every combination of the grid."""

    method: Names = setting(..., "a method, or several")
    dataset: Names = setting(..., "a dataset, or several")
    set: dict[str, Any] = setting({}, "settings by dotted name")
    grid: dict[str, tuple[Any, ...]] = setting({}, "values of settings by dotted name; all combinations are run")

    def assignments(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, dataset and settings of each cell."""
        for method, dataset in itertools.product(_names(self.method), _names(self.dataset)):
            for values in itertools.product(*self.grid.values()):
                yield method, dataset, self.set | dict(zip(self.grid, values, strict=True))


class Tier(Settings):
    """A size of a sweep: what differs from the whole."""

    seeds: Seeds | None = setting(None, "other seeds")
    set: dict[str, Any] = setting({}, "settings that win over those of the cells")


class Sweep(Settings):
    """A validated sweep file."""

    seeds: Seeds = setting(0, "such as 0-4, or a list")
    set: dict[str, Any] = setting({}, "settings of all cells by dotted name")
    cells: tuple[SweepCells, ...] = setting(..., "what is run", min_length=1)
    tiers: dict[str, Tier] = setting({}, "other sizes by name")

    @model_validator(mode="after")
    def _full_is_the_whole(self) -> Self:
        if FULL in self.tiers:
            raise ValueError(f"'{FULL}' is the name of the whole sweep; give the tier another one")
        return self

    @classmethod
    def read(cls, name: str) -> Self:
        """The sweep of a file, or the one that is known by this name.

        Raises:
            UserError: there is none, or something in it is wrong.
        """
        path = Path(name)
        if name in sweep_names():
            text = sweep_text(name)
        elif path.is_file():
            text = path.read_text(encoding="utf-8")
        else:
            raise UserError(f"no sweep '{name}', and no file of that name{did_you_mean(name, sweep_names())}")
        data = parse_yaml(text, f"sweep {name}")
        if not isinstance(data, dict):
            raise UserError(f"sweep {name}: it must be a table with 'cells' and 'seeds'")
        return cls.parse(data, f"sweep {name}")

    def runs(self, tier: str = FULL) -> list[Cell]:
        """Every run once, checked, seed by seed, so that an interrupted sweep has complete comparisons first."""
        chosen = self._tier(tier)
        seeds = parse_seeds(self.seeds if chosen.seeds is None else chosen.seeds)
        each = [one for cells in self.cells for one in cells.assignments()]
        runs = [
            resolve(method, dataset, seed, self.set | settings | chosen.set)
            for seed in seeds
            for method, dataset, settings in each
        ]
        return list({run.spec.run_id: run for run in runs}.values())

    def _tier(self, name: str) -> Tier:
        if name != FULL and name not in self.tiers:
            raise UserError(f"no tier '{name}'{did_you_mean(name, [FULL, *self.tiers])}")
        return self.tiers.get(name, Tier())


def parse_seeds(seeds: Seeds) -> list[int]:
    """`0-4`, `0,2,7` and mixtures, a number or a list, without repetition. Raises UserError for anything else."""
    if isinstance(seeds, int):
        return [seeds]
    if not isinstance(seeds, str):
        return list(dict.fromkeys(seeds))
    found: list[int] = []
    for part in seeds.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(f"seeds {seeds}: write ranges and numbers such as 0-4 or 0,2,7")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def _names(value: Names) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value
