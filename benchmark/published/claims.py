"""Numbers that others have published.

A file in `configs/published/` is one source:

source: Arjovsky et al., arXiv 1907.02893
claims:
  irm_colored_mnist:                   its name, for `bench reproduce`
    what: IRM on coloured MNIST        in a reader's words
    method: irmv1
    dataset: colored_mnist
    set: {}                            settings by dotted name, where they are not the recipe's
    grid: {}                           several values of a setting, of which `select` chooses
    select: last
    seeds: 0-9                         all must be done before there is a verdict
    verified: true                     false: recalled by somebody; it is shown and never judged
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
from invbench.strict_yaml import parse_yaml


class Number(Settings):
    """One published number: a value with what is near enough to it, or a range."""

    metric: str = setting(..., "of ours, such as test_accuracy")
    statistic: Literal["mean", "median"] = setting("mean", "over the seeds")
    value: float | None = setting(None, "as published")
    spread: float | None = setting(None, "its standard deviation, as published", ge=0)
    tolerance: float | None = setting(None, "largest distance of ours that counts as reproduced", ge=0)
    range: tuple[float, float] | None = setting(None, "as published, where there is no single value")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.value is None) == (self.range is None):
            raise ValueError("give either a value or a range")
        if (self.value is None) != (self.tolerance is None):
            raise ValueError("a value needs a tolerance, and a range none")
        return self

    @property
    def shown(self) -> str:
        """As a reader wants it."""
        if self.range is not None:
            return f"{self.range[0]:.4g} to {self.range[1]:.4g}"
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{self.value:.4g}{spread}"

    def agrees(self, ours: float) -> bool:
        """Whether a number of ours is near enough."""
        if self.range is not None:
            return self.range[0] <= ours <= self.range[1]
        return self.value is not None and self.tolerance is not None and abs(ours - self.value) <= self.tolerance


class Claim(Settings):
    """Numbers from the same runs."""

    what: str = setting(..., "the claim in a reader's words")
    method: str = setting(..., "a method, or several joined by +")
    dataset: str = setting(..., "a dataset")
    set: dict[str, Any] = setting({}, "settings by dotted name")
    grid: dict[str, tuple[Any, ...]] = setting({}, "values of settings, of which `select` chooses")
    select: Literal["last", "best_validation", "leave_one_env_out", "oracle"] = setting("last", "how")
    seeds: str | int = setting(0, "such as 0-9")
    verified: bool = setting(True, "whether the number was read in its source")
    note: str = setting("", "what else differs")
    numbers: tuple[Number, ...] = setting(..., "what was published", min_length=1)

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        if self.grid and self.select == "last":
            raise ValueError("a grid needs a select other than last")
        return self


class Source(Settings):
    """A validated file."""

    source: str = setting(..., "whose numbers these are, and where they stand")
    claims: dict[str, Claim] = setting(..., "by name", min_length=1)


@cache
def sources() -> dict[str, Source]:
    """Every file of the package, by its name."""
    folder = files("invbench.configs") / "published"
    texts = {path.name.removesuffix(".yaml"): path.read_text("utf-8") for path in folder.iterdir()}
    return {name: Source.parse(parse_yaml(texts[name], name), f"published/{name}.yaml") for name in sorted(texts)}


def claims_of(name: str) -> dict[str, Claim]:
    """A claim, or all those of a source, by their names. Raises UserError where there is neither."""
    every = {claim: own for source in sources().values() for claim, own in source.claims.items()}
    found = sources()[name].claims if name in sources() else {name: every[name]} if name in every else {}
    if not found:
        raise UserError(f"no published claim or source '{name}'{did_you_mean(name, [*every, *sources()])}")
    return found
