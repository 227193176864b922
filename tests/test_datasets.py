"""Construction of the datasets against their published descriptions."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import load, small_cell
from conftest import write_idx
from hypothesis import given
from hypothesis import strategies as st

from invbench.datasets._mnist import SOURCES
from invbench.datasets.rotmnist import RotMNIST
from invbench.datasets.spirals import Spirals
from invbench.errors import UserError
from invbench.images import centred, rotate
from invbench.problem import Problem, Regression
from invbench.seeds import stream
from invbench.torchvision_import import torchvision

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


# --- rotation --------------------------------------------------------------------------------------------------------


def test_quarter_turns_are_exact_and_counter_clockwise() -> None:
    images = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    for turns in range(4):
        turned = rotate(images, torch.full((2,), turns * torch.pi / 2, dtype=torch.float64))
        assert torch.allclose(turned, torch.rot90(images, turns, dims=(-2, -1)), atol=1e-6)


def test_each_image_gets_its_own_angle_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images, angles = torch.rand(5, 1, 6, 6), torch.linspace(-3, 3, 5)
    together = rotate(images, angles)
    monkeypatch.setattr("invbench.images.CHUNK", 2)
    assert torch.equal(rotate(images, angles), together)
    alone = torch.cat([rotate(images[i : i + 1], angles[i : i + 1]) for i in range(5)])
    assert torch.allclose(alone, together, atol=1e-6)


def test_scale() -> None:
    assert centred(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2, 0, 2]


# --- digits and rotmnist ---------------------------------------------------------------------------------------------


def test_digits() -> None:
    problem = load(small_cell("erm", "digits"))
    assert {name: len(split) for name, split in problem.splits.items()} == {
        "train": 1197,
        "validation": 200,
        "test": 400,
    }
    assert problem.input_shape == (1, 8, 8)
    assert problem.splits["train"].y.bincount().min() > 100
    upright = load(small_cell("erm", "digits", dataset__max_rotation=0.0)).splits["train"].x
    assert not torch.allclose(upright, problem.splits["train"].x)
    assert torch.allclose((upright + 2) * 4, ((upright + 2) * 4).round(), atol=1e-4), "unrotated pixels are sixteenths"


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


def test_without_files_and_network_the_three_ways_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchvision().datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UserError) as error:
        RotMNIST().load(SEED)
    text = str(error.value)
    assert "set INVBENCH_DATA to a folder that has MNIST/raw/train-images-idx3-ubyte[.gz]" in text
    assert f"the cache, {tmp_path / 'cache'}" in text
    assert "connect to the network" in text
    assert "\n" not in text


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *arguments: object) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)


@pytest.fixture
def mirror(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local server in the place of torchvision's mirrors; the small files in the place of the official ones."""
    for source in SOURCES:
        path = mnist_folder / Path(source.path).name
        if path.exists():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(mnist_folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("INVBENCH_DATA")
    digits = torchvision().datasets.MNIST
    monkeypatch.setattr(digits, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    names = [f"{Path(source.path).name}.gz" for source in SOURCES]
    sums = [hashlib.md5((mnist_folder / name).read_bytes()).hexdigest() for name in names]  # noqa: S324
    monkeypatch.setattr(digits, "resources", list(zip(names, sums, strict=True)))
    yield mnist_folder
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("mirror")
def test_download_into_the_cache(tmp_path: Path) -> None:
    assert len(RotMNIST().load(SEED).splits["train"]) == 60
    assert all((tmp_path / "cache" / source.path).is_file() for source in SOURCES)


def test_download_with_a_wrong_checksum_is_refused(mirror: Path) -> None:
    path = mirror / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match="cannot be downloaded .*t10k-labels.* Three ways"):
        RotMNIST().load(SEED)


# --- the contract of problems ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["spirals", "digits"])
def test_fingerprints_agree_across_processes(dataset: str) -> None:
    code = (
        "from invbench.spec import resolve; from invbench.seeds import stream\n"
        f"print(resolve('erm', {dataset!r}).dataset.load(stream(5, 'data')).fingerprint)"
    )
    prints = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(prints) == 1


def test_regression_reports_in_units() -> None:
    task = Regression("degrees", mean=10.0, std=4.0)
    prediction, y = torch.tensor([[0.0], [1.0]]), torch.tensor([10.0, 18.0])
    scores = task.scores(prediction, y)
    assert scores["mean_absolute_error"].tolist() == [0, 4]
    assert scores["mean_squared_error"].tolist() == [0, 16]
    assert task.losses(prediction, y).tolist() == [0, 1]
    absolute = Regression("degrees", mean=10.0, std=4.0, loss="absolute")
    assert absolute.losses(prediction, torch.tensor([10.0, 22.0])).tolist() == [0, 2]


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
