"""Construction of the image datasets against their published descriptions."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from standins import write_cifar
from torch import Tensor

from invbench.components.images import rotate
from invbench.core.data import Problem, Split
from invbench.core.pixels import IMAGENET
from invbench.datasets._cifar import read_batch
from invbench.datasets._coloring import coloured
from invbench.datasets._mnist import load_mnist
from invbench.datasets._small_digits import load_small_digits
from invbench.datasets.cifar10 import CIFAR10
from invbench.datasets.colored_digits import ColoredDigits
from invbench.datasets.colored_mnist import ColoredMNIST
from invbench.datasets.digits import SmallDigits
from invbench.datasets.mario_iggy import MarioIggy, _drawn
from invbench.datasets.olivetti import Olivetti
from invbench.datasets.rotmnist import RotMNIST
from invbench.errors import UserError
from invbench.seeding import stream

SEED = stream(0, "data")


# --- rotated digits --------------------------------------------------------------------------------------------------


def test_small_digits_are_those_of_scikit_learn() -> None:
    pixels, labels = load_digits(return_X_y=True)
    images, digits = load_small_digits()
    assert np.array_equal(images.flatten(1).numpy() * 16, pixels) and np.array_equal(digits, labels)


def test_digits() -> None:
    problem = SmallDigits().load(SEED)
    assert {name: len(split) for name, split in problem.splits.items()} == {
        "train": 1197,
        "validation": 200,
        "test": 400,
    }
    assert problem.input_shape == (1, 8, 8)
    assert problem.splits["train"].y.bincount().min() > 100
    upright = SmallDigits(max_rotation=0.0).load(SEED).splits["train"]
    assert not torch.allclose(upright.x, problem.splits["train"].x)
    assert torch.allclose((upright.x + 2) * 4, ((upright.x + 2) * 4).round(), atol=1e-4), "pixels are sixteenths"
    assert nuisance(upright).abs().max() == 0


def test_the_angle_is_nuisance_and_environment() -> None:
    problem = SmallDigits(environments="rotation_bins", rotation_bins=3, max_rotation=1.5).load(SEED)
    train, plain = problem.splits["train"], SmallDigits(max_rotation=0.0).load(SEED).splits["train"]
    angle = nuisance(train)
    assert torch.allclose(4 * rotate((plain.x / 4) + 0.5, angle) - 2, train.x, atol=1e-5)
    assert train.env is not None
    assert torch.equal(train.env, (angle > -0.5).long() + (angle > 0.5).long())
    assert problem.environments == 3


def test_test_angles_may_lie_outside_those_of_training() -> None:
    inside = {"environments": "rotation_bins", "max_rotation": 0.5}
    problem, plain = SmallDigits(**inside, test_rotation=1.25).load(SEED), SmallDigits(**inside).load(SEED)
    for name in ("train", "validation"):
        assert torch.equal(problem.splits[name].x, plain.splits[name].x)
        assert nuisance(problem.splits[name]).abs().max() <= 0.5
    angle, env = nuisance(problem.splits["test"]), problem.splits["test"].env
    assert 0.5 <= angle.abs().min() < 0.55
    assert 1.2 < angle.abs().max() <= 1.25
    assert env is not None
    assert torch.equal(env, 4 + (angle > 0).long())
    assert problem.environments == 4
    with pytest.raises(UserError, match="test_rotation must be larger"):
        SmallDigits.parse({"max_rotation": 2.0, "test_rotation": 1.0}, source="settings")


# --- colours ---------------------------------------------------------------------------------------------------------


def nuisance(split: Split) -> Tensor:
    assert split.nuisance is not None
    return split.nuisance


def test_colouring_rates() -> None:
    count, rng = 60_000, np.random.default_rng(0)
    digits = rng.integers(0, 10, count).astype(np.uint8)
    env = np.arange(count) % 3
    split = coloured(torch.rand(count, 1, 2, 2) + 0.1, digits, env, (0.2, 0.1, 0.9), rng)
    clean = torch.from_numpy(digits < 5).long()
    assert (split.y != clean).double().mean().item() == pytest.approx(0.25, abs=0.01)
    colour = nuisance(split)
    for e, flips in enumerate((0.2, 0.1, 0.9)):
        rows = split.env == e
        assert (colour[rows] != split.y[rows]).double().mean().item() == pytest.approx(flips, abs=0.01)
    lit = split.x.sum((2, 3)) > 0
    assert torch.equal(lit, torch.stack([colour == 0, colour == 1], dim=1)), "only the colour's channel is lit"


@pytest.mark.parametrize("dataset", [ColoredDigits(), ColoredDigits(grayscale=True)])
def test_colored_digits(dataset: ColoredDigits) -> None:
    problem = dataset.load(SEED)
    train, test = problem.splits["train"], problem.splits["test"]
    assert (len(train), len(test)) == (1400, 397)
    assert problem.input_shape == (1 if dataset.grayscale else 2, 8, 8)
    assert problem.environments == 2
    assert (nuisance(train) == train.y).double().mean().item() == pytest.approx(0.85, abs=0.03)
    assert (nuisance(test) == test.y).double().mean().item() == pytest.approx(0.1, abs=0.04)


def test_grayscale_is_the_sum_of_the_channels() -> None:
    colour, gray = (ColoredDigits(grayscale=g).load(SEED).splits["train"] for g in (False, True))
    assert torch.equal(colour.x.sum(1, keepdim=True), gray.x)
    assert torch.equal(colour.y, gray.y)


@pytest.mark.usefixtures("standins")
def test_colored_mnist_variants_on_few_digits() -> None:
    problem = ColoredMNIST().load(SEED)
    assert {name: tuple(split.x.shape) for name, split in problem.splits.items()} == {
        "train": (50, 2, 14, 14),
        "test": (10, 2, 14, 14),
    }
    assert problem.variant == "partial"
    for left_out in range(3):
        problem = ColoredMNIST(variant="domainbed", test_environment=left_out).load(SEED)
        sizes = {name: len(split) for name, split in problem.splits.items()}
        each = [27, 27, 26]
        assert (sizes["test"], sizes["test_out"]) == (each[left_out] - 5, 5), "a fifth of each environment"
        assert (sizes["train"], sizes["validation"]) == (80 - each[left_out] - 10, 10)
        train = problem.splits["train"]
        assert train.env is not None
        assert set(train.env.tolist()) == {0, 1}
    with pytest.raises(UserError, match="test_environment is for variant domainbed"):
        ColoredMNIST(test_environment=0).load(SEED)


@pytest.mark.usefixtures("standins")
def test_rotated_mnist_of_domainbed() -> None:
    """Six angles in turn, one of them the test; each digit is in one environment, turned counter-clockwise."""
    digits = load_mnist()
    upright = {image.tobytes(): label for image, label in zip(digits.images, digits.labels, strict=True)}
    for left_out in (0, 4):
        problem = RotMNIST(variant="domainbed", test_environment=left_out).load(SEED)
        assert problem.environments == 5
        assert sum(len(split) for split in problem.splits.values()) == len(digits.labels)
        angles = [angle for number, angle in enumerate(range(0, 90, 15)) if number != left_out]
        train, test = problem.splits["train"], problem.splits["test"]
        assert train.env is not None
        for e, angle in enumerate(angles):
            assert torch.rad2deg(nuisance(train)[train.env == e]).round().unique().tolist() == [angle]
        assert torch.rad2deg(nuisance(test)).round().unique().tolist() == [15 * left_out]
        assert len(problem.splits["test_out"]) == len(problem.splits["validation"]) // 5
        if left_out == 0:
            for image, label in zip(test.inputs(), test.y, strict=True):
                assert upright[(255 * image[0]).round().byte().numpy().tobytes()] == label
        else:
            plain = torch.tensor(np.array(Image.fromarray(digits.images[0]).rotate(60, Image.Resampling.BILINEAR)))
            turned = rotate(torch.from_numpy(digits.images[:1, None]), torch.deg2rad(torch.tensor([60.0])))[0, 0]
            inside = slice(7, 21)  # at the border, which is black in real digits, PIL has black for less than a pixel
            difference = (255 * turned - plain)[inside, inside].abs().max()
            assert difference <= 1.0, "as PIL turns it, before rounding to bytes"
    with pytest.raises(UserError, match="dataset.size and dataset.test_environment are for variant domainbed"):
        RotMNIST(test_environment=2).load(SEED)


# --- cifar10 ---------------------------------------------------------------------------------------------------------


def cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, **sizes: int) -> Callable[..., Problem]:
    write_cifar(folder / "cifar-10-batches-bin", **sizes)
    monkeypatch.setenv("INVBENCH_DATA", str(folder))
    return lambda **settings: CIFAR10(**settings).load(SEED)


def test_cifar10_pixels_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = cifar(tmp_path, monkeypatch, train=30, test=20, batches=2)
    problem = make(transform="none", validation_size=10)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 50, "validation": 10, "test": 20}
    assert problem.variant == "partial"
    record = np.fromfile(tmp_path / "cifar-10-batches-bin/data_batch_2.bin", np.uint8).reshape(-1, 3073)[0]
    assert problem.splits["train"].y[30] == record[0]
    np.testing.assert_array_equal((problem.splits["train"].x[30] * 255).round().numpy().ravel(), record[1:])
    mean, deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    scaled = make().splits["test"].x * deviation + mean
    assert torch.allclose(scaled, problem.splits["test"].x, atol=1e-6)
    assert make(train_size=7).splits["train"].x.shape == (7, 3, 32, 32)
    with pytest.raises(UserError, match="is 51, but there are only 50"):
        make(train_size=51, validation_size=10)


def test_cifar10_random_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of the AND-mask code, stated again."""
    make = cifar(tmp_path, monkeypatch, train=2000)
    clean = make().splits["train"].y
    for fraction in (0.3, 1.0):
        problem = make(random_labels_fraction=fraction)
        rng = np.random.RandomState(SEED.generate_state(1))
        chosen = rng.choice(2000, round(fraction * 2000), replace=False)
        drawn = rng.randint(0, 10, len(chosen))
        noisy = clean.numpy().copy()
        for index, label in zip(chosen, drawn, strict=True):
            noisy[index] = label
        train, wrong = problem.splits["train"], problem.splits["train_mislabelled"]
        np.testing.assert_array_equal(train.y, noisy)
        changed = np.flatnonzero(noisy != clean.numpy())
        np.testing.assert_array_equal(wrong.y, noisy[changed])
        assert torch.equal(wrong.x, train.x[changed])
        assert problem.facts["kept_by_chance"] == pytest.approx(0.1, abs=0.05)
        assert problem.facts["labels_changed"] == pytest.approx(0.9 * fraction, abs=0.05)
    assert torch.equal(make(random_labels_fraction=1.0).splits["test"].y, make().splits["test"].y)


def test_cifar10_environments_and_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = cifar(tmp_path, monkeypatch, train=20)
    assert make(environments="per_example").environments == 20
    assert make().augment is None
    problem = make(transform="fixed")
    assert problem.augment is not None
    changed = problem.augment(problem.splits["train"].x)
    assert changed.shape == problem.splits["train"].x.shape
    black = -torch.tensor(IMAGENET.mean)[:, None] / torch.tensor(IMAGENET.deviation)[:, None]
    corner = changed[:, :, 0, 0].T
    assert torch.isclose(corner, black, atol=1e-5).all(0).any(), "the padding is black"


def test_cifar10_python_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (5, 3072)).astype(np.uint8), [3, 1, 4, 1, 5]
    path = tmp_path / "data_batch_1"
    content = pickle.dumps({b"data": data, b"labels": labels, b"filenames": [b"a"]}, protocol=2)
    official = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert official != content
    for written in (content, official):
        path.write_bytes(written)
        images, actual = read_batch(path)
        np.testing.assert_array_equal(images, data.reshape(5, 3, 32, 32))
        assert actual.tolist() == labels


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"data": Evil()}), "it names pathlib"),
        (pickle.dumps({b"data": np.zeros((2, 3)), b"labels": [0, 1]}), "data of type float64 and shape"),
        (pickle.dumps([1, 2]), "no python batch"),
        (b"nonsense", "no python batch"),
        (b"", "no python batch"),
    ],
)
def test_cifar10_pickles_are_not_trusted(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_batch(tmp_path / "data_batch_1")
    assert not (tmp_path / "evil").exists()


def test_cifar10_damaged_batches(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(3072))
    with pytest.raises(UserError, match="no multiple of 3073; fetch it again"):
        read_batch(path)
    path.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(UserError, match="labels must be 0 to 9"):
        read_batch(path)


# --- mario_iggy ------------------------------------------------------------------------------------------------------


def test_mario_iggy_classes_and_angles() -> None:
    """Each image is one of our figures, turned by an angle that its class allows."""
    problem = MarioIggy(train_examples=40, test_examples=8).load(SEED)
    figures, train = _drawn(), problem.splits["train"]
    assert train.y.bincount().tolist() == [10] * 4
    angles = torch.linspace(-torch.pi, torch.pi, 721)
    for image, label in zip(train.x, train.y.tolist(), strict=True):
        turned = rotate(figures[label // 2].expand(len(angles), -1, -1, -1), angles)
        best = angles[(turned - image).square().flatten(1).sum(1).argmin()].item()
        limit = 0.01 + torch.pi / 4
        assert (abs(best) < limit) if label % 2 == 0 else (abs(best) > torch.pi - limit)


def test_mario_iggy_default_sizes() -> None:
    problem = MarioIggy().load(SEED)
    assert problem.splits["train"].y.bincount().tolist() == [2500] * 4
    assert problem.splits["test"].y.bincount().tolist() == [1250] * 4
    assert problem.input_shape == (3, 32, 32)


def test_our_figures_have_an_up_and_a_down() -> None:
    first, second = _drawn()
    assert first.min() >= 0
    assert first.max() <= 1
    for figure in (first, second):
        assert (figure - figure.rot90(2, dims=(1, 2))).abs().mean() > 0.1
    assert (first - second).abs().mean() > 0.1


def test_mario_iggy_with_the_authors_file(tmp_path: Path) -> None:
    path, figures = tmp_path / "images.npz", np.random.default_rng(0).random((2, 3, 32, 32))
    np.savez(path, mario=figures[0], iggy=figures[1])
    given = MarioIggy(sprites=str(path), train_examples=4, test_examples=4).load(SEED)
    assert given.fingerprint != MarioIggy(train_examples=4, test_examples=4).load(SEED).fingerprint
    for arrays, message in (
        ({"mario": figures[0]}, "no arrays mario and iggy"),
        ({"mario": figures[0], "iggy": 255 * figures[1]}, r"with values in \[0, 1\]"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message):
            MarioIggy(sprites=str(path)).load(SEED)
    with pytest.raises(UserError, match="no arrays mario and iggy"):
        MarioIggy(sprites=str(tmp_path / "nothing.npz")).load(SEED)


# --- olivetti --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("standins")
def test_olivetti_rotation() -> None:
    problem = Olivetti().load(SEED)
    train, test = problem.splits["train"], problem.splits["test"]
    assert (len(train), len(test)) == (9000, 3000)
    assert problem.input_shape == (1, 45, 45)
    assert -90 <= train.y.min() < -89
    assert 89 < train.y.max() <= 90
    # The stand-in has a bright bar near the top left corner; a counter-clockwise quarter turn takes it to the bottom.
    upright, turned = (x.mean(0)[0] for x in (train.x[train.y.abs() < 5], train.x[train.y > 85]))
    assert upright[4:8, 14:20].mean() > 1.5 * upright[-10:, 14:20].mean()
    assert turned[24:30, 4:8].mean() > 1.5 * turned[24:30, -10:].mean()


@pytest.mark.usefixtures("standins")
def test_olivetti_people_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invbench.datasets.olivetti._faces", lambda: torch.arange(400.0)[:, None, None, None])
    monkeypatch.setattr("invbench.datasets.olivetti.rotate", lambda images, angles, window: images[..., :1, :1])
    problem = Olivetti(copies=2, validation_people=5).load(SEED)
    photographs = {name: set(split.x.flatten().int().tolist()) for name, split in problem.splits.items()}
    people = {name: {index // 10 for index in rows} for name, rows in photographs.items()}
    assert {name: len(group) for name, group in people.items()} == {"train": 25, "validation": 5, "test": 10}
    assert len(set.union(*people.values())) == 40
    assert all(len(photographs[name]) == 10 * len(people[name]) for name in people)
    problem = Olivetti(task="identity", copies=2).load(SEED)
    for name, each in (("train", 6), ("validation", 2), ("test", 2)):
        split = problem.splits[name]
        assert split.y.bincount().tolist() == [2 * each] * 40
        assert torch.equal(split.x.flatten().long() // 10, split.y)
    numbers = [set(split.x.flatten().tolist()) for split in problem.splits.values()]
    assert len(set.union(*numbers)) == sum(map(len, numbers)) == 400


def test_olivetti_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path))
    (tmp_path / "olivettifaces.mat").write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match="is not the Olivetti file"):
        Olivetti().load(SEED)


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_cifar10() -> None:
    problem = CIFAR10().load(SEED)
    assert problem.splits["test"].y.bincount().tolist() == [1000] * 10
    assert problem.splits["train"].x.mean((0, 2, 3)).abs().max() < 0.2


@pytest.mark.realdata
def test_real_colored_mnist() -> None:
    problem = ColoredMNIST().load(SEED)
    train, test = problem.splits["train"], problem.splits["test"]
    assert problem.variant == "full"
    assert train.env is not None
    assert train.env.bincount().tolist() == [25_000, 25_000]
    assert train.x.shape == (50_000, 2, 14, 14)
    assert len(test) == 10_000
    for split, flips in ((train.rows(train.env == 0), 0.2), (train.rows(train.env == 1), 0.1), (test, 0.9)):
        assert (nuisance(split) != split.y).double().mean().item() == pytest.approx(flips, abs=0.01)
    problem = ColoredMNIST(variant="domainbed").load(SEED)
    sizes = {name: len(split) for name, split in problem.splits.items()}
    assert sum(sizes.values()) == 70_000
    assert sizes["train"] == pytest.approx(0.8 * 46_667, rel=0.01)
    assert sizes["test"] == pytest.approx(0.8 * 23_333, rel=0.02)


@pytest.mark.realdata
def test_real_faces() -> None:
    problem = Olivetti().load(SEED)
    assert (len(problem.splits["train"]), len(problem.splits["test"])) == (9000, 3000)
    upright = problem.splits["train"].rows(problem.splits["train"].y.abs() < 10).x
    mean = upright.mean(0)[0]
    assert torch.corrcoef(torch.stack([mean.flatten(), mean.flip(1).flatten()]))[0, 1] > 0.6, "left is like right"
    assert torch.corrcoef(torch.stack([mean.flatten(), mean.flip(0).flatten()]))[0, 1] < 0.3, "up is not like down"
