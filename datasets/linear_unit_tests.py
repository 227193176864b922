"""Linear unit tests for invariance discovery: six small problems that each catch a different failure.

Aubin et al. (2021), arXiv 2102.10867. d_inv invariant and d_spu spurious inputs, E environments:

    example1  regression: x ~ σ_e N, y = x W_xy + σ_e N, z = y W_yz + N, target Σ_j y_j; σ_e = 0.1, 1.5, 2, 10^U(-2, 1)
              W_xy = N / d_inv (d_inv, d_inv), W_yz = N / d_spu (d_inv, d_spu)
    example2  classification, cows and camels: (p_e, s_e) = (.95, .3), (.97, .5), (.99, .7), then U(.9, 1), U(.3, .7)
    example3  classification, small invariant margin: spurious means μ_e ~ N(0, I)

An `s` behind the name scrambles the inputs by a fixed random rotation. In the test split the spurious inputs are
permuted among the examples of an environment; with `oracle` they are so in training and validation too.

Deviations from the authors' code:
- Weights, environments and examples come from streams of the run's seed; theirs from torch's generator, so no single
  number is the same.
- The permutation in example2 is theirs as corrected: early versions left some spurious inputs in place.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from invbench.core.data import Dataset, Problem
from invbench.core.registry import register_dataset
from invbench.core.settings import Choice, setting
from invbench.datasets._linear import Kind, Structure

KINDS: dict[str, Kind] = {"example1": "regression", "example2": "cows_camels", "example3": "small_margin"}


@register_dataset("linear_unit_tests")
class LinearUnitTests(Dataset):
    """Six linear problems with invariant and spurious inputs."""

    display_name: ClassVar[str] = "Linear unit tests"
    provides: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression", "classification", "oracle")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"oracle": {"oracle": True}}
    backbone: ClassVar[str] = "linear"
    citation: ClassVar[str] = "Aubin et al., Linear unit-tests for invariance discovery, arXiv 2102.10867"
    small: ClassVar[Mapping[str, Any]] = {"dataset.examples": 40, "trainer.batch_size": None}
    small_when: ClassVar[Mapping[str, Mapping[str, Any]]] = {"classification": {"dataset.example": "example3"}}

    example: Literal["example1", "example1s", "example2", "example2s", "example3", "example3s"] = setting(
        "example1",
        "which problem; s: scrambled inputs",
        search=Choice(("example1", "example1s", "example2", "example2s", "example3", "example3s")),
    )
    environments: int = setting(3, "E", ge=1)
    invariant_dimensions: int = setting(5, "d_inv", ge=1)
    spurious_dimensions: int = setting(5, "d_spu", ge=1)
    examples: int = setting(10_000, "examples per environment and split", ge=2)
    oracle: bool = setting(False, "permute the spurious inputs in training too, so that ERM is the oracle")

    def capabilities(self) -> tuple[str, ...]:
        regression = self.example in ("example1", "example1s")
        oracle = ("oracle",) if self.oracle else ()
        return ("vector", "environments", "regression" if regression else "classification", *oracle)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        structure = Structure(
            kind=KINDS[self.example.removesuffix("s")],
            environments=self.environments,
            invariant=self.invariant_dimensions,
            spurious=self.spurious_dimensions,
            identity=False,
            scrambled=self.example.endswith("s"),
        )
        sizes = dict.fromkeys(("train", "validation", "test"), self.examples)
        return structure.problem(sizes, sizes if self.oracle else ("test",), seed)
