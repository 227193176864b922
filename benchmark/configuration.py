"""Where settings come from: class defaults < dataset recipe < recipe's entry for the method < sweep < --set."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from invbench.errors import UserError, did_you_mean

Layer = dict[str, Any]
"""Settings of one source: sections method (nested by part), dataset, backbone, trainer."""

SECTIONS = ("method", "dataset", "backbone", "trainer")
ALTERNATIVES = {"trainer": (("steps", "epochs"),)}
"""Settings of which a later source's choice drops the earlier source's."""


class _Loader(yaml.SafeLoader):
    """YAML with JSON's idea of a scalar: 1e-3 is a number; yes, 1:30 and 2020-01-01 are strings."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
for _tag, _pattern, _first in (
    ("null", r"null|~|", "n~\0"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, source: str) -> Any:
    """The data in a YAML text. Raises UserError naming `source` and the line when it is malformed."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    finally:
        loader.dispose()


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


def recipe_layers(dataset: str, parts: Iterable[str], companions: Layer) -> list[Layer]:
    """The recipe of a dataset, then its entries for each part of the method, then for their composition.

    Args:
        companions: what some parts want of others, between the entries for single parts and that for all.
    """
    text = recipe_text(dataset)
    if text is None:
        return [companions]
    source = f"recipe {dataset}.yaml"
    recipe = deepcopy(_parsed(text, source))
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
        if not separator:
            raise UserError(f"--set {text}: write it as section.name=value, e.g. trainer.epochs=3")
        assignments[key.strip()] = parse_yaml(value, f"--set {text}")
    return assignments


def assignments_layer(assignments: Mapping[str, Any], fields: Mapping[str, Iterable[str]]) -> Layer:
    """The layer of dotted assignments, such as `{"trainer.epochs": 3}`.

    Args:
        fields: the settings of each part of the method, to tell whose `method.threshold` is.
    """
    layer: Layer = {}
    for key, value in assignments.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS or not name:
            hint = did_you_mean(section, SECTIONS) if section not in SECTIONS else ""
            raise UserError(f"setting '{key}': write it as section.name, e.g. trainer.epochs{hint}")
        path = name.split(".")
        if section == "method":
            path = _owner(path, fields, key)
        target = layer.setdefault(section, {})
        for step in path[:-1]:
            target = target.setdefault(step, {})
        target[path[-1]] = value
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
