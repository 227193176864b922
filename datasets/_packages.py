"""Datasets of other packages, which are extras: the package, a class by its name, and an object of that class."""

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from invbench.core.third_party import load_guarded
from invbench.datafiles.checksums import sha256, stamp
from invbench.errors import UserError, brief, did_you_mean
from invbench.system import workarounds

T = TypeVar("T")
MOST_FILES = 20_000_000
RUNS = frozenset(("spec.yaml", "sweep.yaml"))
"""Files of folders of runs, which change all the time."""
_sources: dict[str, str] = {}
"""Sums of the files of modules of one's own, as they were when they were imported."""


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
            with workarounds.without_version_checks():
                _quietly(lambda: importlib.import_module(name), f"the package {name}")
        finally:
            sys.path.remove(str(home))
    module = sys.modules[name]
    where = Path(module.__file__ or ".")
    if not where.is_relative_to(Path(str(home))):
        raise UserError(f"{where} is imported under the name of the package {name}; rename that module")
    return module


def class_of(name: str, module: str, contract: type[T]) -> type[T]:
    """Return a dataset's class: of a module of the package, or `my_module:MyDataset`, also of the working folder.

    Raises:
        UserError: there is none, or it does not derive from the contract.
    """
    own_module, colon, own_name = name.partition(":")
    where, wanted = (own_module, own_name) if colon else (module, name)
    if colon and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    home = _quietly(lambda: importlib.import_module(where), f"dataset.name: the module {brief(where)}")
    home = _renewed(home) if colon else home
    cls = getattr(home, wanted, None)
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        choices = [one for one, value in vars(home).items() if isinstance(value, type) and issubclass(value, contract)]
        hint = did_you_mean(wanted, choices) or ("" if colon else "; a class of your own is my_module:MyDataset")
        raise UserError(f"dataset.name: {where} has no {contract.__name__} named '{brief(wanted)}'{hint}")
    return cls


def _renewed(module: ModuleType) -> ModuleType:
    """Return a module as its file has it now, which may have changed since it was imported."""
    path = _file_of(module)
    if path is None or module.__name__ == "__main__":
        return module
    digest = sha256(path)
    if _sources.setdefault(module.__name__, digest) != digest:
        module = _quietly(lambda: importlib.reload(module), f"dataset.name: the module {module.__name__}")
        _sources[module.__name__] = digest
    return module


def code_of(cls: type[Any]) -> str:
    """Return a text that is equal where the code of a class is: of its file, or of itself where it has none."""
    path = _file_of(sys.modules[cls.__module__])
    functions = [one.__code__ for one in vars(cls).values() if isinstance(one, FunctionType)]
    code = sha256(path) if path else str([(one.co_code, one.co_consts, one.co_names) for one in functions])
    return f"{cls.__module__}.{cls.__qualname__} {code}"


def files_of(cls: type[Any], root: Path, arguments: object) -> tuple[Path, ...]:
    """List the files that a dataset of a class depends on: its code, and those below its root and in its arguments."""
    code = _file_of(sys.modules[cls.__module__])
    return (*([] if code is None else [code]), *files_below(root, *named_in(arguments)))


def _file_of(module: ModuleType) -> Path | None:
    path = Path(getattr(module, "__file__", None) or "")
    return path if path.is_file() else None


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
    fetch = ", or set dataset.download=true" if "download" in where and not download else ""
    offline = f"put its files into {root}{fetch}"
    parts = {}
    for split, more in (splits or _splits_of(parameters)).items():
        part = made(cls, where | dict(arguments) | dict(more), f"{offline}; dataset.splits sets what splits are")
        if not _quietly(partial(len, part), f"len of {cls.__name__}", "measuring"):
            raise UserError(f"dataset.name: {cls.__name__} has nothing in the split {split}, made with {dict(more)}")
        parts[split] = part
    return parts


def _splits_of(parameters: Mapping[str, inspect.Parameter]) -> dict[str, dict[str, Any]]:
    """Return the arguments of the splits that a class with these parameters has; of others it is all one."""
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in parameters:
        return {"train": {}}
    first = parameters["split"].default
    if not (isinstance(first, str) and first.startswith("train")):
        raise UserError("say what the splits are: 'dataset.splits={train: {split: ...}, test: {split: ...}}'")
    return {"train": {"split": first}, "test": {"split": "test"}}


def files_below(*folders: str | Path) -> tuple[Path, ...]:
    """List the files below folders, in sorted order, links followed; without hidden ones and folders of runs."""
    files: list[Path] = []
    seen: set[str] = set()
    for folder in folders:
        if Path(folder).is_file():
            files.append(Path(folder))
        for parent, names, there in os.walk(folder, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen or not RUNS.isdisjoint(there):
                names.clear()
                continue
            seen.add(real)
            names[:] = [name for name in names if not name.startswith((".", "__"))]
            files += [Path(parent, name) for name in there if not name.startswith(".")]
            if len(files) > MOST_FILES:
                raise UserError(f"{folder} has more than {MOST_FILES} files; give a folder that has the dataset alone")
    return tuple(sorted(files))


def stamps(files: Iterable[Path]) -> Iterator[str]:
    """Yield the path, size and time of change of files that are there."""
    for path in files:
        with suppress(OSError):  # a link to nothing
            yield stamp(path)


def named_in(value: Any) -> Iterator[str]:
    """Yield the folders and files that arguments name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from named_in(one)
    elif isinstance(value, str) and Path(value).exists():
        yield value
