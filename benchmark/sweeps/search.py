"""Search over settings: values from each setting's documented range, at random or guided by earlier results."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, field_validator, model_validator

from invbench.core.settings import (
    LARGEST,
    LEAST,
    Choice,
    Depending,
    DrawnRange,
    LogUniform,
    SearchRange,
    Settings,
    ShareOfSteps,
    search_info,
    setting,
)
from invbench.errors import UserError, did_you_mean
from invbench.runs.resolve import RunConfig

MOST_RUNS = 100_000
"""Maximum number of runs of a sweep: checking so many takes minutes and some GB, and each gets a folder."""
HALF_A_DECADE = 10**0.5
DIGITS = 4
"""Number of significant digits of a drawn number, as many as a dry run shows."""
SEARCHED = ("method.", "trainer.")
"""Sections that are searched by default; datasets and networks are part of the question."""
Ranges = Mapping[str, tuple[DrawnRange, bool]]
"""Range of each setting by dotted name, and whether its values are whole numbers."""
Judge = Callable[[dict[str, Any]], float | None]
"""Function from a trial's settings to its score: NaN where it failed, None while that is not known."""


class Bounds(Settings):
    """Range of a search that a sweep gives: a number between two, drawn by its logarithm."""

    low: float = setting(..., "least value", gt=0)
    high: float = setting(..., "largest value", gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, above high, {self.high:g}")
        return self


class RandomSearch(Settings):
    """Random search: a number of trials over some settings."""

    trials: int = setting(..., "how many settings are tried", ge=1, le=MOST_RUNS)
    settings: tuple[str, ...] = setting((), "dotted names; by default all of method and trainer that have a range")
    ranges: dict[str, tuple[Any, ...] | Bounds] = setting(
        {}, "ranges in the place of settings' own, or of settings without one: a list of values, or {low: , high: }"
    )


class OptunaSearch(RandomSearch):
    """Trials that Optuna suggests (TPE, Bergstra et al. 2011): the more results it has, the better they are."""

    metric: str = setting(..., "what is searched for, the mean over seeds of a metric of the validation set")
    direction: Literal["maximize", "minimize"] = setting(..., "which values of the metric are good")
    at_once: int = setting(4, "trials that do not wait for each other's results", ge=1, le=1000)

    @field_validator("metric")
    @classmethod
    def _not_of_the_test_set(cls, metric: str) -> str:
        if metric.startswith("test_"):
            raise ValueError(f"'{metric}' would choose by the test set; name one such as validation_accuracy")
        return metric


def random_trials(config: RunConfig, search: RandomSearch) -> Iterator[dict[str, Any]]:
    """Yield the settings of each trial.

    A draw depends on the setting's name and the trial's number only: another setting, or another trial, moves none of
    the others, and methods with one range share a trial's value.

    Raises:
        UserError: a setting that does not exist or has no range.
    """
    ranges = _searched(config, search)
    for trial in range(search.trials):
        yield {name: _draw(*ranges[name], name, trial) for name in ranges}


def optuna_trials(config: RunConfig, search: OptunaSearch, judge: Judge) -> Iterator[dict[str, Any]]:
    """Yield the settings of each trial that can be suggested by now, those with results first.

    There is no database: the search is told all earlier results again, in the order of the trials, and with the same
    results it makes the same suggestions. So it continues wherever it was left, and results may come in any order.

    Raises:
        UserError: a setting that does not exist or has no range; Optuna is not installed.
    """
    optuna = _optuna()
    ranges = _searched(config, search)
    spaces = {name: _space(optuna.distributions, *search_range) for name, search_range in ranges.items()}
    sampler = optuna.samplers.TPESampler(seed=0, constant_liar=search.at_once > 1)
    study = optuna.create_study(direction=search.direction, sampler=sampler)
    for first in range(0, search.trials, search.at_once):
        trials = [study.ask(spaces) for _ in range(first, min(first + search.at_once, search.trials))]
        settings = [{name: _short(value, *ranges[name]) for name, value in trial.params.items()} for trial in trials]
        yield from settings
        values = [value for trial_settings in settings if (value := judge(trial_settings)) is not None]
        if len(values) < len(trials):
            return
        for trial, value in zip(trials, values, strict=True):
            if math.isnan(value):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, value)


def _searched(config: RunConfig, search: RandomSearch) -> Ranges:
    """Return the ranges of the settings of a search."""
    ranges = dict(search_ranges(config))
    whole = {name: isinstance(value, int) for name, value in config.spec.flat().items()}
    for name, given in search.ranges.items():
        if name not in whole:
            raise UserError(f"search over '{name}', which is no setting{did_you_mean(name, whole)}")
        drawn = LogUniform(given.low, given.high) if isinstance(given, Bounds) else Choice(given)
        ranges[name] = (drawn, whole[name])
    names = search.settings or tuple(name for name in ranges if name.startswith(SEARCHED) or name in search.ranges)
    for name in names:
        if name not in ranges:
            raise UserError(f"search over '{name}', which has no search range{did_you_mean(name, ranges)}")
    return {name: (_drawn(ranges[name][0], name, config), ranges[name][1]) for name in names}


def search_ranges(config: RunConfig) -> Mapping[str, tuple[SearchRange, bool]]:
    """Return the ranges of all settings that have one, and whether their values are whole numbers."""
    parts: dict[str, BaseModel] = {"trainer": config.trainer, "dataset": config.dataset}
    if config.backbone is not None:
        parts["backbone"] = config.backbone
    methods = config.method.parts
    parts |= {"method" if len(methods) == 1 else f"method.{name}": part for name, part in methods.items()}
    return {
        f"{section}.{name}": (info.search, field.annotation is int)
        for section, part in parts.items()
        for name, field in type(part).model_fields.items()
        if (info := search_info(field)).search is not None
    }


def _drawn(search: SearchRange, name: str, config: RunConfig) -> DrawnRange:
    """Return the range for this run. One that depends on a setting is widened to hold the run's value well inside."""
    if isinstance(search, ShareOfSteps):
        return search.of(_steps(config))
    if not isinstance(search, Depending):
        return search
    values = config.spec.flat()
    value, known = values[name], search.ranges[values[f"{name.rpartition('.')[0]}.{search.setting}"]]
    low, high = min(known.low, value / HALF_A_DECADE), max(known.high, value * HALF_A_DECADE)
    return LogUniform(max(low, LEAST), min(high, LARGEST))


def _steps(config: RunConfig) -> int:
    """Return the number of steps of a run; where it is given in epochs, the data are loaded for that."""
    if config.trainer.steps is not None:
        return config.trainer.steps
    from invbench.training.build import load_problem
    from invbench.training.sampling import Sampler

    train = config.method.examples(load_problem(config), config.spec.seed)
    return config.trainer.total_steps(Sampler.of(train, config.trainer, config.spec.seed).steps_per_epoch)


def _draw(search: DrawnRange, whole: bool, name: str, trial: int) -> Any:
    digest = hashlib.sha256(f"{name}\n{trial}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    if isinstance(search, Choice):
        return search.values[int(rng.integers(len(search.values)))]
    low, high = search.low, search.high
    if isinstance(search, LogUniform):
        value = 10 ** rng.uniform(math.log10(low), math.log10(high))
    else:
        value = rng.uniform(low, high)
    if whole:
        return min(max(round(value), math.ceil(low)), math.floor(high))
    return _short(value, search, whole)


def _short(value: Any, search: DrawnRange, whole: bool) -> Any:
    """Round a drawn value to few digits, within its range."""
    if whole or isinstance(search, Choice):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), search.low), search.high)


def _space(distributions: Any, search: DrawnRange, whole: bool) -> Any:
    """Turn a range into Optuna's distribution."""
    if isinstance(search, Choice):
        return distributions.CategoricalDistribution(search.values)
    log = isinstance(search, LogUniform)
    if whole:
        return distributions.IntDistribution(math.ceil(search.low), math.floor(search.high), log=log)
    return distributions.FloatDistribution(search.low, search.high, log=log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("a sweep with an 'optuna' search needs the extra: pip install 'invbench[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
