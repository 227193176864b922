"""Where settings come from: class defaults < dataset recipe < recipe's entry for the method < sweep < --set."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from invbench.errors import UserError, brief, did_you_mean

Layer = dict[str, Any]
"""Settings of one source: sections method (nested by part), dataset, backbone, trainer."""

SECTIONS = ("method", "dataset", "backbone", "trainer")
ALTERNATIVES = {"trainer": (("steps", "epochs"),)}
"""Settings of which a later source's choice drops the earlier source's."""


LONGEST = 2**20
"""Characters, or bytes, of a YAML text."""
DEEPEST = 32
"""Levels of tables and lists in it; the package's own files have 7."""
MOST_VALUES = 100_000
"""Values in it, with what aliases stand for written out."""
INTEGERS = range(-(2**53) + 1, 2**53)
"""What every reader of JSON has exactly; so many of anything are far from what integers of 64 bits can count."""


MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML with JSON's idea of data, within bounds.

    1e-3 is a number; yes, 1:30 and 2020-01-01 are strings. Keys are strings, each once in a table; `<<` takes over what
    a table, or each of a list, has and this one has not. There are no tags.
    All is checked while the text is read, before any of it is made into data.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = self._values = 0
        self._sizes: dict[yaml.Node, int] = {}
        """Values in each node that is complete."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One value with all that is in it."""
        event, before = self.peek_event(), self._values
        self._level += 1
        self._check_event(event)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _refused(f"*{event.anchor} stands for something that it is in itself", event)
            self._values += self._sizes[node]
        else:
            _check_keys(node)
            self._values += 1
            self._sizes[node] = self._values - before
        if self._values > MOST_VALUES:
            raise _refused(f"there are more than {MOST_VALUES} values, with those that aliases stand for", event)
        return node

    def _check_event(self, event: Any) -> None:
        if self._level > DEEPEST:
            raise _refused(f"there are more than {DEEPEST} levels", event)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"tags such as {brief(event.tag)} are not known", event)
        if isinstance(event, yaml.ScalarEvent) and re.search("[\0\ud800-\udfff]", event.value):
            raise _refused("there is a character that is no text", event)


def _check_keys(node: yaml.Node) -> None:
    """Of a table."""
    known = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.tag == MERGE:
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(one, yaml.MappingNode) for one in merged):
                raise _refused("<< takes a table, or a list of tables, such as *name", key)
        elif key.tag != "tag:yaml.org,2002:str":
            raise _refused("a key is no text; put it in quotes", key)
        if key.value in known:
            raise _refused(f"'{brief(key.value)}' is there twice", key)
        known.add(key.value)


def _refused(problem: str, position: Any) -> yaml.MarkedYAMLError:
    """An error at an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=position.start_mark)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 20 or int(node.value) not in INTEGERS:
        raise _refused(f"{brief(node.value)} is no whole number below 2^53", node)
    return int(node.value)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor(MERGE, lambda loader, node: node.value)  # where it is no key
_Loader.add_implicit_resolver(MERGE, re.compile("^<<$"), ["<"])
for _tag, _pattern, _first in (
    ("null", r"null|~|", "n~\0"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, source: str) -> Any:
    """The data in a YAML text: JSON's kinds of values, within bounds.

    Raises:
        UserError: it is malformed, too long, too deep, or of another kind; the message names `source` and the line.
    """
    if len(text) > LONGEST:
        raise UserError(f"{source} is too long: it may have {LONGEST} characters")
    try:
        loader = _Loader(text)  # which reads the text's characters already
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{source}{line} is not valid YAML: {problem}") from None


def read_yaml(path: Path, source: str) -> Any:
    """The data in a YAML file, as `parse_yaml`. Raises UserError also where it is no file, or no text."""
    try:
        if not path.is_file():  # a pipe would be waited for, and a device has no end
            raise UserError(f"{source}: {path} is no file")
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from None
    if len(content) > LONGEST:
        raise UserError(f"{source} is too long: it may have {LONGEST} bytes")
    try:
        return parse_yaml(content.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is no text in UTF-8: {error.reason} at byte {error.start + 1}") from None


@cache
def recipe_text(dataset: str) -> str | None:
    """The YAML of a dataset's recipe, or None where there is none."""
    path = files("invbench.configs") / "recipes" / f"{dataset}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def sweep_names() -> list[str]:
    """The sweeps that come with the package."""
    folder = files("invbench.configs") / "sweeps"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def sweep_text(name: str) -> str:
    """The YAML of such a sweep."""
    return (files("invbench.configs") / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def _parsed(text: str, source: str) -> Any:
    """A recipe's data, which nobody may change."""
    return parse_yaml(text, source)


def recipe_layers(dataset: str, parts: Iterable[str], companions: Layer, variant: Any = None) -> list[Layer]:
    """The recipe of a dataset, then its entries for each part of the method, then for their composition.

    A recipe may have sections `variants`: then the one that is named like the dataset's `variant` counts, alone.

    Args:
        companions: what some parts want of others, between the entries for single parts and that for all.
        variant: the dataset's setting of this name, unchecked, where it has one.
    """
    text = recipe_text(dataset)
    if text is None:
        return [companions]
    source = f"recipe {dataset}.yaml"
    recipe = deepcopy(_parsed(text, source))
    if "variants" in recipe:
        recipe = recipe["variants"].get(variant, {}) if isinstance(variant, str) else {}
    entries = recipe.pop("methods", None) or {}
    parts = list(parts)
    layers = [recipe]
    for name in parts:
        entry = dict(entries.get(name) or {})
        if "method" in entry:
            entry["method"] = {name: entry["method"]}
        layers.append(entry)
    layers.append(companions)
    if len(parts) > 1:
        layers.append(dict(entries.get("+".join(parts)) or {}))
    for layer in layers:
        check_sections(layer, source)
    return layers


def check_sections(layer: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a section that does not exist or is no table."""
    for section, values in layer.items():
        if section not in SECTIONS:
            raise UserError(f"{source}: no section '{section}'{did_you_mean(section, SECTIONS)}")
        if not isinstance(values, dict):
            raise UserError(f"{source}: section '{section}' must be a table of settings")


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are YAML, such as 3, 1e-3, true, null, [0.5, 0.75]."""
    assignments = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.isprintable():
            raise UserError(f"--set {brief(text)}: write it as section.name=value, e.g. trainer.epochs=3")
        assignments[key.strip()] = parse_yaml(value, f"--set {brief(text)}")
    return assignments


def assignments_layer(assignments: Mapping[str, Any], fields: Mapping[str, Iterable[str]]) -> Layer:
    """The layer of dotted assignments, such as `{"trainer.epochs": 3}`.

    Args:
        fields: the settings of each part of the method, to tell whose `method.threshold` is.
    """
    values: dict[tuple[str, ...], Any] = {}
    for key, value in assignments.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS or not name:
            hint = did_you_mean(section, SECTIONS) if section not in SECTIONS else ""
            raise UserError(f"setting '{key}': write it as section.name, e.g. trainer.epochs{hint}")
        path = name.split(".")
        if section == "method":
            path = _owner(path, fields, key)
        values[section, *path] = value
    layer: Layer = {}
    for names, value in values.items():
        for whole in (names[:length] for length in range(2, len(names))):
            if whole in values:
                raise UserError(f"'{'.'.join(names)}' is a part of '{'.'.join(whole)}', which is set too: set only one")
        target = layer
        for step in names[:-1]:
            target = target.setdefault(step, {})
        target[names[-1]] = value
    return layer


def merge(layers: Iterable[Layer]) -> Layer:
    """Later layers win, setting by setting. Another backbone, or the other one of two alternatives, starts afresh."""
    merged: Layer = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, values in layer.items():
            current = merged[section]
            if section == "backbone" and values.get("name", current.get("name")) != current.get("name"):
                current.clear()
            for group in ALTERNATIVES.get(section, ()):
                if any(values.get(name) is not None for name in group):
                    for name in group:
                        current.pop(name, None)
            _update(current, values)
    return merged


def _update(current: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(current.get(name), dict):
            _update(current[name], value)
        else:
            current[name] = value


def _owner(path: list[str], fields: Mapping[str, Iterable[str]], key: str) -> list[str]:
    """The path with the part's name in front: given, or the only part that has such a setting."""
    if len(path) > 1 and path[0] in fields:
        return path
    owners = [part for part, names in fields.items() if path[0] in names]
    if len(owners) > 1:
        choices = " or ".join(f"method.{part}.{path[0]}" for part in owners)
        raise UserError(f"setting '{key}': {' and '.join(owners)} both have it; write {choices}")
    if not owners and len(fields) > 1:
        known = {name for names in fields.values() for name in names}
        raise UserError(f"no part of the method has the setting '{key}'{did_you_mean(path[0], known)}")
    return [owners[0] if owners else next(iter(fields)), *path]
