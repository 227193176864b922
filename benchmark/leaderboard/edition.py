"""Editions of the leaderboard as files: the problems, how settings are searched and selected, with which seeds.

A file `configs/leaderboard/<name>.yaml` is one edition. Rows of two versions are never mixed.

version: "2026.1"
trials: 10                               random settings of each method, beside those of the recipe
seeds: 0-2                               of every trial
fresh_seeds: 100-104                     with which selected settings are run again; only these are shown
ranges:                                  searched for every method, in the place of the settings' own ranges
  trainer.learning_rate: {low: 1e-4, high: 1e-1}
ranges_of:                               of single methods, in the place of their settings' own
  steerable: {method.architecture: [small]}
step_shares: {anneal_steps: 0.1}         such settings of recipes are at most these shares of the run, which is shorter
                                         here than the recipe's: a method would do nothing for most of it, or for all
problems:
  spirals:
    what: two spirals, of which 16 signatures tell the class in 16 environments, another way in each
    dataset: spirals
    set: {trainer.steps: 300}            its small form; wins over recipes and is the same for all methods
    ranges: {trainer.batch_size: [32, 128]}
    left_out: 4                          environments that are left out in turn, for the rule that selects by that
    family: spirals                      problems of a family are much alike, so they count as one in mean ranks
    minus_half: distance_correlation     half of this metric is taken off what the task is judged by, at the last step:
                                         dependence on a nuisance (the mean of several), which a method that ignores it
                                         would have for nothing. Half: so a constant prediction, right half the time,
                                         is as good as one that is always right and tells the whole nuisance
    set_of:                              of single methods, which could not be run otherwise; these are not searched
      mmd: {trainer.batch_size: 128}
    impossible: {icp: it needs a linear problem}
"""

from functools import cache
from importlib.resources import files
from typing import Any, Self

from pydantic import PrivateAttr, model_validator

from invbench.core.registry import METHODS
from invbench.core.settings import Settings, setting
from invbench.errors import UserError, did_you_mean
from invbench.runs.commands import parse_seeds
from invbench.runs.resolve import resolve
from invbench.runs.spec import RunSpec
from invbench.strict_yaml import parse_yaml
from invbench.sweeps.definition import ALL, Sweep, SweepCells, possible_methods
from invbench.sweeps.search import Bounds, RandomSearch

Ranges = dict[str, tuple[Any, ...] | Bounds]
HELD_OUT = "trainer.held_out_environment"
BASELINE = "erm"
"""Method that all others are compared with."""


class LeaderboardProblem(Settings):
    """Problem of an edition: a dataset in a fixed form."""

    what: str = setting(..., "the problem in a reader's words")
    dataset: str = setting(..., "a dataset")
    set: dict[str, Any] = setting({}, "settings by dotted name, the same for all methods")
    ranges: Ranges = setting({}, "ranges that are searched here, in the place of the edition's")
    left_out: int = setting(0, "training environments that are left out in turn; 0: nothing is selected by that", ge=0)
    shift: tuple[float, float] | None = setting(
        None,
        "diversity and correlation shift of the test, as `bench data shift` measures it; null without environments",
    )
    family: str | None = setting(None, "kind of problem, which counts once in mean ranks; null: its name")
    minus_half: str | None = setting(None, "metric half of which is taken off the task's own, at the last step")
    set_of: dict[str, dict[str, Any]] = setting({}, "settings of single methods, for which it would be too slow")
    impossible: dict[str, str] = setting({}, "methods that cannot be run here, and why")


class Edition(Settings):
    """Edition of the leaderboard: problems, ranges of the search, seeds."""

    version: str = setting(..., "rows of two versions are never mixed")
    trials: int = setting(..., "random settings of each method", ge=1)
    seeds: str = setting(..., "of every trial")
    fresh_seeds: str = setting(..., "of the selected settings")
    ranges: Ranges = setting({}, "ranges that are searched for every method")
    ranges_of: dict[str, Ranges] = setting({}, "ranges of single methods, in the place of their settings' own")
    step_shares: dict[str, float] = setting({}, "largest shares of the run that such settings of methods may take")
    without: tuple[str, ...] = setting((), "methods that came later, whose rows are not there yet")
    problems: dict[str, LeaderboardProblem] = setting(..., "by name", min_length=1)

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name, problem in self.problems.items():
            for method in (*problem.set_of, *problem.impossible, *self.without):
                if method.partition("+")[0] not in METHODS.entries():
                    raise ValueError(f"{name}: there is no method '{method}'{did_you_mean(method, METHODS.entries())}")
        return self

    _trials: dict[tuple[str, str], set[str]] = PrivateAttr(default_factory=dict)

    def problem(self, name: str) -> LeaderboardProblem:
        """Return a problem. Raises UserError with the nearest name where there is none."""
        if name not in self.problems:
            raise UserError(f"the edition has no problem '{name}'{did_you_mean(name, self.problems)}")
        return self.problems[name]

    def admitted(self, name: str) -> list[str]:
        """List the methods that a problem admits, but for those that are impossible there."""
        problem = self.problem(name)
        return [one for one in possible_methods(problem.dataset, problem.set) if one not in problem.impossible]

    def methods_on(self, name: str) -> list[str]:
        """List the methods that a problem admits, but for those that came later."""
        return [one for one in self.admitted(name) if one not in self.without]

    def search(self, name: str, method: str = ALL) -> Sweep:
        """Return the sweep of all trials of a problem: the recipe's settings, and random ones.

        Args:
            method: one, or `*` for all that the problem admits.
        """
        return self._sweep(name, method, self.seeds, {})

    def left_out_search(self, name: str, method: str = ALL) -> Sweep | None:
        """Return the sweep of the same trials with each environment left out, by the first seed; None where none is."""
        count = self.problem(name).left_out
        return self._sweep(name, method, parse_seeds(self.seeds)[0], {HELD_OUT: tuple(range(count))}) if count else None

    def is_trial(self, name: str, spec: RunSpec) -> bool:
        """Tell whether a run has the settings of a trial of its method on a problem, whatever its seed and protocol."""
        key = (name, spec.method)
        if key not in self._trials:
            sweeps = filter(None, (self.search(name, spec.method), self.left_out_search(name, spec.method)))
            self._trials[key] = {_identity_of_settings(run.spec) for sweep in sweeps for run in sweep.runs()}
        return _identity_of_settings(spec) in self._trials[key]

    def _sweep(self, name: str, method: str, seeds: str | int, grid: dict[str, tuple[Any, ...]]) -> Sweep:
        problem = self.problem(name)
        methods = self.methods_on(name) if method == ALL else [method]

        def searched(method: str) -> Ranges:
            fixed = problem.set_of.get(method, {})
            ranges = self.ranges | problem.ranges | self.ranges_of.get(method, {})
            return ranges | {name: (fixed[name],) for name in fixed if name in ranges or name.startswith("method.")}

        cells = tuple(
            SweepCells(
                method=one, dataset=problem.dataset, set=self.settings_of(one, problem), grid=grid, random=random
            )
            for one in methods
            for random in (None, RandomSearch(trials=self.trials, ranges=searched(one)))
        )
        return Sweep(seeds=seeds, cells=cells, fuse="auto")

    def settings_of(self, method: str, problem: LeaderboardProblem) -> dict[str, Any]:
        """Return a problem's settings for a method; one that brings its own network takes none of the backbone."""
        has_network = METHODS.literal(method.partition("+")[0], "replaces_model", False)
        settings = problem.set | problem.set_of.get(method, {})
        settings = {
            name: value for name, value in settings.items() if not (has_network and name.startswith("backbone."))
        }
        values = resolve(method, problem.dataset, assignments=settings).spec.flat()
        steps = values["trainer.steps"]
        shares = {name: self.step_shares.get(name.rpartition(".")[2]) for name in values if name.startswith("method.")}
        most = {name: round(share * steps) for name, share in shares.items() if share and steps}
        return settings | {name: most[name] for name in most if values[name] > most[name]}


def _identity_of_settings(spec: RunSpec) -> str:
    """Return an identity of a run's settings, without its seed and protocol."""
    return spec.model_copy(update={"seed": 0, "protocol": "last"}).run_id


def edition_names() -> list[str]:
    """List the editions that come with the package."""
    folder = files("invbench.configs") / "leaderboard"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


@cache
def read_edition(name: str) -> Edition:
    """Read an edition of the package. Raises UserError where there is none of the name."""
    if name not in (names := edition_names()):
        raise UserError(f"there is no edition '{name}' of the leaderboard{did_you_mean(name, names)}")
    text = (files("invbench.configs") / "leaderboard" / f"{name}.yaml").read_text(encoding="utf-8")
    return Edition.parse(parse_yaml(text, f"edition {name}.yaml"), source=f"edition {name}")
