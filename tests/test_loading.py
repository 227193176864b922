"""Runs of one process share their data, as long as these are the same and fit into some memory."""

from pathlib import Path

import numpy as np
import pytest
from cells import small_cell

from invbench import loading
from invbench.loading import load_problem
from invbench.spec import resolve


def test_runs_that_agree_in_their_data_share_them() -> None:
    first = load_problem(small_cell("erm", "spirals"))
    assert load_problem(small_cell("and_mask", "spirals", trainer__steps=3)) is first
    assert load_problem(small_cell("erm", "spirals", 1)) is not first
    assert load_problem(small_cell("erm", "spirals", dataset__examples=64)) is not first
    held_out = load_problem(small_cell("erm", "spirals", trainer__held_out_environment=1))
    assert held_out.environments == first.environments - 1
    assert load_problem(small_cell("erm", "spirals")) is first


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    sprites = tmp_path / "sprites.npz"
    draw = np.random.default_rng(0)

    def written() -> None:
        np.savez(sprites, **{name: draw.random((3, 32, 32), dtype=np.float32) for name in ("mario", "iggy")})

    settings = {"dataset.sprites": str(sprites), "dataset.train_examples": 8, "dataset.test_examples": 4}
    cell = resolve("erm", "mario_iggy", 0, settings)
    written()
    first = load_problem(cell)
    assert load_problem(cell) is first
    written()
    assert load_problem(cell).fingerprint != first.fingerprint


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "KEPT_BYTES", 0)
    first = load_problem(small_cell("erm", "spirals"))
    assert load_problem(small_cell("erm", "spirals")) is first, "the last one stays"
    load_problem(small_cell("erm", "spirals", 1))
    assert len(loading._kept) == 1
    assert load_problem(small_cell("erm", "spirals")) is not first
