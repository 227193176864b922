"""Construction of the datasets against their published descriptions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import SMALL
from hypothesis import given
from hypothesis import strategies as st
from standins import write_idx

from invbench.core.data import Problem
from invbench.core.task import Regression
from invbench.datasets.colored_digits import ColoredDigits
from invbench.datasets.rotmnist import RotMNIST
from invbench.datasets.spirals import Spirals
from invbench.errors import UserError
from invbench.seeding import stream

SEED = stream(0, "data")


# --- spirals ---------------------------------------------------------------------------------------------------------


def spirals(seed: int = 0, **settings: object) -> Problem:
    return Spirals(**settings).load(stream(seed, "data"))  # type: ignore[arg-type]


def test_spirals_are_drawn_in_the_authors_order() -> None:
    """An independent statement of the recipe, example by example, on the same raw draws."""
    problem = spirals(environments=3, examples=50, signature_dimensions=4, validation_examples=0)
    seeds = stream(0, "data").generate_state(4)[1:]
    for e, seed in enumerate(seeds):
        rng = np.random.RandomState(seed)
        signatures = rng.normal(size=(3, 4))
        radii = rng.uniform(0.08, 1, size=50)
        labels = rng.randint(0, 2, size=50)
        jitter = rng.uniform(-0.02, 0.02, size=50)
        positions = []
        for r, y, dr in zip(radii, labels, jitter, strict=True):
            angle = 2 * 3 * np.pi * r + np.pi * y
            positions.append(((r + dr) * np.cos(angle), (r + dr) * np.sin(angle)))
        scaled = np.array(positions) / np.std(positions, axis=0)
        shortcut = np.array([(1 if y else -1) * signatures[e] for y in labels])
        train = problem.splits["train"]
        assert train.env is not None
        rows = train.env == e
        np.testing.assert_allclose(train.x[rows], np.hstack([scaled, shortcut]), rtol=1e-6)
        np.testing.assert_array_equal(train.y[rows], labels)


def test_spirals_shortcut_holds_in_training_only() -> None:
    problem = spirals(environments=4, examples=400, test_examples=2000)
    train, test = problem.splits["train"], problem.splits["test"]
    assert train.env is not None
    for e in range(4):
        rows = train.env == e
        signed = train.x[rows, 2:] * (2 * train.y[rows] - 1)[:, None]
        assert torch.equal(signed, signed[:1].expand_as(signed)), "constant up to the label's sign"
    labels = test.y - test.y.mean()
    correlations = (test.x[:, 2:] * labels[:, None]).mean(0) / (test.x[:, 2:].std(0) * test.y.std())
    assert correlations.abs().max() < 0.08, "noise in the test split"
    assert test.x[:, :2].std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_spirals_validation_shares_the_signature_and_nothing_else() -> None:
    problem = spirals(environments=2, examples=40, validation_examples=30)
    train, validation = problem.splits["train"], problem.splits["validation"]
    assert train.env is not None
    assert validation.env is not None
    for e in range(2):
        signature = (train.x[train.env == e, 2:] * (2 * train.y[train.env == e] - 1)[:, None])[0]
        held = validation.x[validation.env == e, 2:] * (2 * validation.y[validation.env == e] - 1)[:, None]
        assert torch.equal(held, signature.expand_as(held))
    assert not set(map(tuple, train.x[:, :2].tolist())) & set(map(tuple, validation.x[:, :2].tolist()))


@given(st.integers(1, 12), st.integers(1, 12))
def test_spirals_test_split_does_not_depend_on_the_number_of_environments(first: int, second: int) -> None:
    a, b = (spirals(environments=e, examples=4, validation_examples=0).splits["test"] for e in (first, second))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)


def test_spirals_flip_of_the_first_signature() -> None:
    plain, flipped = (
        spirals(environments=2, examples=5, flip_first_signature=f).splits["train"] for f in (False, True)
    )
    changed = (plain.x != flipped.x).any(1).nonzero().flatten().tolist()
    assert changed == [0, 5]
    assert torch.equal(plain.x[changed, 2:], -flipped.x[changed, 2:])
    assert torch.equal(plain.x[:, :2], flipped.x[:, :2])


# --- rotmnist ---------------------------------------------------------------------------------------------------------


def test_rotmnist_from_idx_files(mnist_folder: Path) -> None:
    problem = RotMNIST().load(SEED)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 60, "test": 20}
    assert problem.variant == "partial"
    assert problem.splits["train"].x.shape == (60, 1, 28, 28)
    assert problem.splits["train"].x.min() >= -2
    assert problem.splits["train"].x.max() <= 2


@pytest.mark.usefixtures("mnist_folder")
def test_rotmnist_smaller_training_set_is_a_part_of_the_larger() -> None:
    whole = RotMNIST(validation_size=10).load(SEED)
    part = RotMNIST(validation_size=10, train_size=20).load(SEED)
    assert torch.equal(part.splits["train"].x, whole.splits["train"].x[:20])
    for name in ("validation", "test"):
        assert torch.equal(part.splits[name].x, whole.splits[name].x)
    assert len(whole.splits["train"]) == 50
    with pytest.raises(UserError, match="train_size plus .* is 55, but there are only 50"):
        RotMNIST(validation_size=10, train_size=55).load(SEED)
    with pytest.raises(UserError, match="the size of variant 12k is 62000, but there are only 80"):
        RotMNIST(variant="12k").load(SEED)


@pytest.mark.usefixtures("mnist_folder")
def test_rotmnist_angles_follow_the_seed() -> None:
    first, again, other = (RotMNIST().load(stream(seed, "data")) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert torch.equal(first.splits["test"].y, other.splits["test"].y)


def test_truncated_and_corrupt_files(mnist_folder: Path) -> None:
    labels, images = mnist_folder / "t10k-labels-idx1-ubyte", mnist_folder / "train-images-idx3-ubyte.gz"
    whole = labels.read_bytes()
    for content, message in [
        (whole[:-3], "has 25 bytes where its header promises 28; fetch it again"),
        (whole[:6], "truncated inside its header"),
        (b"\x01\x02\x03\x04", "not an idx file"),
        (b"", "not an idx file"),
    ]:
        labels.write_bytes(content)
        with pytest.raises(UserError, match=message):
            RotMNIST().load(SEED)
    labels.write_bytes(whole)
    images.write_bytes(images.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged gzip file"):
        RotMNIST().load(SEED)


def test_a_file_of_official_size_must_be_the_official_file(mnist_folder: Path) -> None:
    write_idx(mnist_folder / "t10k-labels-idx1-ubyte", np.zeros(10_000, np.uint8))
    with pytest.raises(UserError, match="is not the official file: sha256 .* expected ff7bcfd416de3373"):
        RotMNIST().load(SEED)


def test_images_and_labels_of_different_number(mnist_folder: Path) -> None:
    write_idx(mnist_folder / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))
    with pytest.raises(UserError, match="different numbers of images and labels"):
        RotMNIST().load(SEED)


# --- the contract of problems ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fingerprints_agree_across_processes(standins: Path, tmp_path: Path) -> None:
    """Every dataset, twice; the second time what was prepared by the first is read from the cache."""
    code = (
        "import json, sys\nfrom invbench.runs.resolve import resolve\nfrom invbench.seeding import stream\n"
        "settings = json.load(sys.stdin)\n"
        "load = lambda name: resolve('erm', name, 0, settings[name]).dataset.load(stream(5, 'data'))\n"
        "print(json.dumps({name: load(name).fingerprint for name in settings}))"
    )
    environment = os.environ | {"INVBENCH_DATA": str(standins), "INVBENCH_CACHE": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(SMALL),
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        for _ in range(2)
    )
    assert json.loads(first.stdout) == json.loads(second.stdout)
    assert "parsing" in first.stderr
    assert "parsing" not in second.stderr


def test_fingerprints_are_stable() -> None:
    """Numbers that are drawn and copied only are the same everywhere; a new value here is a new dataset."""
    assert ColoredDigits().load(SEED).fingerprint.startswith("739782fcbaf2970c")
    assert ColoredDigits(grayscale=True).load(stream(1, "data")).fingerprint.startswith("dfc2ef59cf5ce687")


def test_regression_reports_in_units() -> None:
    task = Regression("degrees", mean=10.0, std=4.0)
    prediction, y = torch.tensor([[0.0], [1.0]]), torch.tensor([10.0, 18.0])
    scores = task.scores(prediction, y)
    assert scores["mean_absolute_error"].tolist() == [0, 4]
    assert scores["mean_squared_error"].tolist() == [0, 16]
    assert task.losses(prediction, y).tolist() == [0, 1]
    absolute = Regression("degrees", mean=10.0, std=4.0, loss="absolute")
    assert absolute.losses(prediction, torch.tensor([10.0, 22.0])).tolist() == [0, 2]
    scaled = Regression("meV", mean=10.0, std=4.0, factor=1000.0).scores(prediction, y)
    assert scaled["mean_absolute_error"].tolist() == [0, 4000]
    assert scaled["loss"].tolist() == [0, 1]


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_the_official_digits() -> None:
    problem = RotMNIST().load(SEED)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 60_000, "test": 10_000}
    assert problem.variant == "full"
    assert problem.splits["test"].y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.realdata
def test_variant_12k() -> None:
    problem = RotMNIST(variant="12k").load(SEED)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 12_000, "test": 50_000}
