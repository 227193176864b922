"""Random search: values for settings, each drawn from its own documented range."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel

from invbench.errors import UserError, did_you_mean
from invbench.settings import Choice, LogUniform, SearchRange, Settings, search_info, setting
from invbench.spec import Cell

SEARCHED = ("method.", "trainer.")
"""Sections that are searched where nothing else is said; datasets and networks are part of the question."""


class RandomSearch(Settings):
    """A number of trials over some settings."""

    trials: int = setting(..., "how many settings are drawn", ge=1)
    settings: tuple[str, ...] = setting((), "dotted names; by default all of method and trainer that have a range")


def drawn_settings(cell: Cell, search: RandomSearch) -> Iterator[dict[str, Any]]:
    """The settings of each trial.

    A value depends on the setting's name and the trial's number only: another setting, or another trial, moves none of
    the others, and all methods share a trial's learning rate.

    Raises:
        UserError: a setting that does not exist or has no range.
    """
    ranges = search_ranges(cell)
    names = search.settings or tuple(name for name in ranges if name.startswith(SEARCHED))
    for name in names:
        if name not in ranges:
            raise UserError(f"random search over '{name}', which has no search range{did_you_mean(name, ranges)}")
    for trial in range(search.trials):
        yield {name: _draw(*ranges[name], name, trial) for name in names}


def search_ranges(cell: Cell) -> dict[str, tuple[SearchRange, bool]]:
    """Dotted name -> its range, and whether its values are whole numbers."""
    parts: dict[str, BaseModel] = {"trainer": cell.trainer, "dataset": cell.dataset}
    if cell.backbone is not None:
        parts["backbone"] = cell.backbone
    own = cell.method.parts
    parts |= {"method" if len(own) == 1 else f"method.{name}": part for name, part in own.items()}
    return {
        f"{section}.{name}": (info.search, field.annotation is int)
        for section, part in parts.items()
        for name, field in type(part).model_fields.items()
        if (info := search_info(field)).search is not None
    }


def _draw(search: SearchRange, whole: bool, name: str, trial: int) -> Any:
    digest = hashlib.sha256(f"{name}\n{trial}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    if isinstance(search, Choice):
        return search.values[int(rng.integers(len(search.values)))]
    low, high = search.low, search.high
    if isinstance(search, LogUniform):
        value = 10 ** rng.uniform(math.log10(low), math.log10(high))
    else:
        value = rng.uniform(low, high)
    return round(value) if whole else float(value)
