"""One run seed, one independent stream per purpose: adding a method or a dataset moves nobody else's numbers."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

Axis = Literal["data", "init", "order", "noise", "evaluation", "analysis", "examples"]
# The position is part of every published number: append, never reorder.
AXES: tuple[Axis, ...] = ("data", "init", "order", "noise", "evaluation", "analysis", "examples")


def stream(seed: int, axis: Axis, *keys: int | str) -> np.random.SeedSequence:
    """Make the random stream of one purpose; keys such as an epoch or a method's name make it a separate one."""
    numbers = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return np.random.SeedSequence(entropy=seed, spawn_key=(AXES.index(axis), *numbers))


def children(sequence: np.random.SeedSequence, count: int) -> list[np.random.SeedSequence]:
    """Make independent streams below one. Unlike `spawn` this does not change it: a second call returns the same."""
    return [np.random.SeedSequence(entropy=sequence.entropy, spawn_key=(*sequence.spawn_key, i)) for i in range(count)]


def as_int(sequence: np.random.SeedSequence) -> int:
    """Draw a 63-bit number from the stream, for torch's generators."""
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def torch_stream(sequence: np.random.SeedSequence, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's own generators, the CPU's and the device's, for a while, then put them back as they were."""
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        torch.cuda.init()
        generators.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(as_int(sequence))
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
