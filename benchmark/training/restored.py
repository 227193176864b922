"""Finished runs, brought back to life."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from invbench.core.data import Problem
from invbench.errors import Unusable, UserError
from invbench.runs.checkpoint import Checkpoint, check_fit
from invbench.runs.record import RunFolder
from invbench.runs.spec import Cell, from_spec
from invbench.system.provenance import choose_device
from invbench.training.build import load_problem
from invbench.training.runner import model_on


class Trained(NamedTuple):
    """What a run trained: the model with its last weights, in evaluation mode, and its problem on the same device."""

    cell: Cell
    problem: Problem
    model: nn.Module


def trained(path: str | Path, device: str = "cpu") -> Trained:
    """The run of a folder, on a device: auto, cpu, cuda or cuda:i.

    Raises:
        UserError: the run is not done, its record or checkpoint is damaged, its weights are not finite or do not fit
            this code, or its data are others than they were.
    """
    folder = RunFolder(Path(path))
    try:
        checkpoint = Checkpoint.load(folder.checkpoint)
    except Unusable as error:
        raise UserError(f"{path}: {error}; delete it and repeat the command that made it") from None
    record = folder.load_record()
    if record is None or checkpoint is None or record.status != "done":
        raise UserError(f"{path} holds no finished run with its checkpoint; the command that made it finishes it")
    cell = from_spec(record.spec)
    problem = load_problem(cell)
    if problem.fingerprint != record.data["fingerprint"]:
        raise UserError(f"the data of {path} are not what they were when it was trained; run it again")
    dtype = getattr(torch, cell.trainer.dtype)
    place = choose_device(device)
    model = model_on(place, cell, problem)
    try:
        check_fit({"model": model.state_dict()}, checkpoint.tensors)
    except Unusable:
        raise UserError(f"the weights of {path} belong to another version of the network; run it again") from None
    model.load_state_dict(checkpoint.tensors["model"])
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise UserError(f"the weights of {path} are not all finite; run it again")
    return Trained(cell, problem.to(place, dtype), model.eval())
