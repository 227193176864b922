"""Threads of torch on the CPU: how many a run takes, and that they leave the cores to others while they wait."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from invbench.training.loop import Training

POLICY = "OMP_WAIT_POLICY"
CHOSEN = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how OpenMP's threads wait."""
MOST_THREADS = 1024
"""That one can ask for."""
WORTH_THREADS = 2**27
"""Multiplications in the forward passes of a step, below which more threads cost more than they do."""


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has chosen; to be called before torch is loaded.

    A thread that spins is quicker on an idle machine, and ruins a run beside others: `scripts/benchmark_contention.py`.
    """
    if not any(name in environment for name in CHOSEN):
        environment[POLICY] = "PASSIVE"


@contextmanager
def threads_put_back() -> Iterator[None]:
    """What is set in this block for torch does not outlast it."""
    import torch  # this module is loaded ahead of it

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suitable_threads(training: "Training") -> int:
    """How many threads a run's steps are worth, at most as many as torch would take: by its size, not by the load.

    The same run must give the same numbers whatever else the machine does, and sums depend on the threads.
    """
    import torch

    most = torch.get_num_threads()
    if most == 1 or training.device.type != "cpu":
        return 1
    examples = training.sampler.batch_size * training.sampler.per_step
    return most if examples * _multiplications(training.model, training.examples.x[:1]) >= WORTH_THREADS else 1


def _multiplications(model: "nn.Module", x: "Tensor") -> int:
    """In the matrices and convolutions of a forward pass from one example (1, ...)."""
    import torch
    from torch import Tensor, nn

    counts = []

    def count(module: nn.Linear | nn.Conv1d | nn.Conv2d, inputs: object, output: Tensor) -> None:
        counts.append(module.weight.numel() * output.numel() // len(module.weight))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    trains = model.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.eval()(x)
    model.train(trains)
    for hook in hooks:
        hook.remove()
    return sum(counts)
