"""How long Augerino's augmentation takes, against the authors' way and as a part of a training step.

The layer: noise, exponential of the generators, sampling of the images, forward and backward. The authors' way, as in
their code: the exponential is the solution of dX/dt = A X by torchdiffeq's adaptive solver (relative tolerance 1e-4),
on the CPU whatever the device. Then one training step of cnn_small with Augerino and without, both by the engine.

All ways run in this process, interleaved; times are medians and the ratios are medians of the rounds' ratios.

    pip install torchdiffeq    (part of the extra `dev`)
    python scripts/benchmark_augerino.py [--rounds 20] [--device cpu]
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torchdiffeq import odeint

from invbench.components.augmentation import RandomAffine
from invbench.core.data import Problem, Split
from invbench.core.task import Classification
from invbench.methods.augerino import Augerino
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import resolve
from invbench.system.device import choose_device, timed
from invbench.system.provenance import describe
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop

Step = Callable[[], object]
LAYERS = {
    "rotmnist 50x1x28x28": ("rotmnist", (50, 1, 28), 1),
    "mario_iggy 128x3x32x32": ("mario_iggy", (128, 3, 32), 1),
    "olivetti 128x1x45x45": ("olivetti", (128, 1, 45), 1),
    "cifar10 128x3x32x32": ("cifar10", (128, 3, 32), 1),
    "cifar10 128x3x32x32, 4 copies": ("cifar10", (128, 3, 32), 4),
}
"""Experiment, batch, copies of each image."""
CALLS = 10
"""In a row, so that neither side pays for the caches that the other has filled."""


def layer_steps(experiment: str, shape: tuple[int, int, int], copies: int, device: torch.device) -> tuple[Step, Step]:
    """Make steps of the layer, forward and backward: the authors' copy by copy, and ours, at the first widths."""
    problem = images(*shape)
    method = Augerino.parse(resolve("augerino", experiment).spec.method_settings["augerino"], "method")
    layer = cast(RandomAffine, method.transformation(problem).to(device))
    x = problem.splits["train"].x.to(device)
    gradient = torch.ones(copies * len(x), *x.shape[1:], device=device)  # of what follows the layer

    def theirs_once() -> Tensor:
        widths = layer.widths()
        noise = torch.rand(len(x), len(widths), device=device)
        algebra = torch.einsum("nk,kij->nij", noise * widths - widths / 2, layer.basis)
        matrices = ode_exponential(algebra.cpu()).to(device)
        grid = F.affine_grid(matrices[:, :2], list(x.shape), align_corners=True)
        return F.grid_sample(x, grid, align_corners=True)

    def theirs() -> None:
        torch.cat([theirs_once() for _ in range(copies)]).backward(gradient)

    def ours() -> None:
        layer(x.expand(copies, *x.shape).flatten(0, 1)).backward(gradient)

    return theirs, ours


def ode_exponential(algebra: Tensor) -> Tensor:
    """Compute exp(A) of matrices (N, 3, 3) as X(1), where X' = A X and X(0) = 1."""
    one = torch.eye(algebra.shape[-1]).expand_as(algebra).clone()
    solution: Tensor = odeint(lambda t, x: algebra @ x, one, torch.tensor([0.0, 1.0]), rtol=1e-4)
    return solution[1]


def images(count: int, channels: int, side: int) -> Problem:
    """Make random images of ten classes."""
    split = Split(torch.rand(count, channels, side, side), torch.arange(count) % 10)
    return Problem({"train": split, "test": split}, Classification(10), "image", "synthetic")


def training_step(method: str, width: int, device: torch.device) -> Step:
    """Make one step of the rotmnist recipe by the engine."""
    cell = resolve(method, "rotmnist", 0, {"backbone.width": width})
    problem = images(500, 1, 28)
    model = build_model(cell, problem).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = TrainingLoop(cell, problem.to(device, torch.float32), model, RunFolder(Path()), "", 0)
    model.train()
    return lambda: training.step(training.next_batch())


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    device: Annotated[str, typer.Option()] = "cpu",
    width: Annotated[int, typer.Option(min=1, help="of cnn_small; the recipe's is 128")] = 128,
) -> None:
    """Measure and print."""
    torch_device = choose_device(device)
    machine = describe(torch_device)
    print(f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, torch {torch.__version__}")
    print(f"\n{'augmentation layer, forward and backward':<44} {'ODE ms':>8} {'ours ms':>8} {'faster':>8}")
    for name, layer in LAYERS.items():
        slow, fast, ratio = compare(*layer_steps(*layer, torch_device), rounds, torch_device)
        print(f"{name:<44} {slow:8.2f} {fast:8.2f} {ratio:7.1f}x")
    print(f"\n{f'training step, cnn_small of width {width}':<44} {'with ms':>8} {'without':>8} {'ratio':>8}")
    steps = (training_step(method, width, torch_device) for method in ("augerino", "erm"))
    with_it, without, ratio = compare(*steps, rounds, torch_device)
    print(f"{'rotmnist 50x1x28x28':<44} {with_it:8.1f} {without:8.1f} {ratio:7.2f}x")


def compare(first: Step, second: Step, rounds: int, device: torch.device) -> tuple[float, float, float]:
    """Time a few calls of one, then of the other, each round. Returns median milliseconds and the median ratio."""
    both = [lambda step=step: [step() for _ in range(CALLS)] for step in (first, second)]
    times = [tuple(timed(calls, device) / CALLS for calls in both) for _ in range(rounds + 3)][3:]
    firsts, seconds = zip(*times, strict=True)
    ratio = statistics.median(a / b for a, b in times)
    return 1e3 * statistics.median(firsts), 1e3 * statistics.median(seconds), ratio


if __name__ == "__main__":
    typer.run(main)
