"""Finished runs, brought back to life."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from invbench.checkpoint import Checkpoint
from invbench.errors import UserError
from invbench.loading import load_problem
from invbench.machine import choose_device
from invbench.problem import Problem
from invbench.records import RunFolder
from invbench.runner import model_on
from invbench.spec import Cell, from_spec


class Trained(NamedTuple):
    """What a run trained: the model with its last weights, in evaluation mode, and its problem on the same device."""

    cell: Cell
    problem: Problem
    model: nn.Module


def trained(path: str | Path, device: str = "cpu") -> Trained:
    """The run of a folder, on a device: auto, cpu, cuda or cuda:i.

    Raises:
        UserError: the run is not done, its weights do not fit this code, or its data are others than they were.
    """
    folder = RunFolder(Path(path))
    spec, record, checkpoint = folder.read_spec(), folder.read_record(), Checkpoint.load(folder.checkpoint)
    if spec is None or record is None or checkpoint is None or record.status != "done":
        raise UserError(f"{path} holds no finished run with its checkpoint; the command that made it finishes it")
    cell = from_spec(spec)
    problem = load_problem(cell)
    if problem.fingerprint != record.data["fingerprint"]:
        raise UserError(f"the data of {path} are not what they were when it was trained; run it again")
    dtype = getattr(torch, cell.trainer.dtype)
    place = choose_device(device)
    model = model_on(place, cell, problem)
    try:
        model.load_state_dict(checkpoint.tensors["model"])
    except RuntimeError:
        raise UserError(f"the weights of {path} belong to another version of the network; run it again") from None
    return Trained(cell, problem.to(place, dtype), model.eval())
