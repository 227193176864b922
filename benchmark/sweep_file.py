"""Many runs from one file: cells, settings, seeds, in a small and a full size.

seeds: 100-131                       whole numbers and ranges
set: {trainer.evaluate_every: 3000}  settings of all runs
cells:                               each item is a product of its lists
  - method: [erm, irmv1]
    dataset: irm_regression
    set: {dataset.scramble: false}   settings of these runs; they win over the above
    grid: {method.weight: [1, 10]}   one run for each value, for each combination of several
  - method: "*"                      all that the dataset allows
    dataset: spirals
    random: {trials: 20}             each setting from its own range (`bench show`); {trials: 20, settings: [...]}
exclude:                             runs that are left out, by names, seed and settings
  - {method: [fish, iga], trainer.batch_size: 16}
include: []                          where there are such rules, only runs that meet one of them are carried out
tiers:
  small:                             what is otherwise than in the whole sweep
    seeds: 100-103
    set: {trainer.steps: 3000}       wins over all of the above
    trials: 2                        of a random search
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from invbench.configuration import parse_yaml, sweep_names, sweep_text
from invbench.errors import UserError, did_you_mean
from invbench.registry import DATASETS, METHODS, unmet
from invbench.search import RandomSearch, drawn_settings
from invbench.settings import Settings, setting
from invbench.spec import Cell, resolve

FULL = "full"
ALL = "*"
Names = str | tuple[str, ...]
Seeds = str | int | tuple[int, ...]


class SweepCells(Settings):
    """One item of a sweep: every method with every dataset, with every combination of the grid."""

    method: Names = setting(..., "a method, or several")
    dataset: Names = setting(..., "a dataset, or several")
    set: dict[str, Any] = setting({}, "settings by dotted name")
    grid: dict[str, tuple[Any, ...]] = setting({}, "values of settings by dotted name; all combinations are run")
    random: RandomSearch | None = setting(None, "trials of settings from their own ranges, for each of the above")

    def cells(self, common: dict[str, Any], tier: "Tier") -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, dataset and settings of each cell. `common` is what the whole sweep sets."""
        for method, dataset in itertools.product(_names(self.method), _names(self.dataset)):
            for name in _possible(dataset) if method == ALL else [method]:
                for values in itertools.product(*self.grid.values()):
                    settings = common | self.set | dict(zip(self.grid, values, strict=True))
                    for trial in self._trials(name, dataset, settings, tier):
                        yield name, dataset, settings | trial | tier.set

    def _trials(self, method: str, dataset: str, settings: dict[str, Any], tier: "Tier") -> Iterator[dict[str, Any]]:
        if self.random is None:
            yield {}
            return
        search = self.random if tier.trials is None else self.random.model_copy(update={"trials": tier.trials})
        yield from drawn_settings(resolve(method, dataset, 0, settings | tier.set), search)


class Tier(Settings):
    """A size of a sweep: what differs from the whole."""

    seeds: Seeds | None = setting(None, "other seeds")
    set: dict[str, Any] = setting({}, "settings that win over those of the cells")
    trials: int | None = setting(None, "of each random search", ge=1)


class Sweep(Settings):
    """A validated sweep file."""

    seeds: Seeds = setting(0, "such as 0-4, or a list")
    set: dict[str, Any] = setting({}, "settings of all cells by dotted name")
    cells: tuple[SweepCells, ...] = setting(..., "what is run", min_length=1)
    include: tuple[dict[str, Any], ...] = setting((), "rules; where there are any, only runs that meet one are kept")
    exclude: tuple[dict[str, Any], ...] = setting((), "rules; runs that meet one are left out")
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
        each = [one for cells in self.cells for one in cells.cells(self.set, chosen)]
        runs = [resolve(method, dataset, seed, settings) for seed in seeds for method, dataset, settings in each]
        kept = self._kept(list({run.spec.run_id: run for run in runs}.values()))
        if not kept:
            raise UserError("include and exclude leave no run of the sweep; --dry-run without them shows all")
        return kept

    def _kept(self, runs: list[Cell]) -> list[Cell]:
        """Those that the rules keep. Raises UserError for a rule with a name that no run has."""
        facts = [
            {"method": run.spec.method, "dataset": run.spec.dataset, "seed": run.spec.seed} | run.spec.flat()
            for run in runs
        ]
        known = {name for fact in facts for name in fact}
        for name in {name for rule in (*self.include, *self.exclude) for name in rule}:
            if name not in known:
                raise UserError(f"a rule names '{name}', which no run of the sweep has{did_you_mean(name, known)}")

        def meets(fact: dict[str, Any], rules: Sequence[dict[str, Any]]) -> bool:
            return any(all(fact.get(name, ...) in _values(value) for name, value in rule.items()) for rule in rules)

        wanted = [not self.include or meets(fact, self.include) for fact in facts]
        return [
            run for run, fact, want in zip(runs, facts, wanted, strict=True) if want and not meets(fact, self.exclude)
        ]

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


def _values(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _possible(dataset: str) -> list[str]:
    """Every method that the dataset provides for."""
    provided = DATASETS.traits(dataset)
    return [name for name in METHODS.entries() if not unmet(METHODS.traits(name), provided)]
