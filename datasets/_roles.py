"""Columns of a table that are no features: targets, environments, nuisances, weights and the names of splits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.arrays import SPLIT_NAME, named_splits, numbered
from invbench.core.data import floats
from invbench.datasets._columns import Column
from invbench.errors import UserError, brief, did_you_mean

MAX_LABELS = 1000
"""Most classes, environments or groups."""
MAX_SPLITS = 20


class Labels(NamedTuple):
    """Labels of rows: names in sorted order, and the place of each row's among them (N,)."""

    names: tuple[str, ...]
    numbers: NDArray[np.int64]


class Values(NamedTuple):
    """A column with a role: real numbers, or places among its different values (N,)."""

    column: Column
    array: NDArray[Any]

    def numbers(self) -> NDArray[np.float64]:
        """Return the rows' numbers (N,)."""
        places = self.array
        numbers: NDArray[np.float64] = places if is_real(self.column) else np.array(self.column.values, float)[places]
        return numbers

    def labels(self) -> Labels:
        """Return the rows' labels, of those that are there; whole numbers that are kept as real ones are integers."""
        there, places = np.unique(self.array, return_inverse=True)
        different = there.tolist() if is_real(self.column) else [(self.column.values or ())[i] for i in there]
        return Labels(tuple(str(int(one) if isinstance(one, float) else one) for one in different), places)


def type_of(column: Column) -> type[np.generic]:
    return np.float64 if is_real(column) else np.int64


def is_real(column: Column) -> bool:
    """Tell whether a column holds real numbers, or too many integers for categories."""
    return column.kind == "real" or (column.kind == "integer" and column.values is None)


def check_values(column: Column, setting_: str) -> None:
    """Raise UserError unless a column has a number or label in every row."""
    if column.kind == "date":
        raise UserError(f"{setting_}: column {column.name} holds dates; write what matters of them as numbers or texts")
    if column.kind == "other":
        raise UserError(f"{setting_}: column {column.name} holds {column.type}, no numbers or texts")
    if column.missing:
        raise UserError(
            f"{setting_}: column {column.name} has no value in row {column.first_missing}; remove the row or fill it in"
        )
    if column.kind == "category" and column.values is None:
        raise UserError(f"{setting_}: column {column.name} has more than {MAX_LABELS:,} different texts")


def check_labels(column: Column, setting_: str) -> None:
    """Raise UserError unless a column has few values, and none with a fraction."""
    if column.values is None:
        raise UserError(f"{setting_}: column {column.name} has more than {MAX_LABELS:,} different values")
    for value in column.values:
        if isinstance(value, float) and not value.is_integer():
            raise UserError(f"{setting_}: column {column.name} has real numbers, such as {value:g}; give whole numbers")
    if setting_ == "dataset.split":
        _check_splits(column.name, list(map(str, column.values)))


def _check_splits(column: str, names: Sequence[str]) -> None:
    if len(names) > MAX_SPLITS:
        raise UserError(f"dataset.split: column {column} names more than {MAX_SPLITS} splits")
    for name in named_splits(np.array(names)).tolist():
        if not SPLIT_NAME.fullmatch(name):
            raise UserError(f"dataset.split: column {column} has {brief(name)!r}; use lower-case letters, digits and _")


def check_numbers(column: Column, setting_: str) -> None:
    """Raise UserError unless a column holds numbers."""
    if column.kind not in ("integer", "real"):
        raise UserError(f"{setting_}: column {column.name} holds no numbers")


def place_of(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise UserError(f"dataset.test_environments: no environment '{brief(name)}'{did_you_mean(name, names)}")
    return names.index(name)


def environments_of(labels: Labels, train: NDArray[np.int64]) -> tuple[Tensor, tuple[str, ...]]:
    """Number environments (N,), those that are trained on first; return their names in that order."""
    env, order = numbered(labels.numbers, train)
    return env, tuple(labels.names[int(number)] for number in order)


def nuisance_of(columns: Sequence[Values], categories: bool) -> Tensor | None:
    """Return nuisances (N,) or (N, k): real numbers, or categories from 0, also of whole numbers kept as real ones."""
    if not columns:
        return None
    if not categories and any(is_real(one.column) for one in columns):
        stacked = floats(np.stack([one.numbers() for one in columns], 1))
    else:
        stacked = torch.from_numpy(np.stack([one.labels().numbers for one in columns], 1))
    return stacked[:, 0].contiguous() if len(columns) == 1 else stacked
