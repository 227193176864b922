"""Penguins with groups: tell the sex, where training has few females of the heavy species and few males of the light.

The measurements of `penguins` (Gorman et al. 2014; palmerpenguins) of the Adelies and Gentoos whose sex is known: 146
and 119 adults, half of them females. Gentoos are so much heavier that a female Gentoo outweighs most male Adelies, so
where training has few of either, weight tells the sex by telling the species.

    inputs     length and depth of the bill and length of the flipper in mm, body mass in g, standardised by mean and
               deviation of the training split
    label      female or male; attribute: the species

Half of each group train, a quarter validates and a quarter tests; of the female Gentoos and the male Adelies of the
training split only the share `rare` is kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from invbench.core.data import Problem
from invbench.core.groups import GroupsAlone
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datasets.penguins import FILE, MEASUREMENTS, Penguins

RARE = (("female", "Gentoo"), ("male", "Adelie"))
PARTS = {"train": 0.5, "validation": 0.75, "test": 1.0}
"""Share of each group at which a split ends."""


@register_dataset("grouped_penguins")
class GroupedPenguins(GroupsAlone):
    """Sex of Adelies and Gentoos from four measurements, with two rare groups; offline."""

    display_name: ClassVar[str] = "Penguins with groups"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "environments", "nuisance", "second_stage")
    licence: ClassVar[str] = Penguins.licence
    citation: ClassVar[str] = Penguins.citation
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 3}

    rare: float = setting(0.15, "share of the rare groups of the training split that is kept", gt=0, le=1)

    def files(self) -> tuple[Path, ...]:
        return (FILE,)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        rng = np.random.default_rng(seed)
        birds = pd.read_csv(FILE).dropna(subset=[*MEASUREMENTS, "sex"])
        birds = birds[birds["species"].isin(["Adelie", "Gentoo"])].reset_index(drop=True)
        split = np.full(len(birds), "none", "U10")
        for group, rows in birds.groupby(["sex", "species"]).indices.items():
            order = rng.permutation(rows)
            ends = [0, *(round(share * len(rows)) for share in PARTS.values())]
            for name, first, end in zip(PARTS, ends, ends[1:], strict=False):
                kept = order[first:end]
                if name == "train" and group in RARE:
                    kept = kept[: max(1, round(self.rare * len(kept)))]
                split[kept] = name
        birds, split = birds[split != "none"], split[split != "none"]
        x, train = birds[MEASUREMENTS].to_numpy(np.float64), split == "train"
        species = birds["species"].to_numpy(str)
        return Problem.from_arrays(
            (x - x[train].mean(0)) / x[train].std(0),
            birds["sex"].to_numpy(str),
            split=split,
            nuisance=species,
            attribute=species,
        )
