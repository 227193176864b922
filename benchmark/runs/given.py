"""Problems that are given in Python in the place of a dataset's name."""

from collections.abc import Mapping
from typing import Any

from invbench.core import problem_file
from invbench.core.data import Problem
from invbench.errors import UserError

DATASET, SETTING = "arrays", "dataset.fingerprint"


def named_dataset(dataset: str | Problem, settings: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings by which runs, in other processes too, get the data.

    A problem is kept in the cache, so that its runs can be taken up and restored later.

    Raises:
        UserError: the problem cannot be kept in a file.
    """
    chosen = dict(settings or {})
    if isinstance(dataset, str):
        return dataset, chosen
    if not isinstance(dataset, Problem):
        raise UserError(f"a dataset is a name or a Problem, not a {type(dataset).__name__}; see Problem.from_arrays")
    identity = dataset.identity()
    path = problem_file.path_in_cache(identity)
    try:
        problem_file.header(path)
    except UserError:  # it is not there, or damaged
        with problem_file.named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save(path)
    return DATASET, chosen | {SETTING: identity}


def named_cells(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition of a sweep with names in the place of problems; a cell has one problem at most."""
    if not isinstance(definition, Mapping):
        raise UserError(f"a sweep is a name, a file or a mapping, not a {type(definition).__name__}")
    cells: list[Any] = []
    if not isinstance(definition.get("cells"), list | tuple):
        return dict(definition)
    for cell in definition["cells"]:
        if isinstance(cell, Mapping) and isinstance(cell.get("dataset"), Problem):
            name, settings = named_dataset(cell["dataset"], cell.get("set"))
            cells.append({**cell, "dataset": name, "set": settings})
        else:
            cells.append(cell)
    return {**definition, "cells": cells}
