"""Nested dictionaries: of tensors in states and checkpoints, of values in settings."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[str, Any]
"""A dictionary whose values are leaves or trees."""


def flatten(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Collect the leaves by path, in the tree's order."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any], separator: str = ".") -> Tree:
    """Invert `flatten`; empty levels are lost. Raises ValueError for a path through a leaf."""
    tree: Tree = {}
    for path, value in flat.items():
        *levels, name = path.split(separator)
        level = tree
        for key in levels:
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise ValueError(f"{key} in {path} is a leaf")
        if name in level:
            raise ValueError(f"{path} is a leaf and has some")
        level[name] = value
    return tree


def sole(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the value of the only name, else the tree: a single method needs no prefix, parts of a composition do."""
    return next(iter(tree.values())) if len(tree) == 1 else tree


def map_leaves(change: Callable[[Any], Any], tree: Mapping[str, Any]) -> Tree:
    """Apply a function to every leaf of a tree."""
    return {
        name: map_leaves(change, value) if isinstance(value, dict) else change(value) for name, value in tree.items()
    }
