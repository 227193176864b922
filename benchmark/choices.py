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
    worst_group = "worst_group"
    """The step, and then the settings, with the best accuracy on the worst group of the validation set."""
    group_average = "group_average"
    """The same by the mean over the groups."""
    worst_class = "worst_class"
    """The same by the worst class, for which no attribute need be known."""
    balanced = "balanced"
    """The same by the mean over the classes."""
    leave_one_env_out = "leave_one_env_out"
    """The last step; the settings with the best mean score on environments that were left out of training, each in
    turn. What is shown was trained on all."""
    oracle = "oracle"
    """The last step; the settings with the best mean of the metric itself, or, where data have a split `test_out` for
    this, of the metric there. No honest experiment knows either."""


CRITERIA = {
    Select.worst_group: "accuracy_group_worst",
    Select.group_average: "accuracy_group_average",
    Select.worst_class: "accuracy_class_worst",
    Select.balanced: "accuracy_class_average",
}
"""Metrics of the validation set, other than the primary one, by which steps and settings are chosen."""


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
