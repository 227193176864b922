"""Metrics: which way is better, in which unit, whether a reader sees them first, what a paper calls them.

A column of a table of runs names its metric: `test_accuracy_env3` is the accuracy on the split `test` in environment 3.
`parse_column` takes such names apart. What the record says of a task's primary metric comes before what stands here.
"""

import re
import warnings
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Literal, NamedTuple

from invbench.choices import CRITERIA
from invbench.core.third_party import load_guarded
from invbench.errors import UserError, brief

GROUP = "invbench.metrics"
"""Entry points of third parties; each is a `Metric`."""
SHARE = "share"
"""The unit of what is between 0 and 1 and may be given in per cent."""
P_VALUE = "p-value"
"""The unit of p-values: those of several runs are combined to twice their median, not averaged."""
SEEN = ("train", "validation")
"""Splits that training or the choice of settings looks at."""
NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*([._]\*)?")
SOURCES = "|".join(f"best_{rule}" for rule in ("validation", *CRITERIA))
ENDS = r"(env|group|class)\d+|(group_|class_)?(average|worst)|group_weighted"
COLUMN = re.compile(
    rf"(?P<source>({SOURCES})\.|data\.constant\.)?((?P<split>train|validation|test_out|test|held_out)_)?"
    rf"(?P<metric>.*?)(_(?P<nuisance>\d+))?(_(?P<bin>bin\d+))?(_(?P<environment>{ENDS}))?",
    re.DOTALL,
)
OTHER_SPLIT = re.compile(r"[a-z][a-z0-9_]*")

Headline = Literal["always", "in test", "never"]
"""Whether a metric is worth a reader's first look; "in test": on no split that is `SEEN`."""


@dataclass(frozen=True)
class Metric:
    """Metric: its name, direction, unit, and how tables and figures show it.

    Args:
        name: as columns have it between the split and the environment, e.g. `mutual_information`. One that ends in `*`
            stands for all names that begin so and have no entry of their own, e.g. `cost.*`.
        higher_is_better: None where neither direction is better; then no best is marked.
        unit: share, nats, seconds, bytes, or another word; empty for the task's units.
        headline: whether a run shows it in its progress and in its result.
        display_name: in tables and figures, where `*` stands for the rest of the name; empty for the name in words.
    """

    name: str
    higher_is_better: bool | None
    unit: str = ""
    headline: Headline = "always"
    display_name: str = ""

    @property
    def words(self) -> str:
        """Name of the metric in a paper."""
        return self.display_name or _words(self.name)


class Column(NamedTuple):
    """A column's name, taken apart; a part that it does not have is empty."""

    source: str
    """`best_validation.` and the like, or `data.constant.`: the part of the record that it is in."""
    split: str
    metric: str
    nuisance: str
    """The index of the nuisance, where there are several."""
    bin: str
    """`bin<i>`, a range of the nuisance."""
    environment: str
    """`env<e>`, `group<g>` or `class<k>`, or what sums them up: `average` or `worst`, `group_average` and so on."""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, SHARE),
        Metric("mean_absolute_error", False),
        Metric("mean_squared_error", False),
        Metric("loss", False, headline="never"),
        Metric("critic_loss", False, headline="never"),
        Metric("critic_loss_*", False),
        Metric("mutual_information", False, "nats", "in test"),
        Metric("representation_mutual_information", False, "nats", "never"),
        Metric("distance_correlation", False, headline="never"),
        Metric("representation_distance_correlation", False, headline="never"),
        Metric("energy_distance", False, headline="never"),
        Metric("jensen_shannon", False, "nats", "never"),
        Metric("roc_auc", True, SHARE, "in test", "ROC AUC"),
        Metric("background_rejection", True, headline="never"),
        Metric("brier_score", False, headline="never", display_name="Brier score"),
        Metric("calibration_error", False, SHARE, "never"),
        Metric("risk_gap", False, headline="never"),
        Metric("invariance_p", None, P_VALUE, "in test", "p of invariance"),
        Metric("mean_invariance_p", None, P_VALUE, "never", "p of the mean's invariance"),
        Metric("symmetry_error", False),
        Metric("symmetry_angle", False),
        Metric("coefficient_error_causal", False),
        Metric("coefficient_error_noncausal", False),
        Metric("invariant_solution", True, SHARE),
        Metric("null_solution", False, SHARE),
        Metric("coefficient.*", None, headline="never"),
        Metric("estimate.*", None, headline="never"),
        Metric("estimate.accepted_sets", None, display_name="accepted sets"),
        Metric("estimate.p_value.*", None, P_VALUE, "never"),
        Metric("invariance.*", False, headline="never"),
        Metric("cost.*", False, "seconds", "never", "*"),
        Metric("cost.peak_memory_bytes", False, "bytes", "never", "peak memory (bytes)"),
    )
}
"""Every metric that is known, by name. Entries of third parties come when the first name is looked up."""


def register_metric(metric: Metric) -> Metric:
    """Make a metric known, so that tables rank it and figures name it.

    Returns:
        The same metric, so that `MINE = register_metric(Metric(...))` can be an entry point, too.

    Raises:
        UserError: no column can name it, or another metric has the name.
    """
    parts = _parts(metric.name)
    if not NAME.fullmatch(metric.name) or parts.split or parts.bin or parts.environment:
        raise UserError(
            f"metric name '{brief(metric.name)}' must be lower-case letters, digits and underscores, without a split "
            "in front and without a bin or an environment at its end"
        )
    if METRICS.setdefault(metric.name, metric) != metric:
        raise UserError(f"two metrics are named '{metric.name}'; rename one")
    return metric


def parse_column(column: str, primary: str = "") -> Column:
    """Take the name of a column apart, e.g. `best_validation.test_accuracy_0_bin3`.

    Only what follows the name of a known metric is a nuisance's index. A split that is none of the suite's is told by
    the metric behind it: `shifted_accuracy`.

    Args:
        primary: the task's metric, as its record says, which counts as known.
    """
    parts = _parts(column)
    known = {primary, *_metrics()} - {""}
    if parts.nuisance and (parts.metric not in known or f"{parts.metric}_{parts.nuisance}" in known):
        parts = parts._replace(metric=f"{parts.metric}_{parts.nuisance}", nuisance="")
    if parts.split or parts.metric in known:
        return parts
    ends = [name for name in known if parts.metric.endswith(f"_{name}")]
    split = parts.metric.removesuffix(f"_{max(ends, key=len)}") if ends else ""
    if OTHER_SPLIT.fullmatch(split):
        parts = parts._replace(split=split, metric=parts.metric.removeprefix(f"{split}_"))
    return parts


def _parts(column: str) -> Column:
    """Return the parts of a column's name that are recognised by fixed words."""
    return Column(**COLUMN.fullmatch(column).groupdict(""))  # type: ignore[union-attr]  # any text is a name at least


def find_metric(name: str) -> Metric | None:
    """Return the entry of a metric by the name that `parse_column` gives; None where there is none."""
    metrics = _metrics()
    if name in metrics:
        return metrics[name]
    families = [key for key in metrics if key.endswith("*") and name.startswith(key[:-1])]
    if not families:
        return None
    family = metrics[max(families, key=len)]
    rest = name.removeprefix(family.name[:-1])
    return replace(family, name=name, display_name=family.display_name.replace("*", _words(rest)))


def metric_of(name: str) -> Metric:
    """Return the entry of a metric; an unknown one has no direction and is a headline if it has no section."""
    return find_metric(name) or Metric(name, None, headline="never" if "." in name else "always")


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def _metrics() -> dict[str, Metric]:
    _load_third_party()
    return METRICS


@cache
def _load_third_party() -> None:
    """Register what installed packages add; one that does not load is warned of and left out."""
    for point in entry_points(group=GROUP):
        what = f"metric '{brief(point.name)}' from the package {point.dist.name if point.dist else '?'}"
        try:
            metric = load_guarded(point.load, what)
            if not isinstance(metric, Metric):
                raise UserError(f"{what} must be an invbench.core.metric.Metric")
            register_metric(metric)
        except UserError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
