"""Corruptions are those of CIFAR-10-C, statement by statement, and the environments are what they say."""

from typing import Any

import numpy as np
import pytest
import torch

import invbench
from invbench.datasets.corrupted_digits import CORRUPTIONS, CorruptedDigits
from invbench.errors import UserError

IMAGES = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def corrupted(name: str, severity: int) -> Any:
    names = np.array([name] * len(IMAGES))
    dataset = CorruptedDigits(severity=severity)
    return dataset.corrupted(IMAGES, names, np.random.default_rng(0)).double().numpy()


@pytest.mark.parametrize("severity", [1, 5])
def test_corruptions_one_by_one(severity: int) -> None:
    x = IMAGES.double().numpy()
    constant = {name: constants[severity - 1] for name, (_, constants) in CORRUPTIONS.items()}
    assert np.allclose(corrupted("clean", severity), x)
    assert np.allclose(corrupted("brightness", severity), np.minimum(x + constant["brightness"], 1), atol=1e-6)
    for image, pale in zip(x, corrupted("contrast", severity), strict=True):
        assert np.allclose(pale, (image - image.mean()) * constant["contrast"] + image.mean(), atol=1e-6)
    middle = (x > 0.35) & (x < 0.65)  # where nothing is clipped
    noise = (corrupted("gaussian_noise", severity) - x)[middle]
    assert noise.std() == pytest.approx(constant["gaussian_noise"], rel=0.05)
    speckle = ((corrupted("speckle_noise", severity) - x) / x)[middle]
    assert speckle.std() == pytest.approx(constant["speckle_noise"], rel=0.05)
    shot = (corrupted("shot_noise", severity) - x)[middle]
    assert shot.var() == pytest.approx(x[middle].mean() / constant["shot_noise"], rel=0.1)
    changed = corrupted("impulse_noise", severity) != IMAGES.double().numpy()
    assert changed.mean() == pytest.approx(constant["impulse_noise"], rel=0.15)
    assert set(np.unique(corrupted("impulse_noise", severity)[changed])) == {0.0, 1.0}


def test_the_blur_is_a_gaussian_filter() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1.0
    blurred = CorruptedDigits(severity=5).corrupted(point, np.array(["gaussian_blur"]), np.random.default_rng(0))[0, 0]
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    kernel /= kernel.sum()
    assert np.allclose(blurred, np.outer(kernel, kernel), atol=1e-6)


def test_environments_are_corruptions() -> None:
    problem = invbench.load_problem("corrupted_digits", settings={"dataset.test_environments": ("contrast",)})
    assert problem.environments == 7
    assert problem.environment_names == (*sorted(set(CORRUPTIONS) - {"contrast"}), "contrast")
    test = problem.splits["test"]
    assert test.env is not None
    assert test.env.unique().tolist() == [7]
    assert 220 <= len(test) <= 230
    assert test.inputs().var((1, 2, 3)).mean() < 0.1 * problem.splits["train"].inputs().var((1, 2, 3)).mean()


@pytest.mark.parametrize(
    ("names", "message"),
    [(("contrst",), "did you mean 'contrast'"), ((), "must name some"), (tuple(CORRUPTIONS), "and not all")],
)
def test_wrong_corruptions_are_named(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        invbench.load_problem("corrupted_digits", settings={"dataset.test_environments": names})
