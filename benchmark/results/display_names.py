"""Names of methods, datasets and metrics for papers; programs and the command line use registered names.

The class of a method or dataset gives its name: `display_name: ClassVar[str] = "Worst-case risk"`.
"""

import re

from invbench.core.metric import metric_of, parse_column
from invbench.core.registry import DATASETS, METHODS, Registry
from invbench.errors import UserError

ENDINGS = {
    "average": "average over environments",
    "worst": "worst environment",
    "group_average": "average over groups",
    "group_worst": "worst group",
    "group_weighted": "groups as in training",
    "class_average": "average over classes",
    "class_worst": "worst class",
}
"""Words for the ends of metrics that summarise environments, groups or classes."""


def display_method(name: str) -> str:
    """Return the name of a method for papers; the parts of a composition are joined by +."""
    return " + ".join(_displayed(METHODS, part) for part in name.split("+"))


def display_dataset(name: str) -> str:
    """Return the name of a dataset for papers."""
    return _displayed(DATASETS, name)


def display_metric(name: str) -> str:
    """Return the name of a metric in words, such as `test accuracy (worst environment)`."""
    column = parse_column(name)
    split = column.split.replace("test_out", "test-out").replace("_", " ")
    words = (split, metric_of(column.metric).words, column.nuisance, column.bin)
    text = column.source.replace("_", " ").replace(".", ": ") + " ".join(filter(None, words))
    environment = re.sub(r"(\d+)$", r" \1", column.environment.replace("env", "environment", 1))
    return f"{text} ({ENDINGS.get(environment, environment)})" if environment else text


def _displayed(registry: Registry, name: str) -> str:
    """Return the display name of a class; its registered name where it has none, or is not installed here."""
    try:
        return str(registry.literal(name, "display_name", "")) or name
    except UserError:
        return name
