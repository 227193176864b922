"""Geometry and random changes of images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invbench.components.images import angle_bins, random_crop, random_flip, rotate, wrapped


def test_quarter_turns_are_exact_and_counter_clockwise() -> None:
    images = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    for turns in range(4):
        turned = rotate(images, torch.full((2,), turns * torch.pi / 2, dtype=torch.float64))
        assert torch.allclose(turned, torch.rot90(images, turns, dims=(-2, -1)), atol=1e-6)


def test_each_image_gets_its_own_angle_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images, angles = torch.rand(5, 1, 6, 6), torch.linspace(-3, 3, 5)
    together = rotate(images, angles)
    monkeypatch.setattr("invbench.components.images.CHUNK", 2)
    assert torch.equal(rotate(images, angles), together)
    alone = torch.cat([rotate(images[i : i + 1], angles[i : i + 1]) for i in range(5)])
    assert torch.allclose(alone, together, atol=1e-6)


def test_a_window_is_the_middle_of_the_rotated_image() -> None:
    images, angles = torch.rand(4, 2, 12, 12), torch.linspace(-3, 3, 4)
    assert torch.allclose(rotate(images, angles, window=6), rotate(images, angles)[..., 3:9, 3:9], atol=1e-5)


def test_bytes_are_scaled() -> None:
    images = torch.randint(0, 256, (3, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(rotate(images, torch.ones(3)), rotate(images / 255, torch.ones(3)))


@given(st.floats(-50, 50))
def test_wrapped_angles_are_the_same_rotations(angle: float) -> None:
    value = wrapped(torch.tensor([angle], dtype=torch.float64))
    assert -torch.pi <= value.item() < torch.pi
    assert np.exp(1j * value.item()) == pytest.approx(np.exp(1j * angle), abs=1e-6)


def test_angle_bins() -> None:
    angles = torch.tensor([-2.0, -1.01, -0.99, 0.5, 1.5, 2.0])
    assert angle_bins(angles, 4, 2.0).tolist() == [0, 0, 1, 2, 3, 3]
    assert angle_bins(torch.zeros(3), 2, 0.0).tolist() == [0, 0, 0]


def test_random_crops_are_shifts_of_the_padded_image() -> None:
    images, fill = torch.rand(200, 3, 8, 8), torch.tensor([-1.0, -2.0, -3.0])[:, None, None]
    crops = random_crop(images, 2, fill)
    padded = fill.repeat(200, 1, 12, 12)
    padded[:, :, 2:10, 2:10] = images
    shifts = [
        (top, left)
        for i in range(200)
        for top in range(5)
        for left in range(5)
        if torch.allclose(crops[i], padded[i, :, top : top + 8, left : left + 8], atol=1e-6)
    ]
    assert len(shifts) == 200, "each image is exactly one shift"
    assert len(set(shifts)) == 25, "and all shifts occur"


def test_random_flips() -> None:
    images = torch.rand(400, 1, 3, 4)
    flipped = random_flip(images)
    turned = (flipped == images.flip(-1)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ turned).all()
    assert 150 < turned.sum() < 250
