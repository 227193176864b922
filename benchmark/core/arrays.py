"""Tensors of a problem from arrays: inputs, targets and, where there are some, environments, nuisances and others."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.task import BinaryClassification, Classification, Regression, Task
from invbench.errors import UserError, brief, did_you_mean
from invbench.seeding import stream

Array = NDArray[Any]
ArrayKind = Literal["vector", "image"]
LARGEST, FINEST = 1e30, 1e-5
"""Most that a number may be, and the least range of a column's numbers in parts of the largest."""
MOST_ATTRIBUTES = 1000
NUMBERED = {"0": "train", "1": "validation", "2": "test"}
"""Numbers of splits in the metadata of Waterbirds, CelebA, MetaShift and CivilComments."""
VALIDATION = dict.fromkeys(("val", "valid", "dev"), "validation")
"""Other names of the validation split."""
SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
"""Pattern of names of splits, which are part of metrics' names."""
KINDS: Mapping[int, ArrayKind] = {2: "vector", 4: "image"}
"""Kinds of inputs by the number of axes of their array."""


class Converted(NamedTuple):
    """Tensors of all examples (N, ...), the rows of each split, and what kind of problem that makes."""

    x: Tensor
    y: Tensor
    env: Tensor | None
    nuisance: Tensor | None
    weights: Tensor | None
    attribute: Tensor | None
    rows: dict[str, Tensor]
    task: Task
    kind: ArrayKind
    classes: tuple[str, ...]
    environment_names: tuple[str, ...]
    attribute_names: tuple[str, ...]


def converted(
    x: Any,
    y: Any,
    environment: Any,
    split: Any,
    nuisance: Any,
    weight: Any,
    attribute: Any,
    test_share: float,
    seed: int,
) -> Converted:
    """Convert what `Problem.from_arrays` is given. Raises UserError as it does."""
    inputs = inputs_of(x)
    count = len(inputs)
    columns = {"x": x, "y": y, "environment": environment, "split": split, "nuisance": nuisance, "weight": weight}
    columns["attribute"] = attribute
    check_lengths({name: values for name, values in columns.items() if values is not None or name == "y"})
    labels = None if environment is None else _column("environment", environment)
    rng = np.random.default_rng(stream(seed, "data", "test"))
    rows = drawn(count, labels, test_share, rng) if split is None else rows_by_name(_column("split", split))
    task, target, classes = task_of(_column("y", y), rows["train"])
    env, names = (None, ()) if labels is None else numbered(labels, rows["train"])
    protected = None if nuisance is None else nuisance_of(array_of("nuisance", nuisance))
    weights = None if weight is None else weights_of(_column("weight", weight), env, names, rows["train"])
    attributes, attribute_names = (None, ()) if attribute is None else attributes_of(_column("attribute", attribute))
    if attributes is not None and not classes and isinstance(task, Regression):
        raise UserError("an attribute makes groups with classes, and y is real numbers; leave attribute out")
    indices = {name: torch.from_numpy(index) for name, index in rows.items()}
    parts = inputs, target, env, protected, weights, attributes, indices, task, KINDS[inputs.ndim], classes, names
    return Converted(*parts, attribute_names)


def floats(array: Array) -> Tensor:
    """Convert numbers of any type to a float32 tensor."""
    return torch.from_numpy(array.astype(np.float32))


def array_of(name: str, values: Any) -> Array:
    """Convert values to an array of numbers or texts, without missing ones."""
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise UserError(f"{name} has masked values; remove those rows or fill them in")
    try:
        array: Array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.dtype == object:
            array = _texts(name, array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be turned into an array: {' '.join(str(error).split())[:200]}") from None
    if array.dtype.kind not in "biufU":
        raise UserError(f"{name} has values of type {array.dtype}; give numbers or texts")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        row = int(np.argwhere(~finite)[0, 0]) if array.ndim else 0
        raise UserError(f"{name} has a missing or infinite value in row {row}; remove the row or fill it in")
    return array


def check_lengths(columns: Mapping[str, Any]) -> None:
    """Raise UserError unless every column has as many values as x has examples."""
    for name, values in columns.items():
        try:
            count = len(values)
        except TypeError:
            raise UserError(f"{name} is a {type(values).__name__}; give one value of each example") from None
        if count != len(columns["x"]):
            raise UserError(f"x has {len(columns['x'])} examples, but {name} has {count} values")


def check_precision(name: str, array: Array) -> None:
    """Raise UserError for a column of numbers (N, ...) that differ by too little, or are too large, for 32 bits."""
    if array.dtype.kind not in "iuf" or not array.size:
        return
    columns = array.reshape(len(array), -1)
    largest = np.maximum(np.abs(columns.max(0).astype(np.float64)), np.abs(columns.min(0).astype(np.float64)))
    spread = columns.max(0).astype(np.float64) - columns.min(0).astype(np.float64)
    where = f"column {{}} of {name}" if columns.shape[1] > 1 else name
    if (large := largest > LARGEST).any():
        raise UserError(f"{where.format(large.argmax())} has values beyond {LARGEST:g}; divide it by some number")
    if (close := (spread > 0) & (spread < FINEST * largest)).any():
        raise UserError(
            f"{where.format(close.argmax())} has values near {largest[close.argmax()]:g} that differ by "
            f"{spread[close.argmax()]:g} only, too little for 32-bit numbers; subtract their mean"
        )


def _column(name: str, values: Any) -> Array:
    """Convert one value of each example to an array (N,)."""
    column = array_of(name, values)
    if column.ndim != 1:
        raise UserError(f"{name} has the shape {column.shape}; give one value of each example (N,)")
    return column


def _texts(name: str, array: Array) -> Array:
    """Convert objects to texts or numbers. Raises UserError for a missing value, and for a mixture."""
    import pandas as pd  # takes a second

    for row, value in enumerate(array.ravel()):
        if value is None or pd.isna(value):
            raise UserError(f"{name} has a missing value at position {row}; remove the row or fill it in")
    kinds = {type(value) for value in array.ravel()}
    if len(kinds) > 1:
        raise UserError(f"{name} has values of several types: {', '.join(sorted(kind.__name__ for kind in kinds))}")
    return np.array(array.tolist())


def inputs_of(x: Any) -> Tensor:
    """Convert inputs to float32 (N, ...); bytes of images become numbers from 0 to 1."""
    array = array_of("x", x)
    if array.ndim not in KINDS:
        raise UserError(
            f"x has the shape {array.shape}; give vectors (N, features) or images (N, channels, height, width)"
        )
    if array.dtype.kind == "U":
        raise UserError(f"x has texts, such as {brief(str(array.ravel()[0]))!r}; encode them as numbers")
    if not array.size:
        raise UserError(f"x has no examples, or no numbers: its shape is {array.shape}")
    check_precision("x", array)
    return floats(array) / 255 if array.ndim == 4 and array.dtype == np.uint8 else floats(array)


def task_of(y: Array, train: NDArray[np.int64]) -> tuple[Task, Tensor, tuple[str, ...]]:
    """Return the task of targets (N,), the targets as the task takes them, and the names of the classes."""
    if y.dtype.kind == "f":
        check_precision("y", y)
        return regression(y, train), floats(y), ()
    names, codes = np.unique(y, return_inverse=True)
    classes = tuple(map(str, names.tolist()))
    return classification(classes, codes, train), class_targets(classes, codes), classes


def regression(y: Array, train: NDArray[np.int64], name: str = "y") -> Regression:
    """Return the task of real targets (N,). Raises UserError where those of training are all the same."""
    mean, std = float(y[train].mean()), float(y[train].std())
    if not std > 0:
        raise UserError(f"{name} is the same number in all training examples; there is nothing to learn")
    return Regression("", mean, std)


def classification(classes: tuple[str, ...], codes: Array, train: NDArray[np.int64], name: str = "y") -> Task:
    """Return the task of classes by number (N,). Raises UserError for a single class, or one never trained on."""
    missing = set(range(len(classes))) - set(np.unique(codes[train]).tolist())
    if len(classes) < 2:
        raise UserError(f"{name} has the class {classes[0]} only; a classification needs two or more")
    if missing:
        raise UserError(f"no training example has the class {classes[min(missing)]}")
    return BinaryClassification() if len(classes) == 2 else Classification(len(classes))


def class_targets(classes: tuple[str, ...], codes: Array) -> Tensor:
    """Convert classes by number (N,) to targets as the task takes them: real numbers where there are two."""
    return floats(codes) if len(classes) == 2 else torch.from_numpy(codes.astype(np.int64))


def numbered(labels: Array, train: NDArray[np.int64]) -> tuple[Tensor, tuple[str, ...]]:
    """Number environments (N,) from 0 in the order of their labels: those that are trained on, then the others.

    Args:
        train: rows that are trained on.

    Returns:
        The numbers (N,), and the labels as texts in their order.
    """
    trained = np.unique(labels[train])
    others = np.setdiff1d(np.unique(labels), trained)
    order = [*trained.tolist(), *others.tolist()]
    number = {label: i for i, label in enumerate(order)}
    return torch.tensor([number[label] for label in labels.tolist()]), tuple(map(str, order))


def attributes_of(labels: Array) -> tuple[Tensor, tuple[str, ...]]:
    """Number attributes (N,) from 0 in sorted order; return their names, too."""
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) > MOST_ATTRIBUTES:
        raise UserError(f"there are {len(names)} different attributes; there may be {MOST_ATTRIBUTES}")
    return torch.from_numpy(codes.astype(np.int64)), tuple(map(str, names.tolist()))


def nuisance_of(values: Array) -> Tensor:
    """Convert nuisances (N, ...): real numbers stay so, whatever else there is becomes categories from 0."""
    if values.dtype.kind == "f":
        return floats(values)
    columns = values.reshape(len(values), -1)
    codes = [np.unique(column, return_inverse=True)[1] for column in columns.T]
    return torch.from_numpy(np.stack(codes, 1).astype(np.int64).reshape(values.shape))


def are_tested(labels: Array, names: Iterable[str | int]) -> NDArray[np.bool_]:
    """Tell which examples (N,) are of the environments that `dataset.test_environments` names.

    Args:
        labels: environment of each example, as text (N,).

    Raises:
        UserError: there is no such environment, or none is left to train on.
    """
    known = np.unique(labels).tolist()
    chosen = list(map(str, names))
    for name in chosen:
        if name not in known:
            raise UserError(f"dataset.test_environments: no environment '{brief(name)}'{did_you_mean(name, known)}")
    if set(known) <= set(chosen):
        raise UserError("dataset.test_environments names all environments, so none is left to train on")
    return np.isin(labels, chosen)


def weights_of(
    values: Array, env: Tensor | None, names: tuple[str, ...], train: NDArray[np.int64], name: str = "weight"
) -> Tensor:
    """Convert weights of examples (N,), without missing or infinite ones, to float32.

    Args:
        env: number of each example's environment (N,), those that are trained on first; `names` are theirs.
        train: rows that are trained on.

    Raises:
        UserError: they are no numbers, negative, beyond 32 bits, or all 0 in a training environment.
    """
    if values.dtype.kind not in "iuf":
        raise UserError(f"{name} holds no numbers; give one of each example, 0 or more")
    weights = values.astype(np.float64)
    if (weights < 0).any():
        raise UserError(f"{name} has the negative value {weights.min():g}; a weight is 0 or more")
    if (odd := (weights > LARGEST) | ((weights > 0) & (weights < 1 / LARGEST))).any():
        raise UserError(
            f"{name} has the value {weights[odd][0]:g}; a weight is 0, or from {1 / LARGEST:g} to {LARGEST:g}: "
            "multiply all by some number"
        )
    numbers = np.zeros(len(values), np.int64) if env is None else env.numpy()
    empty = np.flatnonzero(np.bincount(numbers[train], weights[train]) == 0)
    if len(empty):
        where = f" of environment {brief(names[empty[0]])}" if names else ""
        raise UserError(f"{name} is 0 in all training examples{where}; one at least needs a weight above 0")
    return floats(weights)


def named_splits(names: Array) -> Array:
    """Give splits (N,) that are numbered 0, 1, 2, or called val, valid or dev, their usual names."""
    there = set(np.unique(names).tolist())
    usual = NUMBERED if there == set(NUMBERED) else VALIDATION if "validation" not in there else {}
    return np.array([usual.get(name, name) for name in names.tolist()])


def rows_by_name(names: Array, kept: NDArray[np.bool_] | None = None) -> dict[str, NDArray[np.int64]]:
    """Collect the rows of each split by its name (N,), of those that are kept; or by its number of `NUMBERED`.

    Raises:
        UserError: nothing is for training, or nothing for the test.
    """
    whole = np.ones(len(names), np.bool_) if kept is None else kept
    names = named_splits(names.astype(str))
    rows = {str(name): np.flatnonzero(whole & (names == name)) for name in np.unique(names[whole])}
    for name in rows:
        if not SPLIT_NAME.fullmatch(name) or name == "held_out":
            raise UserError(f"split names {brief(name)!r}; use lower-case letters, digits and _, and not held_out")
    for name in ("train", "test"):
        if name not in rows:
            raise UserError(f"split names {', '.join(rows)}; it must name train and test")
    return rows


def drawn(count: int, labels: Array | None, share: float, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Draw a share of each environment as the test split."""
    if not 0 < share < 1:
        raise UserError(f"test_share is {share}; it must lie between 0 and 1")
    groups = np.zeros(count, int) if labels is None else np.unique(labels, return_inverse=True)[1]
    in_test = np.zeros(count, bool)
    for group in range(groups.max() + 1):
        rows = rng.permutation(np.flatnonzero(groups == group))
        in_test[rows[: round(share * len(rows))]] = True
    if in_test.all() or not in_test.any():
        raise UserError(f"{count} examples leave nothing to train or to test on with test_share {share}")
    return {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}
