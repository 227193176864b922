"""Toy of BalancingGroups: a core input, a spurious one that is right for most, and 1,200 of noise to learn by heart.

Idrissi, Arjovsky, Pezeshki, Lopez-Paz (2022), "Simple data balancing achieves competitive worst-group-accuracy", arXiv
2110.14503. With a label s ∈ {-1, 1}, half of the examples each, and centred numbers u, v of deviation 0.15,

    spurious = ± s (v - 1)   the sign + for 80 % of the examples, and - for the others, drawn without replacement
    core = s (u - 1)
    noise ~ N(0, 1)          in training; 0 in validation and test, where what it does to a linear model is 0 on average

The inputs are these times `spurious_scale`, `core_scale` and `noise_scale`, the authors' γ = (4, 1, 2 or 4), which say
how soon a linear model takes them up: the spurious input, then noise for the minority, which is then predicted wrongly.
The attribute is whether the spurious input is right: "majority" or "minority". With 4, 1 and 4 early stopping and
weight decay decide what balancing achieves.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from invbench.core.data import Problem, Split, drawn_splits, floats
from invbench.core.groups import GroupsAlone
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification

DEVIATION = 0.15


@register_dataset("grouped_toy")
class GroupedToy(GroupsAlone):
    """A core input, a spurious one that is right for most, and noise to learn by heart; offline."""

    display_name: ClassVar[str] = "Toy of BalancingGroups"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "environments", "nuisance", "second_stage")
    citation: ClassVar[str] = "Idrissi et al., Simple data balancing, arXiv 2110.14503"
    small: ClassVar[Mapping[str, Any]] = {"trainer.batch_size": 8, "dataset.noise": 20, "dataset.examples": 200}

    examples: int = setting(1000, "in each split; half of each label", ge=20)
    correlation: float = setting(0.8, "share of examples whose spurious input is right", ge=0, le=1)
    noise: int = setting(1200, "inputs of noise", ge=0, le=10**5)
    spurious_scale: float = setting(4.0, "factor of the spurious input", ge=0)
    core_scale: float = setting(1.0, "factor of the core input", ge=0)
    noise_scale: float = setting(4.0, "factor of the noise", ge=0)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        sizes = dict.fromkeys(("train", "validation", "test"), self.examples)
        splits = drawn_splits(self._draw, sizes, seed)
        quiet = {name: self._without_noise(split) for name, split in splits.items() if name != "train"}
        names: dict[str, Any] = {"classes": ("0", "1"), "attribute_names": ("minority", "majority")}
        return Problem(splits | quiet, BinaryClassification(), "vector", "synthetic", **names)

    def _draw(self, count: int, rng: np.random.Generator) -> Split:
        u = rng.normal(0, DEVIATION, (count, 2))
        u -= u.mean(0) + 1
        y = np.arange(count) >= count // 2
        s = np.where(y, 1, -1)
        wrong = np.zeros(count, np.bool_)
        wrong[rng.permutation(count)[: int((1 - self.correlation) * count + 1e-9)]] = True
        spurious = np.where(wrong, -1, 1) * s * u[:, 1]
        noise = rng.normal(size=(count, self.noise))
        parts = (self.spurious_scale * spurious, self.core_scale * s * u[:, 0])
        x = np.concatenate([np.stack(parts, 1), self.noise_scale * noise], 1)
        attribute = torch.from_numpy(1 - wrong.astype(np.int64))
        return Split(floats(x), floats(y), nuisance=attribute, attribute=attribute)

    @staticmethod
    def _without_noise(split: Split) -> Split:
        x = split.inputs().clone()
        x[:, 2:] = 0
        return Split(x, split.y, nuisance=split.nuisance, attribute=split.attribute)
