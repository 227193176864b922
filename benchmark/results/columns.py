"""Name the columns of a table of runs that say what a run is, and tell which runs are alike."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

SECTIONS = ("method.", "dataset.", "backbone.", "trainer.")
PROBLEM = ("dataset.", "data.variant")
"""Beginnings of the columns that, besides the dataset's name, make another problem; methods are compared on one."""
TRAINING = ("dataset.environment_from", "dataset.nuisance_from", "dataset.second_stage_share", "dataset.task")
"""Settings of a dataset that change nothing in what is tested: what methods get of the training data, and a task that
null would take, too; another one has other metrics."""
HELD_OUT = "trainer.held_out_environment"
"""The setting of runs that leave an environment out; they serve to select settings and are in no mean."""


def keys_of(runs: pd.DataFrame) -> list[str]:
    """Return the columns in which runs must agree to be averaged."""
    settings = [str(name) for name in runs.columns if str(name).startswith(SECTIONS)]
    variant = ["data.variant"] if "data.variant" in runs else []
    return ["method", "dataset", "backbone", "protocol", *settings, *variant]


def problem_of(columns: Iterable[object]) -> list[str]:
    """Return the columns in which rows must agree to be compared."""
    names = [name for name in map(str, columns) if name.startswith(PROBLEM)]
    return ["dataset", *(name for name in names if name not in TRAINING)]


def as_text(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return columns as text, by which pandas can group lists and gaps too; only a missing value is empty."""
    return pd.DataFrame({name: _texts(rows[name]) for name in names}, index=rows.index)


def _texts(values: pd.Series) -> list[str]:
    """Write values as text; each different one once, of which a long column has few."""
    if pd.api.types.is_object_dtype(values.dtype):  # lists have no hash, and 1 has that of true
        return list(map(_text, values))
    places, different = pd.factorize(values, use_na_sentinel=False)
    texts = list(map(_text, different))
    return [texts[place] for place in places]


def _text(value: Any) -> str:
    """Write a value as text; a whole number has no point, since pandas makes floats of a column with gaps."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    if isinstance(value, list | tuple) and value and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return "" if missing(value) else str(value) or "''"


def joined(rows: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Join the columns into one text for each row; texts are equal where all columns are."""
    return pd.Series(["\n".join(texts) for texts in as_text(rows, names).to_numpy()], index=rows.index, dtype=object)


def settings_of(rows: pd.DataFrame) -> list[str]:
    """Return the columns of settings, protocol and backbone."""
    return [name for name in map(str, rows) if name.startswith(SECTIONS) or name in ("backbone", "protocol")]


def differing(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each row the settings, if not missing, in which the rows of its method and dataset differ."""
    names = settings_of(rows)
    if not names:
        return [{} for _ in range(len(rows))]
    group = joined(rows, ["method", "dataset"]).to_numpy()
    differs = as_text(rows, names).groupby(group).transform("nunique") > 1
    pairs = zip(rows[names].to_dict("records"), differs.to_dict("records"), strict=True)
    return [{name: row[name] for name in names if differ[name] and not missing(row[name])} for row, differ in pairs]


def missing(value: Any) -> bool:
    """Tell whether a value is missing: None, NA or NaN."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
