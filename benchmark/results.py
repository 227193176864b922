"""Records as pandas tables."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from invbench.errors import UserError
from invbench.records import RunFolder, run_folders

IDENTITY = ("run_id", "status", "method", "dataset", "backbone", "seed", "protocol")


def load_results(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row per run found at or below the given folders, finished or not.

    Columns: run_id, status, kind, method, dataset, backbone, seed, protocol; each setting by its dotted name, e.g.
    `method.threshold`; each metric, e.g. `test_accuracy` (missing unless the run is done); `data.metric`, the one that
    the task is judged by; `data.variant`, `data.fingerprint`; `cost.wall_seconds`, `cost.seconds_per_step`,
    `cost.peak_memory_bytes`; `invariance.rotation` and so on, the mean change of the prediction over the range of a
    generator, and `invariance.quarter_turns` and its like; `path`.

    Raises:
        UserError: a folder does not exist.
    """
    return pd.DataFrame([_row(folder) for folder in folders(paths)])


def load_curves(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Every measurement of every run, one row each, with the run's run_id, method, dataset and seed in front.

    Columns: step, epoch; the metrics; objective, its mean since the last row; of the last step `risk.<environment>`,
    penalty (with its weight) and gradient_norm; `coefficient.<input>` of a linear problem; `state.<name>`, the method's
    numbers, such as an adaptive rule's weights; `width.<generator>` and its like, what is learned besides the weights.
    """
    tables = []
    for folder in folders(paths):
        spec = folder.read_spec()
        if spec is not None and folder.curves.exists():
            try:
                curves = pd.read_parquet(folder.curves)
            except (OSError, pa.ArrowException):
                warnings.warn(f"{folder.curves} cannot be read and is left out", stacklevel=2)
                continue
            for place, name in enumerate(("method", "dataset", "seed")):
                curves.insert(place, name, getattr(spec, name))
            curves.insert(0, "run_id", folder.path.name)
            tables.append(curves)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def folders(paths: str | Path | Iterable[str | Path]) -> list[RunFolder]:
    """Every run at or below the paths. Raises UserError for a folder that does not exist."""
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in listed:
        if not Path(path).is_dir():
            raise UserError(f"no results folder {path}; runs write to 'results' unless --out says otherwise")
    return [folder for path in listed for folder in run_folders(Path(path))]


def _row(folder: RunFolder) -> dict[str, Any]:
    spec, record = folder.read_spec(), folder.read_record()
    row: dict[str, Any] = {"run_id": folder.path.name, "status": folder.status(), "kind": record and record.kind}
    if spec is not None:
        row |= {name: getattr(spec, name) for name in IDENTITY[2:]} | spec.flat()
    if record is not None:
        row |= record.metrics
        row |= _invariance(record.invariance)
        row |= {
            f"data.{name}": record.data[name] for name in ("metric", "variant", "fingerprint") if name in record.data
        }
        row |= {f"cost.{name}": value for name, value in record.cost.items()}
    return row | {"path": str(folder.path)}


def _invariance(measured: dict[str, Any]) -> dict[str, float]:
    profiles = measured.get("generators", {})
    means = {name: float(np.mean(profile["changes"])) for name, profile in profiles.items()}
    exact = {name: value for name, value in measured.items() if isinstance(value, float)}
    return {f"invariance.{name}": value for name, value in (means | exact).items()}
