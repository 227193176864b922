"""Payoff of training runs together on this machine, measured once and remembered in the cache folder."""

import copy
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from invbench.datafiles.release import cache_folder
from invbench.errors import CannotFuse
from invbench.files import write_text
from invbench.runs.resolve import RunConfig, fusion_key
from invbench.system.device import timed
from invbench.system.provenance import describe, sources_hash
from invbench.training.fused.loop import FusedTraining
from invbench.training.loop import TrainingLoop
from invbench.training.recorded_step import EARLIER

GAIN = 1.2
"""Minimum speed-up for which runs are trained together."""
CALLS = 5


def check_that_it_pays(fused: FusedTraining) -> None:
    """Raise CannotFuse where the runs are faster one after another."""
    memory, runs = _memory(), len(fused.trainings)
    key = _key(fused.first.config, fused.first.device, runs)
    gain = memory.get(key)
    if gain is None:
        gain = _gain(fused)
        memory.put(key, gain)
    _check(gain, runs)


def check_memory(config: RunConfig, device: torch.device, runs: int) -> None:
    """Raise CannotFuse where so many runs like this one are known to be faster one after another."""
    gain = _memory().get(_key(config, device, runs))
    if gain is not None:
        _check(gain, runs)


def _check(gain: float, runs: int) -> None:
    if gain < GAIN:
        raise CannotFuse(f"training {runs} of them together takes {1 / gain:.0%} of the time that they take one by one")


def _gain(fused: FusedTraining) -> float:
    """Measure on a few steps how many times longer the runs take one after another; the runs are not changed."""
    training, runs = fused.first, len(fused.trainings)
    step = training.critics.all_active_from
    tracing = timed(lambda: fused.advance(fused.leaves, step), training.device)
    together = min(timed(lambda: fused.advance(fused.leaves, step), training.device) for _ in range(CALLS))
    alone = _alone(training, step)
    return runs * training.total * alone / (tracing + training.total * together)


def _alone(training: TrainingLoop, step: int) -> float:
    """Measure the seconds of a step of one run."""
    model = copy.deepcopy(training.model)
    twin = TrainingLoop(training.config, training.problem, model, training.folder, training.origin, 0)
    twin.done = step
    model.train()
    with twin.noise():
        for _ in range(EARLIER + 2):  # until steps are recorded
            twin.step(twin.next_batch())
        return min(timed(lambda: twin.step(twin.next_batch()), twin.device) for _ in range(CALLS))


def _key(config: RunConfig, device: torch.device, runs: int) -> str:
    machine = describe(device)
    facts = [
        fusion_key(config),
        runs,
        torch.get_num_threads(),
        {name: machine.get(name) for name in ("cpu", "device", "gpu")},
        sources_hash(*config.classes),
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _memory() -> "Memory":
    return Memory(cache_folder() / "calibration.json")


class Memory:
    """Store of numbers and text in a file. One that cannot be read is empty; one that cannot be written is not kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        return self._read().get(key)

    def put(self, key: str, value: float | str) -> None:
        """Store the value of a key in the file."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self._read() | {key: value}, indent=1))

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}
