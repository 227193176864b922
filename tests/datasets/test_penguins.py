"""The penguins: what the table holds, and which islands can be left out."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import invbench
from invbench.core.task import BinaryClassification, Classification
from invbench.datasets.penguins import FILE, MEASUREMENTS, Penguins
from invbench.errors import UserError
from invbench.runs.resolve import resolve
from invbench.seeding import stream

SEED = stream(0, "data")


def test_the_table_is_the_published_one() -> None:
    """Numbers of birds as Gorman et al. (2014) and the package palmerpenguins count them."""
    table = pd.read_csv(FILE)
    assert table["species"].value_counts().to_dict() == {"Adelie": 152, "Chinstrap": 68, "Gentoo": 124}
    assert table["island"].value_counts().to_dict() == {"Biscoe": 168, "Dream": 124, "Torgersen": 52}
    assert table["body_mass_g"].mean() == pytest.approx(4201.754, abs=1e-3)


def test_species_in_another_year() -> None:
    problem = Penguins().load(SEED)
    assert problem.task == Classification(3)
    assert problem.classes == ("Adelie", "Chinstrap", "Gentoo")
    assert problem.environment_names == ("2007", "2008", "2009")
    assert problem.facts == {"left_out": 2}
    table = pd.read_csv(FILE).dropna(subset=MEASUREMENTS)
    tested = table["year"] == 2009
    for split, chosen in (("train", ~tested), ("test", tested)):
        part = problem.splits[split]
        assert [problem.classes[y] for y in part.y] == table["species"][chosen].tolist()
        assert part.env is not None
        assert [problem.environment_names[e] for e in part.env] == table["year"][chosen].astype(str).tolist()
        assert part.nuisance is None
    x = problem.splits["train"].x
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)
    mass = table["body_mass_g"]
    expected = (mass[tested] - mass[~tested].mean()) / mass[~tested].std(ddof=0)
    np.testing.assert_allclose(problem.splits["test"].x[:, 3], expected, rtol=1e-5)


def test_sex_on_another_island() -> None:
    problem = Penguins(target="sex", environments="island", test_environment="Dream").load(SEED)
    assert isinstance(problem.task, BinaryClassification)
    assert problem.classes == ("female", "male")
    assert problem.environment_names == ("Biscoe", "Torgersen", "Dream")
    assert problem.facts == {"left_out": 11}
    nuisance = problem.splits["test"].nuisance
    assert nuisance is not None
    assert nuisance.bincount().tolist() == [55, 68], "Adelies and Chinstraps"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"environments": "island", "test_environment": "Dream"},
            "no Chinstrap lives on the islands .*=Torgersen, or ",
        ),
        (
            {"environments": "island", "test_environment": "Biscoe"},
            "no Gentoo lives on the islands that are trained on",
        ),
        ({"environments": "island", "test_environment": "Drem"}, r"no island is 'Drem'; did you mean 'Dream'\?"),
        ({"test_environment": 2010}, r"dataset.test_environment: no year is '2010'; did you mean '2009'\?"),
    ],
)
def test_what_makes_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Penguins(**given).load(SEED)


def test_a_nuisance_is_there_for_sex_only() -> None:
    assert "nuisance" not in resolve("erm", "penguins").dataset.capabilities()
    assert "nuisance" in resolve("erm", "penguins", 0, {"dataset.target": "sex"}).dataset.capabilities()


def test_the_recipe_beats_the_constant() -> None:
    record = invbench.run("erm", "penguins", device="cpu")
    assert record.metrics["test_accuracy"] > 0.95
    assert record.data["constant"]["test_accuracy"] < 0.5
