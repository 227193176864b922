"""Penguins: tell the species or the sex of a bird from four measurements, in another year or on another island.

344 adults of three species on three islands of the Palmer Archipelago, measured in 2007, 2008 and 2009 (Gorman et al.
2014), as the package palmerpenguins has them; the table is part of this package.

    inputs        length and depth of the bill and length of the flipper in mm, body mass in g, standardised by mean and
                  deviation of the training split
    target        species (Adelie, Chinstrap, Gentoo) or sex; with sex the species is the nuisance
    environments  year or island; one of them is not trained on, and is the test split: 2009, or Torgersen

Rows that miss a measurement, or the sex where that is the target, are left out: 2, or 11. Every species was measured in
every year, so years go with both targets. Adelies live on all islands, Chinstraps on Dream only and Gentoos on Biscoe
only. The species as target therefore needs Torgersen as test island, where all birds are Adelies; others are refused.
The sex goes with every island, and is what shifts: females of the Gentoos are heavier than males of the Adelies.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from invbench.core.data import Dataset, Problem
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.errors import UserError, did_you_mean

FILE = Path(__file__).with_name("penguins.csv")
MEASUREMENTS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
TESTED = {"year": "2009", "island": "Torgersen"}
"""Environments that are tested where no setting says another."""


@register_dataset("penguins")
class Penguins(Dataset):
    """Four measurements of 344 penguins, offline; environments are years or islands."""

    display_name: ClassVar[str] = "Penguins"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "nuisance", "environments")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"nuisance": {"target": "sex"}}
    licence: ClassVar[str] = "CC0 1.0"
    citation: ClassVar[str] = (
        "Gorman, Williams, Fraser, Ecological sexual dimorphism and environmental variability within a community of "
        "Antarctic penguins, PLoS ONE 9(3) e90081 (2014); Horst, Hill, Gorman, palmerpenguins (2020), "
        "doi 10.5281/zenodo.3960218"
    )
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 20}

    target: Literal["species", "sex"] = setting("species", "what to tell; with sex the species is the nuisance")
    environments: Literal["year", "island"] = setting("year", "what the environments are")
    test_environment: str | int | None = setting(
        None, "year or island that is not trained on, but tested; null takes 2009 or Torgersen"
    )

    def load(self, seed: np.random.SeedSequence) -> Problem:
        table = pd.read_csv(FILE)
        birds = table.dropna(subset=[*MEASUREMENTS, self.target])
        environment = birds[self.environments].astype(str).to_numpy(str)
        tested = self._tested(environment)
        train = environment != tested
        self._check_classes(birds, train)
        x = birds[MEASUREMENTS].to_numpy(np.float64)
        problem = Problem.from_arrays(
            (x - x[train].mean(0)) / x[train].std(0),
            birds[self.target].to_numpy(str),
            environment=environment,
            split=np.where(train, "train", "test"),
            nuisance=birds["species"].to_numpy(str) if self.target == "sex" else None,
        )
        names = (*np.unique(environment[train]).tolist(), tested)
        return replace(problem, facts={"left_out": float(len(table) - len(birds))}, environment_names=names)

    def _tested(self, environment: Any) -> str:
        known = np.unique(environment).tolist()
        tested = TESTED[self.environments] if self.test_environment is None else str(self.test_environment)
        if tested not in known:
            raise UserError(
                f"dataset.test_environment: no {self.environments} is '{tested}'{did_you_mean(tested, known)}"
            )
        return tested

    def _check_classes(self, birds: pd.DataFrame, train: Any) -> None:
        """Raise UserError where a species lives on the tested island only."""
        unseen = sorted(set(birds[self.target]) - set(birds[self.target][train]))
        if unseen:
            raise UserError(
                f"no {unseen[0]} lives on the islands that are trained on; set dataset.test_environment=Torgersen, or "
                "dataset.target=sex"
            )
