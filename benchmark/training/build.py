"""The data of runs, made once for all runs of a process that share them, as long as they fit into some memory."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, overload
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from invbench.core.data import Problem, Split
from invbench.errors import RunFailed, Unusable, UserError
from invbench.runs.checkpoint import Checkpoint, check_fit
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig, from_spec, resolve
from invbench.runs.spec import RunSpec
from invbench.seeding import stream, torch_stream
from invbench.system.device import choose_device, out_of_memory, set_numerics
from invbench.system.workarounds import keep_freed_memory

KEPT_BYTES = 128 * 2**20
"""Most that is kept of problems besides the last one."""
_kept: "OrderedDict[str, Problem]" = OrderedDict()
_moved: "WeakValueDictionary[tuple[str, str, torch.device, torch.dtype], Split]" = WeakValueDictionary()
"""Splits on a device, by the fingerprint of their problem and their name."""


@overload
def load_problem(dataset: RunConfig) -> Problem: ...


@overload
def load_problem(dataset: str, *, seed: int = 0, settings: Mapping[str, Any] | None = None) -> Problem: ...


def load_problem(dataset: str | RunConfig, *, seed: int = 0, settings: Mapping[str, Any] | None = None) -> Problem:
    """Make the data of a run, on the CPU, without the environment that it leaves out, with a validation set.

    Their tensors must not be changed: runs of this process that have the same data share them.

    >>> import invbench
    >>> problem = invbench.load_problem("spirals", settings={"dataset.environments": 2})
    >>> problem.environments, sorted(problem.splits)
    (2, ['test', 'train', 'validation'])

    Args:
        dataset: a registered name; or the configuration of a run, which has its seed and settings.
        seed: decides the data, as it does those of a run.
        settings: `{"dataset.environments": 4}`; they win over the recipe.

    Raises:
        UserError: no such data set or setting, or its files are not there.
        RunFailed: the data do not fit into memory.
    """
    config = dataset if isinstance(dataset, RunConfig) else resolve("erm", dataset, seed, settings)
    key = _key(config)
    if key not in _kept:
        _kept[key] = _made(config)
    _kept.move_to_end(key)
    while len(_kept) > 1 and sum(_bytes(problem) for problem in _kept.values()) > KEPT_BYTES:
        _kept.popitem(last=False)
    return _kept[key]


def _made(config: RunConfig) -> Problem:
    try:
        problem = config.dataset.load(stream(config.spec.seed, "data"))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunFailed("oom", f"{config.title} failed (oom): its data do not fit into memory: {error}") from None
    number = config.trainer.held_out_environment
    rest = problem if number is None else problem.without_environment(number)
    return rest.with_validation(config.dataset.validation_share, stream(config.spec.seed, "data", "validation"))


def _key(config: RunConfig) -> str:
    """Return a key that is equal where the data are: dataset, settings, seed, held-out environment, files."""
    files = [(str(path), *_stamp(path)) for path in config.dataset.files()]
    settings = config.spec.dataset_settings
    dataset = [config.spec.dataset, id(type(config.dataset))]  # a class may be registered anew
    facts = [dataset, settings, config.spec.seed, config.trainer.held_out_environment, files]
    return json.dumps(facts, sort_keys=True)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _bytes(problem: Problem) -> int:
    tensors: list[torch.Tensor] = [part for split in problem.splits.values() for part in split.tensors().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class RestoredRun(NamedTuple):
    """Result of a run: the model with its last weights, in evaluation mode, and its problem on the same device."""

    config: RunConfig
    problem: Problem
    model: nn.Module

    def __repr__(self) -> str:
        return f"RestoredRun({self.config.title}, {self.problem!r})"


def load_run(path: str | Path, device: str = "cpu") -> RestoredRun:
    """Restore what the run of a folder has trained.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> record = invbench.run("erm", "spirals", settings=settings, out="trained")
    >>> run = invbench.load_run(f"trained/{record.run_id}")
    >>> run.config.title, run.model.training
    ('erm/spirals seed 0', False)

    Args:
        path: the run's folder.
        device: auto, cpu, cuda or cuda:i.

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
    member = record.engine.get("member_spec")  # of a mean of runs, which has the weights of no run of its own
    config = from_spec(RunSpec.model_validate(member) if member else record.spec)
    problem = load_problem(config)
    if problem.fingerprint != record.data["fingerprint"]:
        raise UserError(f"the data of {path} are not what they were when it was trained; run it again")
    chosen = choose_device(device)
    model = model_on(chosen, config, problem)
    try:
        check_fit({"model": model.state_dict()}, checkpoint.tensors)
    except Unusable:
        raise UserError(f"the weights of {path} belong to another version of the network; run it again") from None
    average = checkpoint.tensors.get("average", {})
    means = {name: value for part in ("parameters", "buffers") for name, value in average.get(part, {}).items()}
    model.load_state_dict({**checkpoint.tensors["model"], **means})
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise UserError(f"the weights of {path} are not all finite; run it again")
    return RestoredRun(config, problem_on(chosen, config, problem), model.eval())


def problem_on(device: torch.device, config: RunConfig, problem: Problem) -> Problem:
    """Move the data of a run to the device and into the type in which it is trained.

    Runs of this process that have the same examples share them, whatever their seeds, as long as one of them uses them.
    """
    dtype = getattr(torch, config.trainer.dtype)
    splits: dict[str, Split] = {}
    for name, split in problem.splits.items():
        key = problem.fingerprint, name, device, dtype
        splits[name] = _moved.get(key) or split.to(device, dtype)
        _moved[key] = splits[name]
    return replace(problem, splits=splits)


def model_on(device: torch.device, config: RunConfig, problem: Problem) -> torch.nn.Module:
    """Build the network of a run, freshly initialised, on the device and in the type in which it is trained."""
    keep_freed_memory()
    set_numerics(device, config.trainer.tf32)
    model = build_model(config, problem).to(device, getattr(torch, config.trainer.dtype))
    # Convolutions are 1.2 to 1.4 times faster with their channels last, and with group norm slower on a CPU.
    has_group_norm = any(isinstance(module, torch.nn.GroupNorm) for module in model.modules())
    if problem.kind == "image" and not (has_group_norm and device.type == "cpu"):
        model = convert_conv2d_weight_memory_format(model, torch.channels_last)
    return model


def build_model(config: RunConfig, problem: Problem) -> torch.nn.Module:
    """Build the network of a run on the CPU. Its initial numbers do not depend on the method."""

    def backbone() -> nn.Module:
        return config.backbone.build(config.method.inputs(problem)) if config.backbone else nn.Identity()

    with torch_stream(stream(config.spec.seed, "init")):
        model = backbone()
    return config.method.build(model, problem, config.spec.seed, backbone)
