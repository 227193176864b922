"""A chain of linear equations, cause -> target -> effect, with and without hidden confounder: IRM's own experiment.

Arjovsky et al. (2019), arXiv 1907.02893, section 5.1. In an environment of scale e (0.2, 2 and 5), d causes, d targets,
d effects:

    h = e N                                  confounder
    x = h W_hx + e N                         causes
    y = x W_xy + h W_hy + (e N | N)          heteroskedastic | homoskedastic
    z = y W_yz + h W_hz + (N | e N)          effects
    input (x, z) S, target Σ_j y_j

A `setup` is named by three letters: fully observed (W_hx = I, W_hy = W_hz = 0) or partially (all three N / 2d);
homoskedastic (o) or heteroskedastic (e); unscrambled (S = I) or scrambled (S orthogonal). What is measured is the mean
squared error of the unscrambled coefficients, on causes (true: Σ_j W_xy) and on effects (true: 0).

Deviations from the authors' code:
- It trains IRM on the first two scales and chooses its penalty on the third, ERM on all three; here both train on
  `scales`, and the validation split is drawn anew at `validation_scale`. It is of the training environment of that
  scale, where there is one, so leaving that one out of training takes it away.
- It has no test data; here the test split is drawn anew at the training scales. The headline stays the causal error.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from invbench.core.data import Dataset, Problem
from invbench.core.registry import register_dataset
from invbench.core.settings import Choice, setting
from invbench.core.task import Regression
from invbench.datasets._linear import Array, Draw, law, orthogonal, splits
from invbench.seeding import children

SETUPS = ("fou", "fos", "feu", "fes", "pou", "pos", "peu", "pes")


@register_dataset("chain_sem")
class ChainSEM(Dataset):
    """Linear chain cause, target, effect in eight variants."""

    display_name: ClassVar[str] = "Chain SEM"
    provides: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression")
    backbone: ClassVar[str] = "linear"
    citation: ClassVar[str] = "Arjovsky et al., Invariant risk minimization, arXiv 1907.02893"
    small: ClassVar[Mapping[str, Any]] = {"dataset.examples": 40, "trainer.batch_size": None}

    setup: Literal["fou", "fos", "feu", "fes", "pou", "pos", "peu", "pes"] = setting(
        "fou",
        "fully or partially observed; homo- (o) or heteroskedastic (e); unscrambled or scrambled",
        search=Choice(SETUPS),
    )
    dimensions: int = setting(5, "d: number of causes and of effects", ge=1)
    scales: tuple[float, ...] = setting((0.2, 2.0, 5.0), "e of the training environments", min_length=1)
    validation_scale: float = setting(5.0, "e of the validation split", ge=0)
    examples: int = setting(1000, "examples per environment and split", ge=2)
    ones: bool = setting(True, "W_xy = W_yz = I, as in the published results, else N / 2d")

    def load(self, seed: np.random.SeedSequence) -> Problem:
        structure, examples, validation = children(seed, 3)
        rng, d = np.random.default_rng(structure), self.dimensions
        drawn = rng.normal(size=(5, d, d)) / (2 * d)
        w_xy, w_yz = (np.eye(d), np.eye(d)) if self.ones else drawn[:2]
        hidden = drawn[2:] if self.setup[0] == "p" else np.stack([np.eye(d), np.zeros((d, d)), np.zeros((d, d))])
        rotation = orthogonal(2 * d, rng)
        mixing = rotation if self.setup[2] == "s" else None
        draws = [self._environment(e, w_xy, w_yz, hidden) for e in self.scales]
        held_out = [self._environment(self.validation_scale, w_xy, w_yz, hidden)]
        parts = splits(draws, {"train": self.examples, "test": self.examples}, examples, mixing=mixing)
        drawn_anew = splits(held_out, {"validation": self.examples}, validation, mixing=mixing)["validation"]
        number = [*self.scales, self.validation_scale].index(self.validation_scale)
        parts["validation"] = replace(drawn_anew, env=torch.full((self.examples,), number))
        return Problem(
            parts,
            Regression("units of y", primary="mean_squared_error"),
            "vector",
            "synthetic",
            law=law(w_xy, d, mixing),
            metric="coefficient_error_causal",
        )

    def _environment(self, e: float, w_xy: Array, w_yz: Array, hidden: Array) -> Draw:
        w_hx, w_hy, w_hz = hidden
        y_noise, z_noise = (1.0, e) if self.setup[1] == "o" else (e, 1.0)

        def draw(count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
            h, x_noise, y_free, z_free = rng.normal(size=(4, count, self.dimensions))
            x = e * h @ w_hx + e * x_noise
            y = x @ w_xy + e * h @ w_hy + y_noise * y_free
            z = y @ w_yz + e * h @ w_hz + z_noise * z_free
            return x, z, y.sum(1)

        return draw
