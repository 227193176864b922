"""Any csv or parquet file as a problem of vectors: name the column to predict, and the others' roles.

    bench run -m irmv1 -d table --set dataset.path=farms.csv --set dataset.target=yield --set dataset.environment=region

Every column without another role is a feature, unless its name begins with `_`: numbers as they are, texts and booleans
one-hot over the values of the whole table in sorted order, at most 100. Names of columns may be shell patterns such as
`sensor_*`. Real targets make a regression, with the deviation of the training targets as the unit of its loss;
integers, booleans and texts with at most 1,000 different values are classes in sorted order; integers with more are
real numbers. The same holds of nuisances. Means and deviations are those of the training split, with every row counted
once; `weight` names the column that says how often each row is drawn in training.

    no environments       `test_share` of the rows is the test split
    environments          `test_share` of each environment is the test split
    test environments     these are the test split; `test_share` of each of the others is the split `test_in`
    a column of splits    names train, test, and others such as validation

The environments that are trained on have the first numbers, in sorted order. The format does not matter: a csv file and
a parquet file that hold the same give equal problems. What a csv file means by a text is told in
`datasets/_columns.py`; in it the text NA is a missing value. The file is read twice in batches, and only the needed
columns; memory is needed for the inputs as 32-bit numbers, not for the file.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from invbench.core.arrays import (
    check_precision,
    class_targets,
    classification,
    drawn,
    regression,
    rows_by_name,
    weights_of,
)
from invbench.core.data import Problem, Split, floats, subset
from invbench.core.groups import GroupedDataset
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Task
from invbench.datafiles.checksums import is_regular
from invbench.datafiles.release import at_home
from invbench.datasets._columns import Column, Columns, codes, numbers, opened_columns
from invbench.datasets._features import MAX_CATEGORIES, Encoding, Missing, check_size
from invbench.datasets._roles import (
    MAX_LABELS,
    Labels,
    Values,
    check_labels,
    check_numbers,
    check_values,
    environments_of,
    is_real,
    nuisance_of,
    place_of,
    type_of,
)
from invbench.datasets._tables import MAX_VALUES, check_names, listing, separator_hint
from invbench.errors import UserError, brief, did_you_mean
from invbench.seeding import children

TEST_SHARE = 0.2
Rows = dict[str, NDArray[np.int64]]


class Content(NamedTuple):
    """What is read of a table: inputs (N, F), NaN where missing, and the columns with other roles (N,)."""

    x: NDArray[np.float32]
    roles: dict[str, NDArray[Any]]


@register_dataset("table")
class Table(GroupedDataset):
    """A csv or parquet file: a target, features, and where wanted environments and nuisances."""

    display_name: ClassVar[str] = "Table"
    provides: ClassVar[tuple[str, ...]] = (
        "vector",
        "classification",
        "regression",
        "nuisance",
        "environments",
        "second_stage",
    )
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"task": "classification"},
        "regression": {"task": "regression"},
        "second_stage": {"second_stage_share": 0.2},
    }
    advice: ClassVar[Mapping[str, str]] = {
        "environments": "dataset.environment=COLUMN",
        "nuisance": "'dataset.nuisance=[COLUMN]'",
    }
    required_setting: ClassVar[str] = "dataset.path"
    licence: ClassVar[str] = "that of your table"
    citation: ClassVar[str] = "whoever made your table"
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 8}

    path: str = setting(..., "of a .csv or .parquet file; required")
    target: str = setting(..., "column to predict; required")
    task: Literal["classification", "regression"] | None = setting(None, "null takes what the target's values say")
    features: tuple[str, ...] = setting((), "columns or patterns; empty takes all that have no role and no _ in front")
    exclude: tuple[str, ...] = setting((), "columns or patterns that are no features")
    environment: str | None = setting(None, "column with the environment of each row")
    test_environments: tuple[str | int, ...] = setting((), "environments that are not trained on, but tested")
    attribute: str | None = setting(
        None,
        "column with the attribute of each row, which with the class makes its group; no feature, and the nuisance, as "
        "a category, where none is given",
    )
    nuisance: tuple[str, ...] = setting((), "columns that the prediction should not depend on; no features")
    weight: str | None = setting(
        None,
        "column with how often each row is drawn in training, with replacement, relative to the others of its "
        "environment; no feature; metrics count every row once",
    )
    split: str | None = setting(None, "column with the split of each row: train, test and others")
    missing: Missing = setting("error", "missing features: refused, or replaced by the mean of the training rows or 0")
    standardise: bool = setting(True, "scale features by mean and deviation of the training split")
    test_share: float = setting(
        TEST_SHARE, "of the rows of each environment, for testing; not beside split", gt=0, lt=1
    )
    examples: int | None = setting(None, "use so many rows only, drawn at random; null takes all", ge=2)

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        if self.test_environments and self.environment is None:
            raise ValueError("test_environments needs environment, the column that has them")
        if self.split is not None and (self.test_environments or self.test_share != TEST_SHARE):
            raise ValueError("split says which rows are tested; leave out test_environments and test_share")
        return self

    def capabilities(self) -> tuple[str, ...]:
        there = {
            "classification": self.task == "classification",
            "regression": self.task == "regression",
            "nuisance": bool(self.nuisance) or (self.attribute is not None and self.tells_attribute),
            "environments": self.environment is not None,
        }
        return self.told(there)

    def files(self) -> tuple[Path, ...]:
        return (path,) if is_regular(path := at_home(self.path)) else ()

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Return the usual settings for a few thousand rows: nobody has published any for a table that is yours."""
        return {
            "backbone": {"name": "mlp", "width": 64, "depth": 2, "activation": "relu"},
            "trainer": {"steps": 2000, "batch_size": 64, "optimizer": "adam", "learning_rate": 1e-3},
        }

    def opened(self) -> AbstractContextManager[Columns]:
        """Open the table. Raises UserError where that cannot be done."""
        return opened_columns(at_home(self.path), "dataset.path")

    def environment_choices(self) -> tuple[str, ...]:
        if self.environment is None:
            return ()
        with self.opened() as table:
            if self.environment not in (names := table.names()):
                raise UserError(f"dataset.environment: the table {self.path} has no column '{brief(self.environment)}'")
            check_names(names, self.path)
            column = table.described({self.environment: MAX_LABELS})[1][self.environment]
        check_labels(column, "dataset.environment")
        return tuple(map(str, column.values or ()))

    def load(self, seed: np.random.SeedSequence) -> Problem:
        return self.loaded_from(self.opened(), seed)

    def loaded_from(self, opened: AbstractContextManager[Columns], seed: np.random.SeedSequence) -> Problem:
        """Make the problem of a table that is opened for it."""
        division, choice = (np.random.default_rng(stream) for stream in children(seed, 2))
        with opened as table:
            features = self._features(table.names())
            roles = {name: MAX_LABELS for names in self._roles().values() for name in names}
            count, columns = table.described(dict.fromkeys(features, MAX_CATEGORIES) | roles)
            if not count:
                raise UserError(f"the table {self.path} has no rows")
            encoding = Encoding([columns[name] for name in features], self.missing)
            size = subset(self.examples, count, "dataset.examples")
            if size * (encoding.width + len(roles)) > MAX_VALUES:
                raise UserError(
                    f"the table {self.path} has more than {MAX_VALUES} values; use fewer rows by dataset.examples"
                )
            chosen = np.sort(choice.permutation(count)[:size]) if size < count else np.arange(count)
            described = {name: columns[name] for name in roles}
            self._check_roles(described)
            content = _read(table, encoding, described, chosen)
        facts = {"rows": float(count), "missing_values": float(sum(columns[name].missing for name in features))}
        return self._problem(content, encoding, described, division, facts, partial=size < count)

    def _nuisances(self) -> tuple[str, ...]:
        return self.nuisance or ((self.attribute,) if self.attribute is not None else ())

    def _roles(self) -> dict[str, list[str]]:
        """Return the columns that are no features, by the setting that names them."""
        single = {"target": self.target, "environment": self.environment, "attribute": self.attribute}
        single |= {"weight": self.weight, "split": self.split}
        roles = {f"dataset.{role}": [name] for role, name in single.items() if name is not None}
        return roles | {"dataset.nuisance": list(self.nuisance)} if self.nuisance else roles

    def _features(self, names: list[str]) -> list[str]:
        """Choose the features among a table's columns, and check that every column that a setting names is there."""
        for setting_, columns in self._roles().items():
            for name in columns:
                if name not in names:
                    hint = did_you_mean(name, names) + separator_hint(names)
                    raise UserError(f"{setting_}: the table {self.path} has no column '{brief(name)}'{hint}")
        check_names(names, self.path)
        taken = {name for columns in self._roles().values() for name in columns}
        others = [name for name in names if name not in taken]
        for setting_, patterns in (("features", self.features), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in others):
                    name = brief(pattern)
                    what = f"column '{name}' has another role" if pattern in taken else f"no column is '{name}'"
                    raise UserError(f"dataset.{setting_}: {what}{did_you_mean(pattern, others)}")
        wanted = [name for name in others if _matches(name, self.features) or not (self.features or name[0] == "_")]
        features = [name for name in wanted if not _matches(name, self.exclude)]
        if not features:
            raise UserError(f"the table {self.path} has no features: its columns are {listing(names)}")
        return features

    def _check_roles(self, columns: Mapping[str, Column]) -> None:
        """Raise UserError for a column that cannot have its role."""
        for setting_, names in self._roles().items():
            for column in (columns[name] for name in names):
                if setting_ == "dataset.weight":
                    check_numbers(column, setting_)
                check_values(column, setting_)
                if setting_ in ("dataset.environment", "dataset.attribute", "dataset.split"):
                    check_labels(column, setting_)
        target = columns[self.target]
        if self.task == "classification":
            check_labels(target, "dataset.task=classification")
        if self.task == "regression" and target.kind not in ("integer", "real"):
            raise UserError(f"column {target.name} holds no numbers, which dataset.task=regression needs")
        nuisances = [columns[name] for name in self._nuisances()]
        if any(is_real(column) for column in nuisances):
            for column in nuisances:
                if column.kind not in ("integer", "real"):
                    raise UserError(
                        f"column {column.name} holds categories, and others of dataset.nuisance real numbers; name one "
                        "kind only"
                    )

    def _problem(
        self,
        content: Content,
        encoding: Encoding,
        columns: Mapping[str, Column],
        division: np.random.Generator,
        facts: dict[str, float],
        partial: bool,
    ) -> Problem:
        values = {name: Values(columns[name], array) for name, array in content.roles.items()}
        environment = None if self.environment is None else values[self.environment].labels()
        rows = self._rows(len(content.x), environment, values, division)
        task, y, classes = self._target(values[self.target], rows["train"])
        encoding.fill_in(content.x, rows["train"])
        if self.standardise:
            encoding.standardise(content.x, rows["train"])
        env, names = (None, ()) if environment is None else environments_of(environment, rows["train"])
        weights = None
        if self.weight is not None:
            weights = weights_of(values[self.weight].numbers(), env, names, rows["train"], f"column {self.weight}")
        attribute: Tensor | None = None
        attributes: tuple[str, ...] = ()
        if self.attribute is not None and classes:
            attributes, numbers_ = values[self.attribute].labels()
            attribute = torch.from_numpy(numbers_)
        whole = Split(
            torch.from_numpy(content.x),
            y,
            env,
            nuisance_of([values[name] for name in self._nuisances()], categories=not self.nuisance),
            weights=weights,
            attribute=attribute,
        )
        splits = {name: whole.rows(torch.from_numpy(index)) for name, index in rows.items()}
        variant: Literal["partial", "full"] = "partial" if partial else "full"
        problem = Problem(splits, task, "vector", variant, facts, classes, environment_names=names)
        return replace(problem, attribute_names=attributes)

    def _rows(
        self, count: int, environment: Labels | None, values: Mapping[str, Values], rng: np.random.Generator
    ) -> Rows:
        """Divide rows into splits."""
        if self.split is not None:
            names, numbers_ = values[self.split].labels()
            return rows_by_name(np.array(names)[numbers_])
        if environment is None or not self.test_environments:
            return drawn(count, None if environment is None else environment.numbers, self.test_share, rng)
        tested = np.isin(environment.numbers, [place_of(str(one), environment.names) for one in self.test_environments])
        trained = np.flatnonzero(~tested)
        if not len(trained):
            raise UserError("dataset.test_environments names every environment; leave one to train on")
        inside = drawn(len(trained), environment.numbers[trained], self.test_share, rng)
        return {
            "train": trained[inside["train"]],
            "test_in": trained[inside["test"]],
            "test": np.flatnonzero(tested),
        }

    def _target(self, values: Values, train: NDArray[np.int64]) -> tuple[Task, Tensor, tuple[str, ...]]:
        name = f"column {self.target}"
        if self.task == "regression" or (self.task is None and is_real(values.column)):
            y = values.numbers()
            check_precision(name, y)
            return regression(y, train, name), floats(y), ()
        classes, codes_ = values.labels()
        return classification(classes, codes_, train, name), class_targets(classes, codes_), classes


def _read(table: Columns, encoding: Encoding, roles: Mapping[str, Column], chosen: NDArray[np.int64]) -> Content:
    """Read the chosen rows (N,), in increasing order."""
    x = np.empty((len(chosen), encoding.width), np.float32)
    content = Content(x, {name: np.empty(len(chosen), type_of(column)) for name, column in roles.items()})
    columns = {column.name: column for column in (*encoding.columns, *roles.values())}
    first, done = 0, 0
    for batch in table.arrays(list(columns.values())):
        length = len(batch[next(iter(columns))])
        inside = slice(done, int(np.searchsorted(chosen, first + length)))
        local = chosen[inside] - first
        arrays = {name: array.take(local) for name, array in batch.items()} if len(local) < length else batch
        encoding.write(arrays, x[inside], chosen[inside])
        for name, column in roles.items():
            array = arrays[name]
            if is_real(column):
                content.roles[name][inside] = numbers(array)
                check_size(name, content.roles[name][inside], chosen[inside])
            else:
                content.roles[name][inside] = codes(array, column.values or ())
        first, done = first + length, inside.stop
    if done < len(chosen):
        raise ValueError("it became shorter while it was read")
    encoding.check_precision()
    return content


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
