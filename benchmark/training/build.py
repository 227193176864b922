"""The data of runs, made once for all runs of a process that share them, as long as they fit into some memory."""

import json
from collections import OrderedDict
from pathlib import Path

import torch

from invbench.core.data import Problem
from invbench.errors import RunFailed
from invbench.runs.spec import Cell
from invbench.seeding import stream
from invbench.system.memory import out_of_memory

KEPT_BYTES = 128 * 2**20
"""Most that is kept of problems besides the last one."""
_kept: "OrderedDict[str, Problem]" = OrderedDict()


def load_problem(cell: Cell) -> Problem:
    """The data of a run, on the CPU, without the environment that it leaves out, with a validation set.

    Their tensors must not be changed.
    """
    key = _key(cell)
    if key not in _kept:
        _kept[key] = _made(cell)
    _kept.move_to_end(key)
    while len(_kept) > 1 and sum(_bytes(problem) for problem in _kept.values()) > KEPT_BYTES:
        _kept.popitem(last=False)
    return _kept[key]


def _made(cell: Cell) -> Problem:
    try:
        problem = cell.dataset.load(stream(cell.spec.seed, "data"))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunFailed("oom", f"{cell.title} failed (oom): its data do not fit into memory: {error}") from None
    number = cell.trainer.held_out_environment
    rest = problem if number is None else problem.without_environment(number)
    return rest.with_validation(cell.dataset.validation_share, stream(cell.spec.seed, "data", "validation"))


def _key(cell: Cell) -> str:
    """Equal where the data are: dataset, settings, seed, what is left out, and the files as they are now."""
    files = [(str(path), *_stamp(path)) for path in cell.dataset.files()]
    settings = cell.spec.dataset_settings
    dataset = [cell.spec.dataset, id(type(cell.dataset))]  # a class may be registered anew
    facts = [dataset, settings, cell.spec.seed, cell.trainer.held_out_environment, files]
    return json.dumps(facts, sort_keys=True)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _bytes(problem: Problem) -> int:
    tensors: list[torch.Tensor] = [part for split in problem.splits.values() for part in split.tensors().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
