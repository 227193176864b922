"""Where settings come from: class defaults < dataset recipe < recipe's entry for the method < sweep < --set."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any

from invbench.errors import UserError, brief, did_you_mean
from invbench.strict_yaml import parse_yaml

Layer = dict[str, Any]
"""Settings of one source: sections method (nested by part), dataset, backbone, trainer."""

SECTIONS = ("method", "dataset", "backbone", "trainer")
ALTERNATIVES = {"trainer": (("steps", "epochs"),)}
"""Settings of which a later source's choice drops the earlier source's."""


@cache
def recipe_text(dataset: str) -> str | None:
    """Read the YAML of a dataset's recipe; None where there is none."""
    path = files("invbench.configs") / "recipes" / f"{dataset}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def sweep_names() -> list[str]:
    """List the names of the sweeps that come with the package."""
    folder = files("invbench.configs") / "sweeps"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def sweep_text(name: str) -> str:
    """Read the YAML of a sweep that comes with the package."""
    return (files("invbench.configs") / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def _parsed(text: str, source: str) -> Any:
    """Parse a recipe. The result is cached, so callers must not change it."""
    return parse_yaml(text, source)


def recipe_layers(dataset: str, parts: Iterable[str], penalties: Layer, variant: Any = None) -> list[Layer]:
    """Return the recipe of a dataset, then its entries for each part of the method, then for their composition.

    A recipe may have sections `variants`: then the one that is named like the dataset's `variant` counts, alone.

    Args:
        penalties: what some rules want of the penalties that they weigh; behind the entries for single parts and ahead
            of that for all.
        variant: the dataset's setting of this name, unchecked, where it has one.
    """
    text = recipe_text(dataset)
    if text is None:
        return [penalties]
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
    layers.append(penalties)
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
    """Parse `key=value` texts into a mapping; values are YAML, such as 3, 1e-3, true, null, [0.5, 0.75]."""
    assignments = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.isprintable():
            raise UserError(f"--set {brief(text)}: write it as section.name=value, e.g. trainer.epochs=3")
        assignments[key.strip()] = parse_yaml(value, f"--set {brief(text)}")
    return assignments


def assignments_layer(assignments: Mapping[str, Any], fields: Mapping[str, Iterable[str]]) -> Layer:
    """Turn dotted assignments, such as `{"trainer.epochs": 3}`, into a layer.

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
    """Merge layers; later ones win, setting by setting.

    A layer that names another backbone drops the earlier one's settings; one that sets the other of two alternatives
    drops the first.
    """
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
    """Return the path with the name of the part in front: the given one, or the only part that has such a setting."""
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
