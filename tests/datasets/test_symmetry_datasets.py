"""Construction of the datasets whose symmetry is known, and that it is one."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor

from invbench.components.affine import action, basis, exponential
from invbench.components.images import rotate
from invbench.core.data import Dataset, Problem, Symmetry
from invbench.core.task import Regression
from invbench.datasets._mnist import load_mnist
from invbench.datasets._rotation import PIXELS
from invbench.datasets._small_digits import load_small_digits
from invbench.datasets.digits import SmallDigits
from invbench.datasets.discrete_rotation import DiscreteRotation, law
from invbench.datasets.lorentz import Lorentz, lorentz_generators, mass_squared
from invbench.datasets.shifted_digits import ShiftedDigits
from invbench.datasets.sixes import Sixes
from invbench.datasets.two_body import TwoBody, distance_later, later
from invbench.errors import UserError
from invbench.seeding import stream

SEED = stream(0, "data")


def symmetry_of(problem: Problem) -> Symmetry:
    assert problem.symmetry is not None
    return problem.symmetry


def algebra_of(problem: Problem) -> NDArray[np.float64]:
    """Return the generators (k, d, d)."""
    algebra = symmetry_of(problem).algebra
    assert algebra is not None
    assert algebra.shape[1:] == 2 * problem.input_shape
    return algebra.double().numpy()


def numbers(problem: Problem, split: str = "test") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return inputs and targets of a split in double precision."""
    part = problem.splits[split]
    return part.inputs().double().numpy(), part.y.double().numpy()


SMALL = {"train_examples": 400, "validation_examples": 100, "test_examples": 300}
GENERATED = [
    DiscreteRotation(examples=400, validation_examples=100, test_examples=300), TwoBody(**SMALL), Lorentz(**SMALL),
]  # fmt: skip


@pytest.mark.parametrize("dataset", GENERATED, ids=lambda dataset: type(dataset).__name__)
def test_generated_splits_are_disjoint_and_of_a_seed(dataset: Dataset) -> None:
    first, again, other = (dataset.load(stream(seed, "data")) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert {name: len(split) for name, split in first.splits.items()} == {"train": 400, "validation": 100, "test": 300}
    rows = [tuple(row) for split in first.splits.values() for row in split.inputs().tolist()]
    assert len(set(rows)) == 800
    assert first.variant == "synthetic"
    without = type(dataset).parse({"validation_examples": 0, "test_examples": 5}, source="settings")
    assert set(without.load(SEED).splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (DiscreteRotation, {"order": 0}, "order"),
        (TwoBody, {"smallest_radius": 2.0}, "largest_radius must not be less than smallest_radius"),
        (TwoBody, {"orbit_noise": 0.5}, "orbit_noise"),
        (Lorentz, {"smallest_mass": 1.0}, "largest_mass must be larger than smallest_mass"),
        (Lorentz, {"particles": 0}, "particles"),
    ],
)
def test_settings_without_sense(dataset: type[Dataset], settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        dataset.parse(settings, source="settings")
    assert "\n" not in str(error.value)


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


# --- discrete rotation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 3, 7])
def test_discrete_rotation_is_the_formula(order: int) -> None:
    x, y = numbers(DiscreteRotation(order=order, examples=2, test_examples=300).load(SEED))
    for (first, second, third), target in zip(x, y, strict=True):
        angle = math.atan2(second, first)
        while angle < 0:
            angle += 2 * math.pi / order
        while angle >= 2 * math.pi / order:
            angle -= 2 * math.pi / order
        assert target == pytest.approx(third / (1 + angle), rel=1e-6)


def test_discrete_rotation_has_its_symmetries_and_no_others() -> None:
    problem = DiscreteRotation(examples=2, test_examples=300).load(SEED)
    x, y = numbers(problem)
    (generator,) = algebra_of(problem)
    step = problem.facts["symmetry_step"]
    assert step == pytest.approx(2 * math.pi / 7)
    for number in (1, 3, -2):
        np.testing.assert_allclose(law(x @ expm(number * step * generator).T, 7), y, atol=1e-5)
    for between in (0.5, 1.3):
        changed = law(x @ expm(between * step * generator).T, 7)
        assert np.mean(np.abs(changed - y)) > 0.05


def test_discrete_rotation_default_sizes() -> None:
    problem = DiscreteRotation().load(SEED)
    assert [len(split) for split in problem.splits.values()] == [20_000, 2_000, 5_000]
    assert np.cov(numbers(problem, "train")[0].T) == pytest.approx(np.eye(3), abs=0.05)


# --- two bodies ------------------------------------------------------------------------------------------------------


def forces(_: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton's law for both bodies, each by itself."""
    first, first_momentum, second, second_momentum = state.reshape(4, 2)
    pull = (second - first) / np.linalg.norm(second - first) ** 3
    return np.concatenate([first_momentum, pull, second_momentum, -pull])


def test_two_bodies_move_by_newtons_law() -> None:
    """A numerical integration of all eight coordinates."""
    dataset = TwoBody(train_examples=2, validation_examples=0, test_examples=12)
    x, y = numbers(dataset.load(SEED))
    for state, target in zip(x, y, strict=True):
        end = solve_ivp(forces, (0, dataset.horizon), state, "DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
        assert target == pytest.approx(np.linalg.norm(end[:2] - end[4:6]), abs=1e-6)
        ours = later((state[:4] - state[4:])[None], dataset.horizon)[0]
        np.testing.assert_allclose(ours, end[:4] - end[4:], atol=1e-8)


def test_two_bodies_keep_energy_and_angular_momentum() -> None:
    x, _ = numbers(TwoBody(**SMALL).load(SEED), "train")
    start = x[:, :4] - x[:, 4:]

    def kept(state: NDArray[np.float64]) -> NDArray[np.float64]:
        place, velocity = state[:, :2], state[:, 2:]
        energy = (velocity**2).sum(1) / 4 - 1 / np.linalg.norm(place, axis=1)
        return np.stack([energy, place[:, 0] * velocity[:, 1] - place[:, 1] * velocity[:, 0]])

    for time in (0.0, 0.3, 4.0, 1000.0):
        np.testing.assert_allclose(kept(later(start, time)), kept(start), rtol=1e-9)
    np.testing.assert_allclose(later(later(start, 3.0), -3.0), start, atol=1e-9)
    np.testing.assert_allclose(later(later(start, 3.0), 4.0), later(start, 7.0), atol=1e-9)


def test_two_bodies_may_be_turned() -> None:
    dataset = TwoBody(**SMALL)
    problem = dataset.load(SEED)
    x, y = numbers(problem)
    assert np.array_equal(x[:, :4], -x[:, 4:])
    (generator,) = algebra_of(problem)
    for angle in (0.3, 2.0, -1.0):
        turned = x @ expm(angle * generator).T
        np.testing.assert_allclose(turned[:, 4:6], x[:, 4:6] @ expm(angle * generator[:2, :2]).T, atol=1e-12)
        np.testing.assert_allclose(distance_later(turned, dataset.horizon), y, atol=1e-6)
    assert isinstance(problem.task, Regression)
    assert (problem.task.mean, problem.task.std) == pytest.approx(
        (problem.splits["train"].y.mean().item(), problem.splits["train"].y.std().item()), rel=1e-5
    )


def test_two_bodies_on_circles() -> None:
    """Without noise the distance stays, and the period is 4 π R^(3/2)."""
    circles = TwoBody(smallest_radius=1.0, largest_radius=1.0, orbit_noise=0.0, horizon=4 * np.pi, train_examples=2)
    problem = circles.load(SEED)
    x, y = numbers(problem)
    np.testing.assert_allclose(y, 2, atol=1e-6)
    np.testing.assert_allclose(later(x[:, :4] - x[:, 4:], 4 * np.pi), x[:, :4] - x[:, 4:], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x[:, :2], axis=1), 1, atol=1e-6)
    assert (x[:, 0] * x[:, 3] - x[:, 1] * x[:, 2] > 0).all(), "counter-clockwise"


# --- four-vectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 2, 3])
def test_lorentz_is_the_formula(particles: int) -> None:
    dataset = Lorentz(particles=particles, smallest_mass=0.2, largest_mass=0.8, train_examples=2, test_examples=2000)
    problem = dataset.load(SEED)
    assert problem.input_shape == (4 * particles,)
    x, y = numbers(problem)
    for event, label in zip(x[:200], y[:200], strict=True):
        total = [sum(event[4 * particle + axis] for particle in range(particles)) for axis in range(4)]
        for particle in range(particles):
            energy, *momentum = event[4 * particle : 4 * particle + 4]
            assert 0.2**2 - 1e-4 < energy**2 - sum(q**2 for q in momentum) < 0.8**2 + 1e-4
        mass = total[0] ** 2 - total[1] ** 2 - total[2] ** 2 - total[3] ** 2
        assert label == (mass > problem.facts["threshold"])
    assert y.mean() == pytest.approx(0.5, abs=0.04)
    assert (Lorentz(particles=particles, threshold=1e6, train_examples=2).load(SEED).splits["test"].y == 0).all()


def test_lorentz_generators() -> None:
    """They are those that leave the metric, and are six; boosts and rotations have the usual signs."""
    metric = np.diag([1.0, -1, -1, -1])
    generators = lorentz_generators().numpy()
    for generator in generators:
        assert np.array_equal(generator.T @ metric + metric @ generator, np.zeros((4, 4)))
    assert np.linalg.matrix_rank(generators.reshape(6, 16)) == 6
    np.testing.assert_allclose(expm(generators[0])[:2, 0], [math.cosh(1), math.sinh(1)])
    np.testing.assert_allclose(expm(math.pi / 2 * generators[5]) @ [0, 1, 0, 0], [0, 0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("particles", [1, 2, 4])
def test_lorentz_transformations_leave_the_mass(particles: int) -> None:
    problem = Lorentz(particles=particles, **SMALL).load(SEED)
    x, _ = numbers(problem)
    mass = mass_squared(x.reshape(-1, particles, 4))
    for seed in range(4):
        coefficients = np.random.default_rng(seed).normal(0, 0.5, 6)
        changed = x @ expm(np.einsum("k,kij->ij", coefficients, algebra_of(problem))).T
        assert np.abs(changed - x).max() > 0.1
        np.testing.assert_allclose(mass_squared(changed.reshape(-1, particles, 4)), mass, rtol=1e-9, atol=1e-9)
