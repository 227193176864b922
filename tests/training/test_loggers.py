"""Curves that go elsewhere too: the same numbers in each, whatever the method."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from cells import run_until, small_config

from invbench.errors import UserError
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.training.loggers import LOGGERS, Loggers
from invbench.training.runner import run_one

CELL = small_config("and_mask", "digits", trainer__steps=6, trainer__evaluate_every=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder in which the run will be."""
    return tmp_path / CELL.spec.run_id


def test_csv(tmp_path: Path, folder: Path) -> None:
    run_one(CELL, Options(out=tmp_path, loggers=("csv",)))
    curves = pd.read_csv(folder / "curves.csv")
    pd.testing.assert_frame_equal(curves, pd.read_parquet(folder / "curves.parquet"), check_dtype=False)


def test_a_run_that_is_taken_up_goes_on(tmp_path: Path) -> None:
    """The rows from before are there once, those that were logged after the last checkpoint too."""
    folder = RunFolder(tmp_path)
    run_until(CELL, folder, 3)
    loggers = Loggers(("csv", "csv"), RunFolder(tmp_path), CELL.spec)
    run_until(CELL, folder, 6, loggers)
    assert pd.read_csv(tmp_path / "curves.csv")["step"].tolist() == [2, 4, 6]


def test_tensorboard(tmp_path: Path, folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_one(CELL, Options(out=tmp_path, loggers=("tensorboard",)))
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    curves = pd.read_parquet(folder / "curves.parquet")
    scalars = events.Scalars("test_accuracy")
    assert [event.step for event in scalars] == curves["step"].tolist()
    assert [event.value for event in scalars] == pytest.approx(curves["test_accuracy"].tolist())


@pytest.mark.slow
def test_mlflow(tmp_path: Path) -> None:
    """In a process of its own, since the package configures the whole process."""
    pytest.importorskip("mlflow")
    folder = _bench(tmp_path, "mlflow")
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        rows = store.execute("select value from metrics where key = 'test_accuracy' order by step").fetchall()
    values = [value for (value,) in rows]
    assert values == pytest.approx(pd.read_parquet(folder / "curves.parquet")["test_accuracy"].tolist())


def test_wandb_stays_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (stored,) = (_bench(tmp_path, "wandb") / "wandb").glob("offline-run-*/*.wandb")
    assert b"test_accuracy" in stored.read_bytes()


def _bench(out: Path, logger: str) -> Path:
    """Run the command in a process of its own and return the folder of its run."""
    command = [sys.executable, "-c", "from invbench.cli import main; main()", "run", "-m", "erm", "-d", "digits"]
    settings = ("trainer.epochs=null", "trainer.steps=4", "trainer.evaluate_every=2", "backbone.width=2")
    words = [word for setting in settings for word in ("--set", setting)]
    variables = os.environ | {"WANDB_MODE": "offline"}
    command += [*words, "--out", str(out), "--logger", logger]
    subprocess.run(command, check=True, timeout=300, capture_output=True, env=variables)
    (folder,) = out.glob("*/")
    return folder


def test_mistakes_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no logger 'tensorbord'; did you mean 'tensorboard'"):
        Loggers(("tensorbord",), RunFolder(tmp_path), CELL.spec)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'invbench\[wandb\]'"):
        Loggers(("wandb",), RunFolder(tmp_path), CELL.spec)
    assert set(LOGGERS) == {"csv", "tensorboard", "wandb", "mlflow"}
