"""Risk and slopes over a learned width: numbers against a network that can be worked out, and the command."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from cells import small_config
from conftest import Bench

from invbench.analysis.width_study import learned_width, width_study
from invbench.errors import UserError
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training.restored import RestoredRun, load_run
from invbench.training.runner import run_one

RAWS = [-5.0, -1.0, 0.0, 1.0, 3.0]


@pytest.fixture(scope="module")
def mario(tmp_path_factory: pytest.TempPathFactory) -> RestoredRun:
    return run_of(tmp_path_factory.mktemp("mario"), "augerino", trainer__steps=3, method__regularisation=0.3)


def run_of(out: Path, method: str, dataset: str = "mario_iggy", **settings: object) -> RestoredRun:
    config = small_config(method, dataset, 0, trainer__dtype="float64", **settings)
    run_one(config, Options("cpu", out))
    return load_run(out / config.spec.run_id)


def test_slopes_are_those_of_the_curves(mario: RestoredRun) -> None:
    """By differences of values close together; the same random numbers at every value."""
    close = [raw + step for raw in RAWS for step in (-1e-4, 0, 1e-4)]
    study = width_study(mario, raws=close, batches=2)
    assert len(study) == 2 * len(close)
    for _, batch in study.groupby("batch"):
        for name in ("risk", "objective"):
            low, _, high = batch[name].to_numpy().reshape(-1, 3).T
            slope = batch[f"{name}_slope"].to_numpy()[1::3]
            assert (high - low) / 2e-4 == pytest.approx(slope, rel=0.05, abs=1e-4), "sampling has kinks"


def test_the_regulariser_is_what_the_objective_adds(mario: RestoredRun) -> None:
    """-λ‖w‖ for the width on the way and the others as learned; slope -λ w/‖w‖ σ(ρ)."""
    study = width_study(mario, raws=RAWS, batches=1)
    (part,) = [module for module in mario.model.modules() if hasattr(module, "raw")]
    raw = part.raw.detach().repeat(len(RAWS), 1)
    raw[:, part.names.index("rotation")] = torch.tensor(RAWS)
    widths = F.softplus(raw)
    rotation = widths[:, part.names.index("rotation")]
    added = (study["objective"] - study["risk"]).to_numpy()
    assert added == pytest.approx(-0.3 * widths.norm(dim=1).numpy())
    slope = (study["objective_slope"] - study["risk_slope"]).to_numpy()
    assert slope == pytest.approx((-0.3 * rotation / widths.norm(dim=1) * torch.tensor(RAWS).sigmoid()).numpy())
    assert study["width"].to_numpy() == pytest.approx(rotation.numpy())


def test_the_model_is_left_as_it_was(mario: RestoredRun) -> None:
    before = {name: value.clone() for name, value in mario.model.state_dict().items()}
    first = width_study(mario, "scale", raws=RAWS, batches=2)
    pd.testing.assert_frame_equal(first, width_study(mario, "scale", raws=RAWS, batches=2))
    assert not any(part.training for part in mario.model.modules())
    assert all(torch.equal(before[name], value) for name, value in mario.model.state_dict().items())


def test_what_has_no_such_width(mario: RestoredRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no width of 'rotatoin'.*rotation"):
        width_study(mario, "rotatoin")
    small = {"backbone.width": 2, "trainer.epochs": None, "trainer.steps": 1, "trainer.batch_size": 8}
    config = resolve("augerino+iga", "digits", 0, small)
    run_one(config, Options("cpu", tmp_path))
    with pytest.raises(UserError, match="a penalty on gradients, which this does not count"):
        width_study(load_run(tmp_path / config.spec.run_id))
    with pytest.raises(UserError, match="no widths; augerino does"):
        width_study(run_of(tmp_path, "erm", trainer__steps=1))


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    config = small_config("augerino", "digits", 0, trainer__steps=2)
    run_one(config, Options("cpu", tmp_path / "results"))
    command = ["analyze", "widths", "results", "--points", "3", "--batches", "2", "--out", "widths.png"]
    status, table, said = bench(*command)
    assert status == 0, said
    run = load_run(tmp_path / "results" / config.spec.run_id)
    assert f"{learned_width(run, 'rotation'):.3g}" in table
    kept = pd.read_csv(tmp_path / "results" / config.spec.run_id / "widths.csv")
    assert np.unique(kept["raw"]) == pytest.approx([-5, 0, 5])
    assert (tmp_path / "widths.png").stat().st_size > 10_000
