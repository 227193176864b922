"""Choices with names, as commands and functions take them. Nothing heavy is imported: `bench --help` lists them."""

from enum import StrEnum
from typing import Self

from invbench.errors import UserError, brief, did_you_mean


class Choice(StrEnum):
    """Names to choose from. Functions take a member or its text."""

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the member with this value, or the member itself.

        Raises:
            UserError: there is none.
        """
        if text not in list(cls):
            raise UserError(f"no {NOUNS[cls.__name__]} '{brief(text)}'{did_you_mean(text, list(cls))}")
        return cls(text)


class Select(Choice):
    """Rule by which the step of each run, and a method's settings where several were run, are chosen."""

    last = "last"
    """Not at all: all settings are shown, at their last step."""
    best_validation = "best_validation"
    """The step, and then the settings, with the best score on the validation set."""
    leave_one_env_out = "leave_one_env_out"
    """The last step; the settings with the best mean score on environments that were left out of training, each in
    turn. What is shown was trained on all."""
    oracle = "oracle"
    """The last step; the settings with the best mean of the metric itself, or, where data have a split `test_out` for
    this, of the metric there. No honest experiment knows either."""


class Rerun(Choice):
    """Choice of the runs of a sweep that are carried out."""

    missing = "missing"
    failed = "failed"
    stale = "stale"
    all = "all"


class AverageRule(Choice):
    """Rule by which runs join the mean of their weights."""

    uniform = "uniform"
    """Average all runs."""
    restricted = "restricted"
    """Average the best run in validation, and in the order of their scores each that does not make the mean worse."""


class EngineName(Choice):
    """Name of an engine that carries out a sweep; see `invbench.sweeps.engines.ENGINES`."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


class Format(Choice):
    """Formats in which `bench table` and `bench compare` write."""

    text = "text"
    csv = "csv"
    markdown = "markdown"
    latex = "latex"
    html = "html"


NOUNS = {"Select": "selection", "Rerun": "--rerun", "AverageRule": "rule", "EngineName": "engine", "Format": "format"}
"""What an error calls a choice."""
