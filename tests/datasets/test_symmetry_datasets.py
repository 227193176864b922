"""Construction of the datasets whose symmetry is known, and that it is one."""

import pytest
import torch
from torch import Tensor

from invbench.components.affine import action, basis, exponential
from invbench.components.images import rotate
from invbench.core.data import Problem, Symmetry
from invbench.datasets._mnist import load_mnist
from invbench.datasets._rotation import PIXELS
from invbench.datasets._small_digits import load_small_digits
from invbench.datasets.digits import SmallDigits
from invbench.datasets.shifted_digits import ShiftedDigits
from invbench.datasets.sixes import Sixes
from invbench.errors import UserError
from invbench.seeding import stream

SEED = stream(0, "data")


def symmetry_of(problem: Problem) -> Symmetry:
    assert problem.symmetry is not None
    return problem.symmetry


# --- sixes -----------------------------------------------------------------------------------------------------------


def pictures(images: Tensor) -> list[bytes]:
    """Return the pixels of standardised images as bytes, each of which tells them."""
    return [(PIXELS.restored(image) * 240).round().byte().numpy().tobytes() for image in images]


def test_sixes_are_in_one_split_with_both_labels() -> None:
    """Image by image, from the digits of scikit-learn."""
    images, labels = load_small_digits()
    sixes = {bytes((image * 240).round().byte().flatten().tolist()) for image in images[torch.from_numpy(labels == 6)]}
    assert len(sixes) == 181
    problem, found = Sixes().load(SEED), []
    for split in problem.splits.values():
        upright, turned = (pictures(split.inputs()[split.y == label]) for label in (0, 1))
        assert sorted(upright) == sorted(image[::-1] for image in turned), "backwards is turned by 180 degrees"
        found += upright
    assert len(found) == 181
    assert set(found) == sixes
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 224, "validation": 58, "test": 80}
    assert (problem.variant, problem.input_shape) == ("full", (1, 8, 8))
    assert symmetry_of(problem).half_widths == {"rotation": 0.0}


def test_sixes_of_a_seed() -> None:
    settings = Sixes(max_rotation=0.5)
    first, again, other = (settings.load(stream(seed, "data")) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    plain = Sixes().load(SEED)
    assert symmetry_of(first).half_widths == {"rotation": 0.5}
    for name, split in first.splits.items():
        assert torch.equal(split.y, plain.splits[name].y)
    plain_test, test = plain.splits["test"], first.splits["test"]
    assert torch.equal(Sixes().load(stream(1, "data")).splits["test"].inputs(), plain_test.inputs()), (
        "the same sixes are the test"
    )
    angles = torch.linspace(-torch.pi, torch.pi, 181)
    for upright, image in zip(plain_test.inputs(), test.inputs(), strict=True):
        copies = PIXELS.standardised(rotate(PIXELS.restored(upright).expand(len(angles), -1, -1, -1), angles))
        assert angles[(copies - image).square().flatten(1).sum(1).argmin()].abs() < 0.55


def test_sixes_without_validation() -> None:
    problem = Sixes(validation_share=0.0).load(SEED)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 282, "test": 80}
    assert len(Sixes(validation_share=0.999).load(SEED).splits["train"]) == 2


@pytest.mark.usefixtures("standins")
def test_sixes_of_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_mnist()
    problem = Sixes(source="mnist", validation_share=0.0).load(SEED)
    assert problem.variant == "partial"
    for split, rows in (("train", slice(60)), ("test", slice(60, None))):
        expected = [image for image, label in zip(digits.images[rows], digits.labels[rows], strict=True) if label == 6]
        examples = problem.splits[split]
        assert len(examples) == 2 * len(expected)
        for number, image in enumerate(expected):
            upright, turned = (PIXELS.restored(examples.x[i])[0] * 255 for i in (number, len(expected) + number))
            assert upright.round().tolist() == image.tolist()
            assert turned.round().tolist() == [row[::-1] for row in image.tolist()[::-1]]
    assert len(Sixes(source="mnist").files()) == 4
    assert Sixes().files() == ()
    monkeypatch.setattr("invbench.datasets.sixes.SIX", 11)
    with pytest.raises(UserError, match="0 training and 0 test sixes"):
        Sixes(source="mnist").load(SEED)


def test_sixes_are_not_turned_by_a_quarter() -> None:
    with pytest.raises(UserError, match=r"max_rotation.*less than"):
        Sixes.parse({"max_rotation": 1.6}, source="settings")


@pytest.mark.realdata
def test_real_sixes() -> None:
    problem = Sixes(source="mnist").load(SEED)
    assert problem.variant == "full"
    assert sum(len(problem.splits[name]) for name in ("train", "validation")) == 2 * 5918
    assert len(problem.splits["test"]) == 2 * 958


# --- shifted digits --------------------------------------------------------------------------------------------------


def shifts_of(images: Tensor, digits: Tensor) -> list[tuple[int, int]]:
    """Find where on black (N, side, side) the digits (N, 8, 8) are, and nothing else: the least shifts that fit."""
    torch.testing.assert_close(images.sum((1, 2)), digits.sum((1, 2)))
    windows = images.unfold(1, 8, 1).unfold(2, 8, 1)
    fits = torch.isclose(windows, digits[:, None, None], atol=1e-5).flatten(3).all(3)
    margin = windows.shape[1] // 2
    shifts = [[(left - margin, top - margin) for top, left in one.nonzero().tolist()] for one in fits]
    return [min(one, key=lambda shift: max(map(abs, shift))) for one in shifts]


@pytest.mark.parametrize("test_shift", [None, 3])
def test_shifted_digits_are_whole(test_shift: int | None) -> None:
    problem = ShiftedDigits(side=14, max_shift=1, test_shift=test_shift).load(SEED)
    upright = SmallDigits(max_rotation=0.0).load(SEED)
    assert problem.input_shape == (1, 14, 14)
    for name, split in problem.splits.items():
        plain = upright.splits[name]
        assert torch.equal(split.y, plain.y)
        images, digits = (PIXELS.restored(part.inputs())[:, 0] for part in (split, plain))
        shifts = shifts_of(images, digits)
        farthest = [max(map(abs, shift)) for shift in shifts]
        if name == "test" and test_shift:
            assert set(farthest) <= {1, 2, 3}, "a digit with black edges may look less far"
            assert farthest.count(1) < 0.05 * len(farthest)
            assert {abs(right) for right, _ in shifts} == {abs(down) for _, down in shifts} == {0, 1, 2, 3}
        else:
            assert set(shifts) == {(right, down) for right in (-1, 0, 1) for down in (-1, 0, 1)}
    largest = (test_shift or 1) * 20 / 13
    widths = symmetry_of(problem).half_widths
    assert widths == pytest.approx({"translation_x": largest, "translation_y": largest})


@pytest.mark.parametrize(("name", "axis"), [("translation_x", 3), ("translation_y", 2)])
@pytest.mark.parametrize("side", [16, 28])
def test_a_pixel_in_units_of_the_generators(name: str, axis: int, side: int) -> None:
    """The generator moves images by whole pixels, as the half-widths say."""
    problem = ShiftedDigits(side=side, max_shift=1, validation_share=0.0).load(SEED)
    images = problem.splits["test"].inputs()[:10]
    pixels = side // 2 - 5
    magnitude = pixels * symmetry_of(problem).half_widths[name]
    for sign in (-1, 1):
        matrices = exponential(torch.full((10, 1), sign * magnitude), basis(problem, [name]))
        moved = action(problem)(images, matrices)
        torch.testing.assert_close(moved, images.roll(-sign * pixels, axis), rtol=0, atol=1e-4)


def test_shifted_digits_of_a_seed() -> None:
    first, again, other = (ShiftedDigits().load(stream(seed, "data")) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert ShiftedDigits(side=8, max_shift=0).load(SEED).input_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_shift": 5}, "can be shifted by 4 pixels at most where side is 16"),
        ({"test_shift": 5}, "can be shifted by 4 pixels at most where side is 16"),
        ({"test_shift": 4}, "test_shift must be larger than max_shift"),
        ({"side": 17}, "multiple of 2"),
    ],
)
def test_shifts_that_do_not_fit(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShiftedDigits.parse(settings, source="settings")
