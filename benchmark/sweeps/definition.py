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
                                     ranges: {trainer.batch_size: [16, 64], trainer.learning_rate: {low: 1e-3, high: 1}}
  - method: [erm, coral]
    dataset: images
    test_environments: each          one run for each environment, which it is tested on and not trained on
  - method: and_mask
    dataset: spirals
    optuna: {trials: 20, at_once: 4, metric: validation_loss, direction: minimize}    led by earlier results
exclude:                             runs that are left out, by names, seed and settings
  - {method: [fish, iga], trainer.batch_size: 16}
fuse: auto                           train runs that differ in seed and numbers only together: where that is faster
                                     (auto), at most so many (a number), never (off, unless set)
include: []                          where there are such rules, only runs that meet one of them are carried out
tiers:
  small:                             what is otherwise than in the whole sweep
    seeds: 100-103
    set: {trainer.steps: 3000}       wins over all of the above
    trials: 2                        of each search
"""

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import field_validator, model_validator

from invbench.core.registry import DATASETS, METHODS, unmet
from invbench.core.settings import Settings, setting
from invbench.errors import NotProvided, UserError, brief, did_you_mean
from invbench.runs.commands import parse_seeds
from invbench.runs.config import sweep_names, sweep_text
from invbench.runs.given import named_cells
from invbench.runs.resolve import RunConfig, resolve, with_penalty
from invbench.runs.spec import Fuse, Protocol
from invbench.strict_yaml import parse_yaml, read_yaml
from invbench.sweeps.search import MOST_RUNS, Judge, OptunaSearch, RandomSearch, optuna_trials, random_trials

FULL = "full"
ALL = "*"
MOST_FILES = 1000
"""Maximum number of files of a folder that are compared with a name that was not found."""
LEFT_OUT = "test_environments"
"""Setting of datasets that lets runs be tested on whole environments."""
Names = str | tuple[str, ...]
Seeds = str | int | tuple[int, ...]
Results = Callable[[str], Mapping[str, float] | None]
"""Function from a run's id to its metrics; empty where it failed, None where it is not over."""


class SweepCells(Settings):
    """Item of a sweep: every method with every dataset, with every combination of the grid."""

    method: Names = setting(..., "a method, or several")
    dataset: Names = setting(..., "a dataset, or several")
    set: dict[str, Any] = setting({}, "settings by dotted name")
    protocol: Protocol = setting("last", "where the settings were chosen by results on other seeds: by what")
    test_environments: Literal["each"] | None = setting(
        None, "each: one run for each environment of the data, which it is tested on and not trained on"
    )
    grid: dict[str, tuple[Any, ...]] = setting({}, "values of settings by dotted name; all combinations are run")
    random: RandomSearch | None = setting(None, "trials of settings from their own ranges, for each of the above")
    optuna: OptunaSearch | None = setting(None, "the same, where earlier results lead to later trials")

    @model_validator(mode="after")
    def _one_search(self) -> Self:
        if self.random and self.optuna:
            raise ValueError("'random' and 'optuna' are two searches; give each a cell of its own")
        return self

    def cells(self, common: dict[str, Any], tier: "Tier", judge: "JudgeOf") -> "Iterator[Setup]":
        """Yield the setups that are known by now.

        Args:
            common: settings of the whole sweep.
            judge: scores the trials of a search.
        """
        for method, dataset in itertools.product(_names(self.method), _names(self.dataset)):
            grid = self.grid | self._left_out(dataset, common | self.set | tier.set)
            for name in possible_methods(dataset, common | self.set | tier.set) if method == ALL else [method]:
                for values in itertools.product(*grid.values()):
                    settings = common | self.set | dict(zip(grid, values, strict=True))
                    setup = Setup(name, dataset, settings, self.protocol)
                    for trial in self._trials(setup.also(tier.set), tier, judge):
                        yield setup.also(trial).also(tier.set)

    def size(self, common: dict[str, Any], tier: "Tier") -> int:
        """Return the maximum number of setups, each of which is run with every seed.

        Args:
            common: settings of the whole sweep.
        """
        settings = common | self.set | tier.set
        search = self.random or self.optuna
        cells = 0
        for dataset, times in Counter(_names(self.dataset)).items():
            grid = self.grid | self._left_out(dataset, settings)
            methods = Counter(_names(self.method))
            count = methods.total()
            if methods[ALL]:
                count += methods[ALL] * (len(possible_methods(dataset, settings)) - 1)
            cells += times * count * math.prod(map(len, grid.values()))
        return cells * ((tier.trials or search.trials) if search else 1)

    def _left_out(self, dataset: str, settings: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Return a grid of the environments that runs leave out, one in each; empty where that is not asked for."""
        if self.test_environments is None:
            return {}
        data = DATASETS.load(dataset)
        if LEFT_OUT not in data.model_fields:
            raise UserError(f"test_environments: dataset {dataset} has no environments to choose for the test")
        names = data.parse(_of_dataset(settings), "dataset").environment_choices()
        if not names:
            raise UserError(f"test_environments: with these settings dataset {dataset} has no environments to choose")
        return {f"dataset.{LEFT_OUT}": tuple((name,) for name in names)}

    def _trials(self, setup: "Setup", tier: "Tier", judge: "JudgeOf") -> Iterator[dict[str, Any]]:
        fewer = {} if tier.trials is None else {"trials": tier.trials}
        if self.random:
            yield from random_trials(setup.config(0), self.random.model_copy(update=fewer))
        elif self.optuna:
            search = self.optuna.model_copy(update=fewer)
            yield from optuna_trials(setup.config(0), search, judge(setup, tier, search.metric))
        else:
            yield {}


class Setup(NamedTuple):
    """Method, dataset and settings of runs that differ in the seed only."""

    method: str
    dataset: str
    settings: dict[str, Any]
    protocol: Protocol = "last"

    def also(self, settings: dict[str, Any]) -> "Setup":
        """Return the setup with these settings added; they win."""
        return self._replace(settings=self.settings | settings)

    def config(self, seed: int) -> RunConfig:
        """Resolve the run with a seed, everything checked."""
        return resolve(self.method, self.dataset, seed, self.settings, protocol=self.protocol)


JudgeOf = Callable[[Setup, "Tier", str], Judge]
"""Function that makes the judge of a search's trials, by a metric."""


class Tier(Settings):
    """Size of a sweep: what differs from the whole."""

    seeds: Seeds | None = setting(None, "other seeds")
    set: dict[str, Any] = setting({}, "settings that win over those of the cells")
    trials: int | None = setting(None, "of each random search", ge=1, le=MOST_RUNS)


class Sweep(Settings):
    """Validated sweep file."""

    seeds: Seeds = setting(0, "such as 0-4, or a list")
    set: dict[str, Any] = setting({}, "settings of all cells by dotted name")
    cells: tuple[SweepCells, ...] = setting(..., "what is run", min_length=1)
    fuse: Fuse = setting("off", "whether runs that differ in seed and fusable settings only are trained together")
    include: tuple[dict[str, Any], ...] = setting((), "rules; where there are any, only runs that meet one are kept")
    exclude: tuple[dict[str, Any], ...] = setting((), "rules; runs that meet one are left out")
    tiers: dict[str, Tier] = setting({}, "other sizes by name")

    @field_validator("fuse")
    @classmethod
    def _at_least_one(cls, fuse: Fuse) -> Fuse:
        if isinstance(fuse, int) and fuse < 1:
            raise ValueError("it is auto, off, or a number of runs from 1")
        return fuse

    @model_validator(mode="after")
    def _full_is_the_whole(self) -> Self:
        if FULL in self.tiers:
            raise ValueError(f"'{FULL}' is the name of the whole sweep; give the tier another one")
        return self

    @classmethod
    def read(cls, name: str | Mapping[str, Any]) -> Self:
        """Read the sweep of a file, or the one of the package with this name, or one that is given as it is.

        Raises:
            UserError: there is none, or something in it is wrong.
        """
        if not isinstance(name, str):
            return cls.parse(named_cells(name), source="the sweep")
        known, source = sweep_names(), f"sweep {name}"
        if name in known:
            data = parse_yaml(sweep_text(name), source)
        elif os.path.lexists(name):
            data = read_yaml(Path(name), source)
        else:
            known += _sweep_files(Path(name).parent)
            raise UserError(f"no sweep '{brief(name)}', and no file of that name{did_you_mean(name, known)}")
        if not isinstance(data, dict):
            raise UserError(f"{source}: it must be a table with 'cells' and 'seeds'")
        outside = [name for name in data if str(name).rstrip("s") in ("method", "dataset")]
        if outside and "cells" not in data:
            cell = "cells: [{method: [erm, vrex], dataset: spirals}]"
            raise UserError(f"{source}: '{outside[0]}' belongs into a cell, as in `{cell}`")
        return cls.parse(data, source=source)

    def runs(self, tier: str = FULL, results: Results = lambda run_id: None) -> list[RunConfig]:
        """List every run once, checked, seed by seed, so that an interrupted sweep has complete comparisons first.

        Args:
            tier: size of the sweep.
            results: of earlier runs, which decide the trials of a search that is guided by results.
        """
        chosen = self._tier(tier)
        seeds = parse_seeds(self.seeds if chosen.seeds is None else chosen.seeds)
        size = len(seeds) * sum(cells.size(self.set, chosen) for cells in self.cells)
        if size > MOST_RUNS:
            number = f"{size:,}" if size < 10**18 else "more than 10^18"
            raise UserError(f"the sweep has {number} runs, and can have {MOST_RUNS:,}; make several sweeps of it")

        def judge_of(setup: Setup, tier: Tier, metric: str) -> Judge:
            def judge(trial: dict[str, Any]) -> float | None:
                configs = [setup.also(trial).also(tier.set).config(seed) for seed in seeds]
                return _judged([results(config.spec.run_id) for config in self._kept(configs)], metric)

            return judge

        each = [setup for cells in self.cells for setup in cells.cells(self.set, chosen, judge_of)]
        runs = {run.spec.run_id: run for seed in seeds for run in (setup.config(seed) for setup in each)}
        self._check_rules(runs.values())
        kept = self._kept(runs.values())
        if not kept:
            raise UserError("include and exclude leave no run of the sweep; --dry-run without them shows all")
        return kept

    def _check_rules(self, runs: Iterable[RunConfig]) -> None:
        """Raise UserError for a rule with a name that no run has, or with an unknown method or dataset."""
        named = {name for rule in (*self.include, *self.exclude) for name in rule}
        known = {name for run in runs for name in _facts(run)} if named else set()
        for name in sorted(named - known):
            raise UserError(f"a rule names '{name}', which no run of the sweep has{did_you_mean(name, known)}")
        for kind, registry in (("method", METHODS), ("dataset", DATASETS)):
            known = {*registry.entries(), *(str(_facts(run)[kind]) for run in runs)} if kind in named else set()
            for rule in (*self.include, *self.exclude):
                for value in map(str, _values(rule.get(kind, ()))):
                    if value not in known:
                        hint = did_you_mean(value, known, registry.aliases)
                        raise UserError(f"a rule names the {kind} '{brief(value)}'{hint}")

    def _kept(self, runs: Iterable[RunConfig]) -> list[RunConfig]:
        """Select the runs that the rules keep."""
        return [
            run for run in runs if (not self.include or _meets(run, self.include)) and not _meets(run, self.exclude)
        ]

    def _tier(self, name: str) -> Tier:
        if name != FULL and name not in self.tiers:
            raise UserError(f"no tier '{name}'{did_you_mean(name, [FULL, *self.tiers])}")
        return self.tiers.get(name, Tier())


def _sweep_files(folder: Path) -> list[str]:
    """List the files of a folder that may be sweeps; none where it cannot be read."""
    with suppress(OSError, ValueError):
        return [
            str(path) for path in itertools.islice(folder.iterdir(), MOST_FILES) if path.suffix in (".yaml", ".yml")
        ]
    return []


def _judged(results: Sequence[Mapping[str, float] | None], metric: str) -> float | None:
    """Average a metric over runs; None while some are not over, NaN where one failed.

    Raises:
        UserError: a finished run has no such metric.
    """
    known = [metrics for metrics in results if metrics is not None]
    for metrics in known:
        if metrics and metric not in metrics:
            raise UserError(f"optuna's metric '{metric}' is none of the runs'{did_you_mean(metric, metrics)}")
    if len(known) < len(results):
        return None
    values = [metrics.get(metric, math.nan) for metrics in known]
    return sum(values) / len(values) if values else math.nan


def _facts(run: RunConfig) -> dict[str, Any]:
    """Return the names and values that a rule can name."""
    return {"method": run.spec.method, "dataset": run.spec.dataset, "seed": run.spec.seed} | run.spec.flat()


def _meets(run: RunConfig, rules: Sequence[dict[str, Any]]) -> bool:
    """Tell whether a run meets one of the rules."""
    if not rules:
        return False
    facts = _facts(run)
    return any(all(facts.get(name, ...) in _values(value) for name, value in rule.items()) for rule in rules)


def _names(value: Names) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _values(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _of_dataset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the dataset among those by dotted name."""
    return {name.removeprefix("dataset."): value for name, value in settings.items() if name.startswith("dataset.")}


def possible_methods(dataset: str, settings: Mapping[str, Any]) -> list[str]:
    """List every method that the dataset provides for, with these settings of it, as it can be run alone."""
    provided = DATASETS.traits(dataset)
    if DATASETS.literal(dataset, "required_setting", ""):  # only the user's files tell
        provided = DATASETS.load(dataset).parse(_of_dataset(settings), "dataset").capabilities()
    methods = [with_penalty(name) for name in METHODS.entries() if not unmet(METHODS.traits(name), provided)]
    given = {name: value for name, value in settings.items() if name.startswith("dataset.")}
    return [name for name in methods if not given or _provided_for(name, dataset, given)]


def _provided_for(method: str, dataset: str, settings: Mapping[str, Any]) -> bool:
    try:
        resolve(method, dataset, assignments=settings)
    except NotProvided:
        return False
    return True
