"""Problems in files: tensors in safetensors, with what they mean as JSON in the header."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from invbench.core.data import Pixels, Problem, Split
from invbench.core.image_file import ImageFile
from invbench.core.task import BinaryClassification, Classification, Regression, Task
from invbench.datafiles.checksums import is_regular
from invbench.datafiles.release import cache_folder
from invbench.errors import UserError
from invbench.files import replacing

TASKS = {task.__name__: task for task in (BinaryClassification, Classification, Regression)}
FORMAT = "invbench problem 1"
FACTS = ("kind", "variant", "facts", "classes", "environment_names", "metric", "source")
"""Fields of a problem that JSON holds as they are."""


def save(problem: Problem, path: Path) -> None:
    """Write a problem to a file, replacing one that is there.

    Raises:
        UserError: it has a part that no file can hold.
    """
    if problem.augment is not None or problem.law is not None:
        raise UserError("a problem with `augment` or `law` cannot be kept in a file; register a dataset instead")
    if any(isinstance(split.x, ImageFile) for split in problem.splits.values()):
        raise UserError("these images stay in a file of their own; name their dataset instead of the problem")
    described = {name: getattr(problem, name) for name in FACTS} | {
        "task": described_task(problem.task),
        "pixels": [problem.pixels.mean, problem.pixels.deviation],
        "provides": provided_by(problem),
        "smallest_environment": _smallest_environment(problem),
        "fingerprint": problem.fingerprint,
    }
    tensors = {
        f"{name}.{part}": value.cpu().contiguous()
        for name, split in problem.splits.items()
        for part, value in split.tensors().items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "problem": json.dumps(described)})


def load(path: Path) -> Problem:
    """Read a problem from a file. Raises UserError where it is damaged or no such file."""
    described = header(path)
    splits: dict[str, dict[str, Any]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                split, _, part = name.rpartition(".")
                splits.setdefault(split, {})[part] = file.get_tensor(name)
        task, settings = described["task"]
        problem = Problem(
            {name: Split(**parts) for name, parts in splits.items()},
            TASKS[task](**settings),
            pixels=Pixels(*map(tuple, described["pixels"])),
            **{name: _frozen(described[name]) for name in FACTS},
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _no_problem(path, error) from None
    if problem.fingerprint != described["fingerprint"]:
        raise UserError(f"{path} is damaged: its data are not those that it was written with; make it again")
    return problem


def header(path: Path) -> dict[str, Any]:
    """Read what a problem's file says about it, without the data. Raises UserError as `load` does."""
    if not is_regular(path):
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        described: dict[str, Any] = json.loads(metadata["problem"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _no_problem(path, error) from None
    return described


def described_task(task: Task) -> list[Any]:
    """Return the class and the settings of a task. Raises UserError for one that is not of invbench."""
    cls = type(task)
    known = TASKS.get(cls.__name__)
    if known is None or known is not cls:
        raise UserError(f"a task of class {cls.__name__} cannot be kept in a file; register a dataset instead")
    return [cls.__name__, {field.name: getattr(task, field.name) for field in fields(known)}]


def path_in_cache(fingerprint: str) -> Path:
    """Return the path of a problem that was given in Python."""
    return cache_folder() / "problems" / f"{fingerprint}.safetensors"


def provided_by(problem: Problem) -> list[str]:
    """List what a problem provides, by the words of `Dataset.provides`."""
    train = problem.splits["train"]
    task = "regression" if isinstance(problem.task, Regression) else "classification"
    nuisance = ["nuisance"] if train.nuisance is not None else []
    return [problem.kind, task, *(["environments"] if problem.environments > 1 else []), *nuisance]


def _smallest_environment(problem: Problem) -> int:
    env = problem.splits["train"].env
    return len(problem.splits["train"]) if env is None else int(torch.bincount(env).min())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _no_problem(path: Path, error: Exception) -> UserError:
    why = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a problem that invbench has written ({why}); write it by Problem.save")
