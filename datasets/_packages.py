"""Datasets of other packages, which are extras: the package, a class by its name, and an object of that class."""

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from invbench.core.third_party import load_guarded
from invbench.errors import UserError, brief, did_you_mean
from invbench.system import workarounds

T = TypeVar("T")


def package(name: str, extra: str) -> ModuleType:
    """Import a package that an extra brings, and return it.

    A folder of the same name in the working folder, such as `datasets`, is passed over.

    Raises:
        UserError: it is not installed, does not load, or a module of the same name is imported already.
    """
    try:
        home = distribution(name).locate_file("")
    except PackageNotFoundError:
        raise UserError(f"this dataset needs the package {name}: pip install 'invbench[{extra}]'") from None
    if name not in sys.modules:
        workarounds.torchvision()
        sys.path.insert(0, str(home))
        try:
            _quietly(lambda: importlib.import_module(name), f"the package {name}")
        finally:
            sys.path.remove(str(home))
    module = sys.modules[name]
    where = Path(module.__file__ or ".")
    if not where.is_relative_to(Path(str(home))):
        raise UserError(f"{where} is imported under the name of the package {name}; rename that module")
    return module


def class_of(name: str, module: str, contract: type[T]) -> type[T]:
    """Return a dataset's class: of a module of the package, or `my_module:MyDataset`.

    Raises:
        UserError: there is none, or it does not derive from the contract.
    """
    own_module, colon, own_name = name.partition(":")
    where = own_module if colon else module
    home = load_guarded(
        lambda: importlib.import_module(where), f"dataset.name={brief(name)}: the module {brief(where)}"
    )
    cls = getattr(home, own_name if colon else name, None)
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        choices = [one for one, value in vars(home).items() if isinstance(value, type) and issubclass(value, contract)]
        hint = did_you_mean(own_name if colon else name, choices)
        raise UserError(f"dataset.name: {where} has no {contract.__name__} named '{brief(own_name or name)}'{hint}")
    return cls


def made(make: Callable[..., T], arguments: Mapping[str, Any], offline: str) -> T:
    """Make an object of another package, and say how to work offline where its files are not there."""
    what = f"{getattr(make, '__name__', make)}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    try:
        return _quietly(lambda: make(**arguments), brief(what), "making")
    except UserError as error:
        if isinstance(error.__cause__, TypeError):  # of the arguments
            raise
        raise UserError(f"{error}; {offline}") from None


def _quietly(load: Callable[[], T], what: str, doing: str = "importing") -> T:
    """Call another package's code; its warnings are for those who maintain it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_guarded(load, what, doing)


def made_splits(
    cls: type[Any], root: str, download: bool, arguments: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Make a dataset for each split.

    Args:
        cls: class of the datasets; `root` and `download` are given to it where it has such arguments.
        arguments: further ones, of all splits.
        splits: arguments of each split; empty: as the class names its splits, by an argument `train` or `split`.

    Raises:
        UserError: the class raises something, or a split is empty.
    """
    parameters = inspect.signature(cls).parameters
    where = {name: value for name, value in (("root", root), ("download", download)) if name in parameters}
    offline = f"put its files into {root}" + (", or set dataset.download=true" if "download" in where else "")
    parts = {}
    for split, more in (splits or _splits_of(parameters)).items():
        parts[split] = made(
            cls, where | dict(arguments) | dict(more), f"{offline}; dataset.splits sets what splits are"
        )
        if not len(parts[split]):
            raise UserError(f"dataset.name: {cls.__name__} has nothing in the split {split}, made with {dict(more)}")
    return parts


def _splits_of(parameters: Mapping[str, inspect.Parameter]) -> dict[str, dict[str, Any]]:
    """Return the arguments of the splits that a class with these parameters has; of others it is all one."""
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in parameters and isinstance(parameters["split"].default, str):
        return {"train": {"split": parameters["split"].default}, "test": {"split": "test"}}
    return {"train": {}}


def files_below(folder: Path) -> list[str]:
    """Return the path, size and time of change of every file below a folder, in sorted order."""
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    lines = []
    for path in files:
        with suppress(OSError):  # a link to nothing
            status = path.stat()
            lines.append(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}")
    return sorted(lines)
