"""Any table with a binary label and continuous nuisances, such as a mass that the classifier must not sculpt.

A table is a parquet or csv file with one row an event (the layout of Tan's `invariant_reps`): `_label` is 1 for signal
and 0 for background; the columns named by `nuisance` are what the score should not depend on; other columns that begin
with `_` are auxiliary and left out; all the rest are features, with missing values replaced by 0. Nuisance columns are
never features. Environments are the intervals between quantiles of the first nuisance over all events.

Without a table one is generated, made to be sculpted (y: signal 1, background 0, equally often):

    _mass    beam-constrained mass in GeV. Signal N(5.279, 0.003); background 5.20 + 0.09 Beta(1, 1.5), falling
    _energy  energy difference in GeV. Signal N(0, 0.03); background -0.25 + 0.5 Beta(1, 1.3), falling
    shape_0..7        N(0.3 y, 1): harmless
    kinematic_0..5    N(0.2 y + 0.8 exp(-½ ((_mass - 5.279) / 0.01)²), 1): an event near the peak looks like signal
    calorimeter_0..2  N(0.2 y + 0.8 exp(-½ (_energy / 0.08)²), 1)
    noise_0..2        N(0, 1)

A classifier that reads the masses off the features gains accuracy, and piles background up under the signal peak.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from invbench.core.arrays import LARGEST
from invbench.core.data import Dataset, Problem, Split, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification
from invbench.datafiles.checksums import is_regular
from invbench.datafiles.release import at_home
from invbench.datasets._tables import check_names, listing, numbers, read_numbers, separator_hint, too_large
from invbench.errors import UserError, did_you_mean
from invbench.seeding import children

LABEL = "_label"
SIGNAL_MASS, SIGNAL_WIDTH = 5.279, 0.003
GENERATED = ("_mass", "_energy")


@register_dataset("tabular_nuisance")
class TabularNuisance(Dataset):
    """Signal and background in a table, with columns that the score should not tell."""

    display_name: ClassVar[str] = "Tabular nuisance"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "nuisance", "environments")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"environments": "nuisance_bins"}}
    citation: ClassVar[str] = "layout as in Tan, invariant_reps"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.examples": 400,
        "dataset.bins": 3,
        "backbone.width": 12,
        "trainer.batch_size": 50,
    }

    table: str | None = setting(None, "path of a .parquet or .csv file; null generates a table")
    nuisance: tuple[str, ...] = setting((), "columns to protect; empty takes _mass and _energy of the generated table")
    environments: Literal["none", "nuisance_bins"] = setting("none", "quantile bins of the first nuisance")
    bins: int = setting(8, "number of those bins", ge=2)
    standardise: bool = setting(True, "scale features by mean and deviation of the training split")
    validation_fraction: float = setting(0.1, "part of the rows", ge=0, lt=1)
    test_fraction: float = setting(0.3, "part of the rows", gt=0, lt=1)
    examples: int = setting(50_000, "rows of the generated table", ge=10)

    def files(self) -> tuple[Path, ...]:
        return (path,) if self.table is not None and is_regular(path := at_home(self.table)) else ()

    def load(self, seed: np.random.SeedSequence) -> Problem:
        order, content = (np.random.default_rng(stream) for stream in children(seed, 2))
        frame = _generated(self.examples, content) if self.table is None else self._read(at_home(self.table))
        nuisance = self._nuisance_columns(list(frame.columns))
        bounds = self._bounds(len(frame))
        whole, missing = self._split_of(frame, nuisance)
        rows = np.split(order.permutation(len(frame)), bounds)
        splits = {
            name: whole.rows(torch.from_numpy(index))
            for name, index in zip(("train", "validation", "test"), rows, strict=True)
            if len(index)
        }
        if self.standardise:
            std, mean = torch.std_mean(splits["train"].inputs(), dim=0)
            scale = torch.where(std > 0, std, 1.0)
            splits = {name: Split((s.inputs() - mean) / scale, s.y, s.env, s.nuisance) for name, s in splits.items()}
        facts = {"signal_fraction": whole.y.mean().item(), "missing_values": float(missing)}
        return Problem(splits, BinaryClassification(), "vector", "synthetic" if self.table is None else "full", facts)

    def _read(self, path: Path) -> pd.DataFrame:
        return read_numbers(path, "dataset.table", self._needed, _advice)

    def _needed(self, names: list[str]) -> list[str]:
        """Choose which of a table's columns are read; the others may hold anything."""
        if LABEL not in names:
            hint = separator_hint(names)
            raise UserError(f"the table {self.table} has no column {LABEL}; it has {listing(names)}{hint}")
        check_names(names, str(self.table))
        protected = self._nuisance_columns(names)
        return [name for name in names if name == LABEL or name in protected or not name.startswith("_")]

    def _nuisance_columns(self, names: list[str]) -> list[str]:
        if not self.nuisance and self.table is not None:
            others = [name for name in names if name != LABEL]
            raise UserError(f"say which columns to protect: dataset.nuisance=[...], among {listing(others)}")
        chosen = list(self.nuisance or GENERATED)
        for name in chosen:
            if name not in names or name == LABEL:
                raise UserError(f"dataset.nuisance: no column '{name}' to protect{did_you_mean(name, names)}")
        return chosen

    def _bounds(self, count: int) -> list[int]:
        test, validation = round(self.test_fraction * count), round(self.validation_fraction * count)
        train = count - test - validation
        if train < 2 or test < 1:  # of one row nothing has a deviation
            raise UserError(
                f"{count} rows leave nothing to train or to test on; lower the fractions of the other splits"
            )
        return [train, train + validation]

    def _split_of(self, frame: pd.DataFrame, nuisance: list[str]) -> tuple[Split, int]:
        """Make the split of all events, and count missing feature values."""
        features = [name for name in frame.columns if not name.startswith("_") and name not in nuisance]
        x, z, y = (numbers(frame, names, _advice) for names in (features, nuisance, [LABEL]))
        if not features:
            raise UserError(f"the table has no features: every column begins with '_' or is {' or '.join(nuisance)}")
        y = y[:, 0]
        if not np.isin(y, (0, 1)).all():
            raise UserError(f"column {LABEL} must be 1 for signal and 0 for background")
        if len(np.unique(y)) < 2:
            raise UserError(f"column {LABEL} is the same in all {len(y)} rows; a table needs signal and background")
        if not np.isfinite(z).all():
            raise UserError(f"missing or infinite values in {' or '.join(nuisance)}; remove those rows")
        missing = np.isnan(x)
        x = np.where(missing, 0.0, x)
        if not np.isfinite(x).all():
            raise UserError("infinite values among the features; remove those rows or columns")
        for values, names in ((x, features), (z, nuisance)):
            if (large := np.abs(values).max(axis=0) > LARGEST).any():
                raise too_large(names[large.argmax()])
        env = None
        if self.environments == "nuisance_bins":
            bins = pd.qcut(z[:, 0], self.bins, labels=False, duplicates="drop")
            if not bins.max() > 0:  # nor where it is NaN: quantiles that are all the same bound nothing
                raise UserError(f"column {nuisance[0]} has too few values for {self.bins} bins; protect another first")
            env = torch.from_numpy(bins.astype(np.int64))
        protected = floats(z)
        return Split(
            floats(x),
            floats(y),
            env,
            protected[:, 0] if len(nuisance) == 1 else protected,
        ), int(missing.sum())


def _advice(name: str) -> str:
    return "labels are 0 or 1" if name == LABEL else "begin its name with '_' to leave it out"


def _generated(count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the table that the top of this file describes."""
    y = rng.integers(0, 2, size=count)
    mass = np.where(
        y == 1, rng.normal(SIGNAL_MASS, SIGNAL_WIDTH, size=count), 5.20 + 0.09 * rng.beta(1, 1.5, size=count)
    )
    energy = np.where(y == 1, rng.normal(0, 0.03, size=count), -0.25 + 0.5 * rng.beta(1, 1.3, size=count))
    near_mass = np.exp(-0.5 * ((mass - SIGNAL_MASS) / 0.01) ** 2)
    near_energy = np.exp(-0.5 * (energy / 0.08) ** 2)
    means = {f"shape_{i}": 0.3 * y for i in range(8)}
    means |= {f"kinematic_{i}": 0.2 * y + 0.8 * near_mass for i in range(6)}
    means |= {f"calorimeter_{i}": 0.2 * y + 0.8 * near_energy for i in range(3)}
    means |= {f"noise_{i}": np.zeros(count) for i in range(3)}
    features = {name: mean + rng.normal(size=count) for name, mean in means.items()}
    return pd.DataFrame({LABEL: y, "_mass": mass, "_energy": energy} | features)
