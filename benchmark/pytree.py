"""Nested dictionaries: of tensors in states and checkpoints, of values in settings."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[str, Any]
"""A dictionary whose values are leaves or trees."""


def flatten(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Leaves by path, in the tree's order."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any], separator: str = ".") -> Tree:
    """The inverse of `flatten`, save that empty levels are lost. Raises ValueError for a path through a leaf."""
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
    """What is under the only name, or the tree: a method by itself needs no prefix, the parts of a composition do."""
    return next(iter(tree.values())) if len(tree) == 1 else tree


def map_leaves(change: Callable[[Any], Any], tree: Mapping[str, Any]) -> Tree:
    """The same tree with every leaf changed."""
    return {
        name: map_leaves(change, value) if isinstance(value, dict) else change(value) for name, value in tree.items()
    }
