"""The data of runs, made once for all runs of a process that share them, as long as they fit into some memory."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from invbench.core.data import Problem, Split
from invbench.core.groups import SECOND_STAGE, GroupedDataset, arranged, with_hidden_attributes
from invbench.errors import RunFailed
from invbench.runs.resolve import RunConfig, resolve
from invbench.seeding import stream, torch_stream
from invbench.system.device import out_of_memory, set_numerics
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
    problem = loaded(config)
    number = config.trainer.held_out_environment
    data, seed = config.dataset, config.spec.seed
    rest = problem if number is None else problem.without_environment(number)
    divided = rest.with_validation(data.validation_share, stream(seed, "data", "validation"))
    if not isinstance(data, GroupedDataset):
        return divided
    if data.second_stage_share:
        divided = divided.with_split_off(SECOND_STAGE, data.second_stage_share, stream(seed, "data", SECOND_STAGE))
    return with_hidden_attributes(divided, data)


def loaded(config: RunConfig) -> Problem:
    """Make the data of a run as the dataset's settings say, all of them in its splits."""
    try:
        problem = config.dataset.load(stream(config.spec.seed, "data"))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunFailed("oom", f"{config.title} failed (oom): its data do not fit into memory: {error}") from None
    return arranged(problem, config.dataset) if isinstance(config.dataset, GroupedDataset) else problem


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
    examples = None if problem.examples is None else problem.examples.to(device, dtype)
    return replace(problem, splits=splits, examples=examples)


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
