"""Published numbers, as files.

A file in `configs/published/` is one source:

source: Arjovsky et al., arXiv 1907.02893
claims:
  irm_colored_mnist:                   its name, for `bench reproduce`
    what: IRM on coloured MNIST        the claim in words
    method: irmv1
    dataset: colored_mnist
    set: {}                            settings by dotted name, where they are not the recipe's
    grid: {}                           several values of a setting, of which `select` chooses
    select: last
    seeds: 0-9                         all must be done before there is a verdict
    verified: true                     false: nobody read it in the source; it is shown and gets no verdict
    note: settings were searched on the test environment
    numbers:
      - {metric: test_accuracy, value: 0.669, spread: 0.0254, tolerance: 0.02}
      - {metric: train_accuracy, range: [0.70, 0.72], statistic: median}
"""

from functools import cache
from importlib.resources import files
from typing import Any, Literal, Self

from pydantic import model_validator

from invbench.core.settings import Settings, setting
from invbench.errors import UserError, did_you_mean
from invbench.runs.spec import Protocol
from invbench.strict_yaml import parse_yaml


class Number(Settings):
    """One published number: a value with a tolerance, or a range."""

    metric: str = setting(..., "of ours, such as test_accuracy")
    statistic: Literal["mean", "median"] = setting("mean", "over the seeds")
    value: float | None = setting(None, "as published")
    spread: float | None = setting(None, "its standard deviation, as published", ge=0)
    tolerance: float | None = setting(None, "largest distance of ours that counts as reproduced", ge=0)
    range: tuple[float, float] | None = setting(None, "as published, where there is no single value")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        """Check that there is either a value with a tolerance or a range."""
        if (self.value is None) == (self.range is None):
            raise ValueError("give either a value or a range")
        if (self.value is None) != (self.tolerance is None):
            raise ValueError("a value needs a tolerance, and a range none")
        return self

    @property
    def shown(self) -> str:
        """Return the number as text: the range, or the value ± standard deviation."""
        if self.range is not None:
            return f"{self.range[0]:.4g} to {self.range[1]:.4g}"
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{self.value:.4g}{spread}"

    @property
    def accepted(self) -> str:
        """Return the number as text, with what counts as reproduced."""
        return self.shown if self.tolerance is None else f"{self.shown}, reproduced within {self.tolerance:.3g}"

    def agrees(self, ours: float) -> bool:
        """Tell whether a number of ours is within the range, or within the tolerance of the value."""
        if self.range is not None:
            return self.range[0] <= ours <= self.range[1]
        return self.value is not None and self.tolerance is not None and abs(ours - self.value) <= self.tolerance


class Claim(Settings):
    """Published numbers from the same runs, and these runs."""

    what: str = setting(..., "the claim in a reader's words")
    method: str = setting(..., "a method, or several joined by +")
    dataset: str = setting(..., "a dataset")
    set: dict[str, Any] = setting({}, "settings by dotted name")
    grid: dict[str, tuple[Any, ...]] = setting({}, "values of settings, of which `select` chooses")
    select: Protocol = setting("last", "how")
    seeds: str | int = setting(0, "such as 0-9")
    verified: bool = setting(True, "whether the number was read in its source")
    note: str = setting("", "what else differs")
    numbers: tuple[Number, ...] = setting(..., "what was published", min_length=1)

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        """Check that a grid comes with a selection."""
        if self.grid and self.select == "last":
            raise ValueError("a grid needs a select other than last")
        return self


class Source(Settings):
    """A validated file of one source."""

    source: str = setting(..., "whose numbers these are, and where they stand")
    claims: dict[str, Claim] = setting(..., "by name", min_length=1)


@cache
def sources() -> dict[str, Source]:
    """Return the sources of all files in `configs/published/`, by name."""
    folder = files("invbench.configs") / "published"
    texts = {path.name.removesuffix(".yaml"): path.read_text("utf-8") for path in folder.iterdir()}
    return {name: Source.parse(parse_yaml(texts[name], name), f"published/{name}.yaml") for name in sorted(texts)}


def claims_of(name: str) -> dict[str, Claim]:
    """Return a claim, or all claims of a source, by name. Raises UserError where there is neither."""
    if name in sources():
        return sources()[name].claims
    claims = {key: claim for source in sources().values() for key, claim in source.claims.items()}
    if name not in claims:
        raise UserError(f"no published claim or source '{name}'{did_you_mean(name, [*claims, *sources()])}")
    return {name: claims[name]}
