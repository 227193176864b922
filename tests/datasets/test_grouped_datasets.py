"""Data sets with groups: their laws, counted; and official metadata through the data sets of one's own files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import invbench
from invbench.core.data import Problem
from invbench.errors import UserError
from invbench.published.claims import claims_of


def loaded(name: str, seed: int = 0, **settings: Any) -> Problem:
    given = {f"dataset.{key}": value for key, value in settings.items()}
    return invbench.load_problem(name, seed=seed, settings=given)


def test_the_colour_goes_with_the_label_in_every_split() -> None:
    problems = [loaded("grouped_digits", seed) for seed in range(5)]
    for name in ("train", "validation", "test"):
        splits = [problem.splits[name] for problem in problems]
        same = torch.cat([split.y == split.attribute for split in splits]).double()  # type: ignore[operator]
        assert same.mean().item() == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / len(same)))
    train = problems[0].splits["train"]
    x = train.inputs()
    assert train.attribute is not None
    for number in (0, 1):
        assert not x[train.attribute == number][:, 1 - number].any(), "the other channel is empty"
    digits = sum(len(split) for split in problems[0].splits.values())
    assert digits == 1797


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_labels_and_colours_have_the_wanted_share_of_training(share: float) -> None:
    by_label = loaded("grouped_digits", label_share=share).splits["train"].y.double().mean().item()
    assert by_label == pytest.approx(share, abs=0.01 if share != 0.5 else 0.1)
    by_colour = loaded("grouped_digits", colour_share=share).splits["train"].attribute
    assert by_colour is not None
    assert by_colour.double().mean().item() == pytest.approx(share, abs=0.01 if share != 0.5 else 0.1)
    assert len(loaded("grouped_digits", label_share=share).splits["test"]) == 597


def test_without_noise_the_label_is_the_digit() -> None:
    plain = loaded("grouped_digits", label_noise=0.0, colour_noise=0.0)
    for split in plain.splits.values():
        assert torch.equal(split.y, split.attribute)  # type: ignore[arg-type]
    assert plain.group_counts["test"][1] == plain.group_counts["test"][2] == 0


@pytest.mark.usefixtures("standins")
def test_mnist_is_divided_as_subpopbench_does() -> None:
    problem = loaded("grouped_mnist")
    sizes = {name: len(split) for name, split in problem.splits.items()}
    assert sizes["train"] == sizes["validation"] * 3 or sum(sizes.values()) < 60_000
    assert set(sizes) == {"train", "validation", "test"}


def test_the_toy_has_the_authors_law() -> None:
    problem = loaded("grouped_toy")
    train, test = problem.splits["train"], problem.splits["test"]
    x, s = train.inputs().double(), 2 * train.y.double() - 1
    assert x.shape == (1000, 1202)
    assert train.y.sum() == 500
    core, spurious = x[:, 1] * s, x[:, 0] * s / 4
    assert train.attribute is not None
    assert (train.attribute == 0).sum() == 200
    assert torch.equal((spurious < 0).long(), train.attribute), "the majority's is right, that is -1 for s = 1"
    assert core.mean().item() == pytest.approx(-1, abs=1e-5)
    assert core.std().item() == pytest.approx(0.15, abs=0.02)
    assert x[:, 2:].std().item() == pytest.approx(4, rel=0.01)
    assert not test.inputs()[:, 2:].any()


def test_penguins_have_two_rare_groups() -> None:
    problem = loaded("grouped_penguins")
    counts = dict(zip(problem.group_names, problem.group_counts["train"], strict=True))
    assert counts["female, Gentoo"] < counts["female, Adelie"] / 5
    assert counts["male, Adelie"] < counts["male, Gentoo"] / 5
    balanced = problem.group_counts["test"]
    assert min(balanced) > 13
    assert loaded("grouped_penguins", rare=1.0).group_counts["train"] == (36, 29, 36, 30)


GROUPS = {("landbird", "land"): 12, ("landbird", "water"): 5, ("waterbird", "land"): 4, ("waterbird", "water"): 12}


def waterbirds(folder: Path) -> Path:
    """Write a stand-in of the Waterbirds folder: its metadata.csv, and small pictures below it."""
    rng = np.random.default_rng(0)
    rows = []
    for split in (0, 1, 2):
        for (bird, place), count in GROUPS.items():
            for i in range(count):
                name = f"{bird}/{place}_{split}_{i}.jpg"
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = [200 if place == "land" else 30, 120, 200 if bird == "waterbird" else 30]
                pixels = np.clip(rng.normal(colour, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
                rows.append(
                    (len(rows), name, int(bird == "waterbird"), split, int(place == "water"), f"/{place}/x.jpg")
                )
    names = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "metadata.csv", index=False)
    return folder


OFFICIAL: Mapping[str, str] = {"path": "img_filename", "label": "y", "attribute": "place"}
QUICK = {"dataset.image_size": 8, "trainer.steps": 8, "trainer.batch_size": 8, "backbone.width": 4}


def test_waterbirds_in_its_official_form(tmp_path: Path) -> None:
    folder = waterbirds(tmp_path / "waterbird_complete95_forest2water2")
    given = QUICK | {"dataset.table": str(folder / "metadata.csv"), "dataset.columns": dict(OFFICIAL)}
    problem = invbench.load_problem("images", settings={k: v for k, v in given.items() if k.startswith("dataset")})
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 33, "validation": 33, "test": 33}
    assert problem.group_counts["train"] == tuple(GROUPS.values())
    for method, more in (("jtt", {}), ("group_dro", {"dataset.environment_from": "group", "trainer.batch_size": 4})):
        record = invbench.run(method, "images", settings=given | more, out=tmp_path / "results")
        assert 0 <= record.metrics["test_accuracy_group_worst"] <= 1
        assert {number.metric for claim in claims_of("groups").values() for number in claim.numbers} <= {
            *record.metrics
        }
    table = invbench.table(invbench.load_results(tmp_path / "results"), select="worst_group")
    assert set(table["method"]) == {"jtt", "group_dro"}


def test_metadata_of_subpopbench_as_a_table(tmp_path: Path) -> None:
    """Its files have the columns id, filename, split, y and a; here with two numbers for each row."""
    rng = np.random.default_rng(0)
    y, a = rng.integers(0, 2, 90), rng.integers(0, 2, 90)
    frame = pd.DataFrame({"id": range(90), "_filename": "x", "split": np.arange(90) % 3, "y": y, "a": a})
    frame = frame.assign(one=rng.normal(y), two=rng.normal(a))
    frame.to_csv(tmp_path / "metadata.csv", index=False)
    given = {"path": str(tmp_path / "metadata.csv"), "target": "y", "attribute": "a", "split": "split"}
    problem = loaded("table", **given, exclude=["id"])
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 30, "validation": 30, "test": 30}
    assert problem.group_names == ("0, 0", "0, 1", "1, 0", "1, 1")
    named = np.array(["train", "val", "test"])[np.arange(90) % 3]
    frame.assign(split=named).to_csv(tmp_path / "metadata.csv", index=False)
    assert set(loaded("table", **given, exclude=["id"]).splits) == {"train", "validation", "test"}
    numbered = Problem.from_arrays(frame[["one", "two"]], y, attribute=a, split=frame["split"])
    assert set(numbered.splits) == {"train", "validation", "test"}
    frame.assign(split=np.arange(90) % 2).to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(UserError, match="split"):
        loaded("table", **given, exclude=["id"])
