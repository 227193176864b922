"""Registries of methods, datasets and backbones by name, listed without importing them.

Built-in ones are found as files (one file, one name); third parties add theirs through the entry-point groups
`invbench.methods`, `invbench.datasets` and `invbench.backbones`; a script or notebook adds one by using the decorator,
and so does a file that the environment variable INVBENCH_IMPORT names, for commands and the processes that they start.
This module imports nothing heavy: `bench ls` must answer at once.
"""

import ast
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from zlib import crc32

from invbench.core.third_party import load_guarded, one_line
from invbench.errors import UserError, brief, did_you_mean

T = TypeVar("T", bound=type)
NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Pattern of names, which are part of settings and of files' names."""
IMPORT_VARIABLE = "INVBENCH_IMPORT"
"""Environment variable of Python files, separated as in PATH, whose entries are registered with the others."""


@dataclass(frozen=True)
class Entry:
    """Registered name: its module, a summary, and what can be read of it without importing it."""

    name: str
    origin: str
    load: Callable[[], type[Any]]
    summary: str = ""
    literals: Mapping[str, Any] | None = None
    """Class attributes that are written as plain literals; None where only the class itself can tell."""


def import_named_files() -> None:
    """Import each file that INVBENCH_IMPORT names, once. Raises UserError for one that does not load."""
    for path in filter(None, os.environ.get(IMPORT_VARIABLE, "").split(os.pathsep)):
        import_file(Path(path))


def import_file(path: Path) -> ModuleType:
    """Import a Python file, once, with its folder on the path as that of a script is.

    Raises:
        UserError: there is no such file, or it does not load.
    """
    try:
        file = path.resolve()
        exists = file.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        exists = False
    spec = None
    if exists:
        name = f"_imported_{file.stem}_{crc32(str(file).encode()):08x}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{brief(str(path))} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if (folder := str(file.parent)) not in sys.path:
        sys.path.append(folder)
    try:
        load_guarded(partial(spec.loader.exec_module, module), str(path))
    except UserError:
        del sys.modules[name]
        raise
    return module


class Registry:
    """Names of one kind, each loaded when it is first asked for.

    Args:
        kind: the word for messages, such as ``method``.
        group: the package whose files are the built-in entries, and the entry-point group of third parties.
        trait: the class attribute, a tuple of strings, that can be read without importing the file.
        contract: the class that all entries derive from.
        check: raises UserError for a third party's class that is not valid.
    """

    def __init__(
        self, kind: str, group: str, trait: str, contract: str, check: Callable[[type[Any]], object] | None = None
    ) -> None:
        self.kind, self.group, self.trait, self.contract, self.check = kind, group, trait, contract, check
        self._registered: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Make a decorator that registers a class as `name`. It raises UserError where the name is taken."""
        if not NAME.fullmatch(name):
            raise UserError(f"{self.kind} name '{brief(name)}' must be lower-case letters, digits and underscores")

        def decorate(cls: T) -> T:
            if why := self._unfit(cls):
                raise UserError(f"{self.kind} '{name}' {why}")
            registered = self._registered.get(name)
            entry = self._listed.get(name)
            if registered is not None and _origin(registered) != _origin(cls):
                raise self._collision(name, _origin(registered), _origin(cls))
            if registered is None and entry is not None and not self._is_origin_of(entry, cls):
                raise self._collision(name, entry.origin, _origin(cls))
            self._registered[name] = cls
            return cls

        return decorate

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Forget the classes that are registered inside a `with` statement at its end, and bring back those of before.

        What is listed stays loaded: a module of the package is executed once, and would not register its class again.
        """
        before = dict(self._registered)
        try:
            yield
        finally:
            added = self._registered.keys() - before.keys()
            loaded = {name: self._registered[name] for name in added if name in self._listed}
            self._registered.clear()
            self._registered.update(before | loaded)

    def entries(self) -> dict[str, Entry]:
        """Return every usable entry in alphabetical order; warn once of third parties' that do not load."""
        return {name: entry for name, entry in self.known().items() if name not in self._unusable}

    def known(self) -> dict[str, Entry]:
        """Return every entry in alphabetical order, usable or not, without importing any but named files."""
        import_named_files()
        registered = {name: _entry_of(name, cls) for name, cls in self._registered.items()}
        return dict(sorted((registered | self._listed).items()))

    def load(self, name: str) -> type[Any]:
        """Load the class of this name. Raises UserError with the nearest name where there is none."""
        if name not in self._registered:
            self._registered[name] = self._entry(name).load()
        return self._registered[name]

    def traits(self, name: str) -> tuple[str, ...]:
        """Return what one entry requires, provides or accepts; only a third party's file is imported for it."""
        return tuple(self.literal(name, self.trait, ()))

    def literal(self, name: str, attribute: str, default: Any) -> Any:
        """Return a class attribute that built-in entries write as a plain literal, without importing their files."""
        literals = self._entry(name).literals
        return getattr(self.load(name), attribute, default) if literals is None else literals.get(attribute, default)

    @property
    def aliases(self) -> dict[str, str]:
        """Return the registered names by display name, of entries that have one."""
        display_names = {name: (entry.literals or {}).get("display_name") for name, entry in self.known().items()}
        return {str(display_name): name for name, display_name in display_names.items() if display_name}

    def _entry(self, name: str) -> Entry:
        import_named_files()
        if name in self._listed:
            return self._listed[name]
        if name in self._registered:
            return _entry_of(name, self._registered[name])
        raise UserError(f"no {self.kind} '{brief(name)}'{did_you_mean(name, self.known(), self.aliases)}")

    @cached_property
    def _unusable(self) -> set[str]:
        """Return the names of third parties whose code does not load, each with a warning."""
        names = set()
        for name, entry in self._listed.items():
            if entry.literals is None:
                try:
                    self.load(name)
                except UserError as error:
                    warnings.warn(f"left out: {error}", stacklevel=2)
                    names.add(name)
        return names

    @cached_property
    def _listed(self) -> dict[str, Entry]:
        folder = _folder_of(self.group)
        listed = {
            path.stem: self._built_in(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")
        }
        for point in entry_points(group=self.group):
            entry, earlier = self._third_party(point), listed.get(point.name)
            if not NAME.fullmatch(point.name):
                self._leave_out(entry, "its name must be lower-case letters, digits and underscores")
            elif earlier is not None and earlier.origin != entry.origin:
                self._leave_out(entry, f"its name is that of {earlier.origin}; rename or uninstall one")
            else:
                listed[point.name] = entry
        return listed

    def _leave_out(self, entry: Entry, why: str) -> None:
        warnings.warn(f"left out: {self.kind} '{brief(entry.name)}' {entry.summary}: {why}", stacklevel=2)

    def _third_party(self, point: EntryPoint) -> Entry:
        """Make the entry of an installed package; its code may do anything when it is imported."""
        summary = f"from the package {point.dist.name if point.dist else '?'}"

        def load() -> type[Any]:
            cls = point.load()
            if why := self._unfit(cls):
                raise UserError(f"{point.value} {why}")
            if self.check is not None:
                self.check(cls)
            return cls  # type: ignore[no-any-return]

        what = f"{self.kind} '{point.name}' {summary}"
        return Entry(point.name, point.value.partition(":")[0].strip(), lambda: load_guarded(load, what), summary)

    def _unfit(self, candidate: object) -> str:
        """Return why an object is no class of this kind; empty where it is one."""
        module, _, name = self.contract.rpartition(".")
        contract = getattr(sys.modules.get(module), name, None)  # imported by whatever derives from it
        if contract is None or not isinstance(candidate, type) or not issubclass(candidate, contract):
            return f"must be a class that derives from {self.contract}"
        if missing := ", ".join(sorted(getattr(candidate, "__abstractmethods__", ()))):
            return f"must be a class that has {missing}, as {self.contract} says"
        traits = getattr(candidate, self.trait, ())
        if not isinstance(traits, tuple) or not all(isinstance(trait, str) for trait in traits):
            return f"must be a class whose '{self.trait}' is a tuple of names"
        return ""

    def _built_in(self, path: Path) -> Entry:
        module, name = f"{self.group}.{path.stem}", path.stem
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except (SyntaxError, ValueError) as error:
            return _broken(name, module, f"{path}{_line(error)}: {error.args[0]}")

        def load() -> type[Any]:
            try:
                importlib.import_module(module)
            except (Exception, SystemExit, GeneratorExit) as error:
                raise UserError(f"{path} cannot be imported: {one_line(error)}") from error
            if name not in self._registered:
                raise UserError(f"{path} does not register a {self.kind} named '{name}', the name of its file")
            return self._registered[name]

        return Entry(name, module, load, _first_line(ast.get_docstring(tree)), _literals(tree))

    def _is_origin_of(self, entry: Entry, cls: type) -> bool:
        """Tell whether a listed entry is the class that now registers under its name."""
        built_in = entry.origin.startswith(f"{self.group}.")
        # A third party's entry point may name a package that gets the class from one of its modules.
        return entry.origin == cls.__module__ or (not built_in and _top(entry.origin) == _top(cls.__module__))

    def _collision(self, name: str, first: str, second: str) -> UserError:
        return UserError(f"two {self.kind}s are named '{name}': {first} and {second}; rename or uninstall one")


def _folder_of(group: str) -> Path:
    """Return the folder of a built-in package without importing the package."""
    spec = importlib.util.find_spec(group)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {group} is not installed; install invbench again")
    return Path(spec.submodule_search_locations[0])


def _broken(name: str, module: str, reason: str) -> Entry:
    """Make the entry of a file that is no valid Python; loading it raises UserError."""

    def load() -> type[Any]:
        raise UserError(reason)

    return Entry(name, module, load, f"cannot be read: {reason}", {})


def _line(error: Exception) -> str:
    return f", line {error.lineno}" if isinstance(error, SyntaxError) else ""


def _literals(tree: ast.Module) -> dict[str, Any]:
    """Return the annotated attributes of a file's classes whose values are plain literals; later classes win."""
    literals = {}
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for line in cls.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
                with suppress(ValueError):
                    literals[line.target.id] = ast.literal_eval(line.value)
    return literals


def _entry_of(name: str, registered: type[Any]) -> Entry:
    """Return the entry of a class that was registered by code, not listed ahead."""
    return Entry(name, _origin(registered), lambda: registered, _first_line(registered.__doc__))


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _top(module: str) -> str:
    return module.partition(".")[0]


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _release_of(dataset: type[Any]) -> object:
    """Return the release that a dataset names; None without one. Raises UserError where it is not known."""
    from invbench.datafiles.release import release  # which the class has imported

    return release(dataset.release) if dataset.release else None


METHODS = Registry("method", "invbench.methods", trait="requires", contract="invbench.core.method.Method")
DATASETS = Registry(
    "dataset", "invbench.datasets", trait="provides", contract="invbench.core.data.Dataset", check=_release_of
)
BACKBONES = Registry("backbone", "invbench.backbones", trait="accepts", contract="invbench.core.backbone.Backbone")

register_method = METHODS.register
register_dataset = DATASETS.register
register_backbone = BACKBONES.register


def unmet(requires: tuple[str, ...], provides: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a method requires and a dataset does not provide, in the method's order. "a or b" takes either."""
    return tuple(need for need in requires if not set(need.split(" or ")) & set(provides))


def datasets_with_defaults() -> list[str]:
    """List the datasets that need no setting of the user's, such as the path of data of one's own."""
    return [name for name in DATASETS.entries() if not DATASETS.literal(name, "required_setting", "")]
