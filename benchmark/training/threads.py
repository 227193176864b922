"""Number of threads of a run."""

import torch
from torch import Tensor, nn

from invbench.components.eval_mode import eval_mode
from invbench.training.loop import TrainingLoop

WORTH_THREADS = 2**27
"""Number of multiplications in the forward passes of a step from which on several threads pay."""


def suitable_threads(training: TrainingLoop) -> int:
    """Choose the number of threads of a run by its size, not by the machine's load; at most what torch would take.

    The same run must give the same numbers whatever else the machine does, and sums depend on the threads.
    """
    most = torch.get_num_threads()
    if most == 1 or training.device.type != "cpu":
        return 1
    examples = training.sampler.batch_size * training.sampler.per_step
    return most if examples * _multiplications(training.model, training.examples.x[:1]) >= WORTH_THREADS else 1


def _multiplications(model: nn.Module, x: Tensor) -> int:
    """Count the multiplications in matrices and convolutions of a forward pass from one example (1, ...)."""
    counts = []

    def count(module: nn.Linear | nn.Conv1d | nn.Conv2d, inputs: object, output: Tensor) -> None:
        counts.append(module.weight.numel() * output.numel() // len(module.weight))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)
