"""Vectors of a table's features: texts and booleans one-hot, missing values filled in, standardised."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from invbench.core.arrays import LARGEST, check_precision
from invbench.datasets._columns import Column, codes, numbers
from invbench.datasets._tables import too_large
from invbench.errors import UserError

Missing = Literal["error", "mean", "zero", "indicator"]
MAX_CATEGORIES = 100
"""Most values of a text that are encoded one-hot."""


class Encoding:
    """Places of features among the inputs: each feature in turn, then the indicators of missing values.

    Args:
        columns: the features.
        missing: what becomes of missing values; indicator also adds an input 0 or 1 for each column that has some.

    Raises:
        UserError: a column that no vector can be made of.
    """

    def __init__(self, columns: Sequence[Column], missing: Missing) -> None:
        self.columns, self.missing = columns, missing
        for column in columns:
            _check(column, missing)
        widths = [len(column.values or ()) if _is_category(column) else 1 for column in columns]
        bounds = np.cumsum([0, *widths]).tolist()
        self.places = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        marked = [column.name for column in columns if column.missing and missing == "indicator"]
        self.indicators = {name: bounds[-1] + i for i, name in enumerate(marked)}
        self.names = [column.name for column, width in zip(columns, widths, strict=True) for _ in range(width)] + marked
        self.width = len(self.names)
        self.ranges: dict[str, tuple[float, float]] = {}  # of the columns of numbers, as far as they are written

    def write(self, arrays: dict[str, Any], x: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Write a batch into x (N, width), NaN where a value is missing; `rows` (N,) are its places in the table."""
        for column, place in zip(self.columns, self.places, strict=True):
            if _is_category(column):
                x[:, place] = one_hot(codes(arrays[column.name], column.values or ()), place.stop - place.start)
            else:
                values = numbers(arrays[column.name])
                check_size(column.name, values, rows)
                x[:, place.start] = values
                there = np.append(values[~np.isnan(values)], self.ranges.get(column.name, ()))
                self.ranges |= {column.name: (there.min(), there.max())} if len(there) else {}
            if column.name in self.indicators:
                x[:, self.indicators[column.name]] = np.isnan(x[:, place.start])

    def check_precision(self) -> None:
        """Raise UserError for a column whose values differ by too little for 32 bits, once all is written."""
        for name, bounds in self.ranges.items():
            check_precision(f"column {name}", np.array(bounds))

    def fill_in(self, x: NDArray[np.float32], train: NDArray[np.int64]) -> None:
        """Replace missing values by 0 or by the mean of the training rows, in place."""
        for column, place in zip(self.columns, self.places, strict=True):
            for j in range(place.start, place.stop) if column.missing else ():
                absent = np.isnan(x[:, j])
                x[absent, j] = 0 if self.missing == "zero" else _mean(column.name, x[train, j])

    def standardise(self, x: NDArray[np.float32], train: NDArray[np.int64]) -> None:
        """Scale inputs by mean and deviation of the training rows, in place; what is constant there becomes 0."""
        for j, name in enumerate(self.names):
            column = x[train, j].astype(np.float64)  # column by column: one only of them is there twice
            if column.min() == column.max():
                x[:, j] = 0
                continue
            scaled = (x[:, j] - column.mean()) / column.std()
            if (largest := np.abs(scaled).max()) > LARGEST:
                raise UserError(
                    f"column {name} has a value {largest:.2g} training deviations from the training mean; leave it "
                    f"out: dataset.exclude=[{name}]"
                )
            x[:, j] = scaled


def one_hot(numbers: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Encode numbers below `count` (N,) as rows (N, count), NaN for -1."""
    rows = np.eye(count, dtype=np.float32)[numbers]
    rows[numbers < 0] = np.nan
    return rows


def check_size(name: str, values: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
    """Raise UserError for a value that is infinite or too large; NaN passes."""
    large = np.abs(values) > LARGEST
    if not large.any():
        return
    row = int(large.argmax())
    if np.isinf(values[row]):
        raise UserError(f"column {name} has an infinite value in row {rows[row] + 1}; remove the row or column")
    raise too_large(name)


def _is_category(column: Column) -> bool:
    return column.kind in ("category", "boolean")


def _check(column: Column, missing: Missing) -> None:
    """Raise UserError for a column that no vector can be made of."""
    leave_out = f"dataset.exclude=[{column.name}]"
    if column.kind == "date":
        raise UserError(
            f"column {column.name} holds dates; write what matters of them as numbers, such as the year, or leave them "
            f"out: {leave_out}"
        )
    if column.kind == "other":
        raise UserError(f"column {column.name} holds {column.type}, no numbers or texts; leave it out: {leave_out}")
    if _is_category(column) and column.values is None:
        raise UserError(
            f"column {column.name} has more than {MAX_CATEGORIES} different texts, too many for one input each; "
            f"leave it out: {leave_out}"
        )
    if column.values == ():
        raise UserError(f"column {column.name} has no value in any row; leave it out: {leave_out}")
    if column.missing and missing == "error":
        raise UserError(
            f"column {column.name} misses values in {column.missing} of its rows, the first in row "
            f"{column.first_missing}; set dataset.missing to mean, zero or indicator, or leave it out: {leave_out}"
        )


def _mean(name: str, values: NDArray[np.float32]) -> float:
    there = values[~np.isnan(values)].astype(np.float64)
    if not len(there):
        raise UserError(f"column {name} has no value in the training rows; leave it out: dataset.exclude=[{name}]")
    return float(there.mean())
