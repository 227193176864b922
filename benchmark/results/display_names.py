"""What methods, datasets and metrics are called in a paper; programs and the command line know registered names.

A method's or dataset's class says its own: `display_name: ClassVar[str] = "Worst-case risk"`.
"""

from invbench.core.metric import metric_of, parse_column
from invbench.core.registry import DATASETS, METHODS, Registry
from invbench.errors import UserError

ENDINGS = {"average": "average over environments", "worst": "worst environment"}
"""Of metrics that sum environments up."""


def display_method(name: str) -> str:
    """What a method is called in a paper, or each part of a composition."""
    return " + ".join(_displayed(METHODS, part) for part in name.split("+"))


def display_dataset(name: str) -> str:
    """What a dataset is called in a paper."""
    return _displayed(DATASETS, name)


def display_metric(name: str) -> str:
    """A metric, such as `test accuracy (worst environment)`."""
    column = parse_column(name)
    split = column.split.replace("test_out", "test-out").replace("_", " ")
    words = (split, metric_of(column.metric).words, column.nuisance, column.bin)
    shown = column.source.replace("_", " ").replace(".", ": ") + " ".join(filter(None, words))
    environment = column.environment.replace("env", "environment ", 1)
    return f"{shown} ({ENDINGS.get(environment, environment)})" if environment else shown


def _displayed(registry: Registry, name: str) -> str:
    """What the class says; results may be of a method that is not installed here, which has no other name."""
    try:
        return str(registry.literal(name, "display_name", "")) or name
    except UserError:
        return name
