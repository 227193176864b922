"""Steps a second on images: RotMNIST with Augerino, and the 13 layers of CIFAR-10, by the suite and by a plain loop.

The plain loop is what one writes in PyTorch: a shuffled index, the network, `backward`, `torch.optim.Adam`; for
Augerino `affine_grid` and `grid_sample` too. The suite's step is measured in four ways: as it is, with the channels of
images first in memory, with bfloat16 (`trainer.autocast`) and compiled (`trainer.compile`). Images are random, of the
real sizes. All ways run in this process, interleaved; a ratio is the median of the rounds' ratios to the plain loop.

    python scripts/benchmark_image_steps.py [--width 16] [--rounds 7] [--device cpu]
"""

import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from benchmark_augerino import images
from peers import LEARNING_RATE, Augmented, basis
from torch import Tensor, nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Problem
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import resolve
from invbench.system.device import choose_device, timed
from invbench.system.provenance import describe
from invbench.training.build import model_on
from invbench.training.loop import TrainingLoop

Step = Callable[[], object]
CASES = {"rotmnist": ("augerino", 50, (1, 28)), "cifar10": ("erm", 128, (3, 32))}
"""Method, batch, channels and side of the images, by recipe."""
WAYS: dict[str, dict[str, Any]] = {
    "suite": {},
    "channels first": {},
    "bfloat16": {"trainer.autocast": True},
    "compiled": {"trainer.compile": True},
}


class PlainLoop:
    """Training of a network in plain PyTorch.

    Args:
        network: on the device; it is changed.
        problem: the data, on the same device.
        batch: examples of a step.
        augments: whether images are moved by Augerino's learned widths.
    """

    def __init__(self, network: nn.Module, problem: Problem, batch: int, augments: bool) -> None:
        split = problem.splits["train"]
        self.network, self.x, self.y, self.batch = network.train(), split.inputs(), split.y, batch
        self.raw = torch.zeros(len(Augmented.names), requires_grad=True, device=self.x.device) if augments else None
        self.basis = basis(problem, Augmented.names).to(self.x)
        learned = [] if self.raw is None else [self.raw]
        self.optimizer = torch.optim.Adam([*network.parameters(), *learned], lr=LEARNING_RATE, weight_decay=1e-4)
        self.order: list[Tensor] = []

    def __call__(self) -> None:
        if not self.order:
            self.order = list(torch.randperm(len(self.x), device=self.x.device).split(self.batch))
        rows = self.order.pop()
        x, y = self.x[rows], self.y[rows]
        penalty: Tensor | float = 0.0
        if self.raw is not None:
            widths = F.softplus(self.raw)
            noise = torch.rand(len(x), len(widths), device=x.device) * widths - widths / 2
            matrices = torch.linalg.matrix_exp(torch.einsum("nk,kij->nij", noise, self.basis))
            x = F.grid_sample(x, F.affine_grid(matrices[:, :2], list(x.shape), align_corners=True), align_corners=True)
            penalty = -0.1 * widths.norm()
        self.optimizer.zero_grad()
        (F.cross_entropy(self.network(x).prediction, y) + penalty).backward()
        self.optimizer.step()


def suite_step(case: str, way: str, width: int | None, problem: Problem) -> tuple[Step, TrainingLoop]:
    """Make a step of a recipe by the suite, in one of the ways of `WAYS`. Returns also the training."""
    method = CASES[case][0]
    settings = {"trainer.epochs": 10_000} | WAYS[way] | ({} if width is None else {"backbone.width": width})
    config = resolve(method, case, 0, settings)
    device = problem.splits["train"].x.device
    model = model_on(device, config, problem)
    if way == "channels first":
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    training = TrainingLoop(config, problem, model, RunFolder(Path()), "", 1e9)
    model.train()
    return lambda: training.step(training.next_batch()), training


def main(
    width: Annotated[int | None, typer.Option(min=1, help="Of the networks (default: the recipes').")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    device: str = "cpu",
) -> None:
    """Print the steps a second of each way, and how many times the plain loop's they are."""
    torch_device = choose_device(device)
    machine = describe(torch_device)
    print(f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, torch {torch.__version__}")
    print(f"{'steps a second (times the plain loop)':<40} {'plain':>8}" + "".join(f"{way:>18}" for way in WAYS))
    for case, (method, batch, shape) in CASES.items():
        problem = images(10 * batch, *shape).to(torch_device, torch.float32)
        steps: dict[str, Step] = {}
        for way in WAYS:
            steps[way], training = suite_step(case, way, width, problem)
            if way == "suite":
                network = next(m for m in training.model.modules() if isinstance(m, FeaturesAndHead))
                plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
                steps["plain"] = PlainLoop(plain, problem, batch, method == "augerino")
        seconds = measured(steps, rounds, torch_device)
        cells = ""
        for way in WAYS:
            ratio = statistics.median(p / s for p, s in zip(seconds["plain"], seconds[way], strict=True))
            cells += f"{1 / statistics.median(seconds[way]):9.1f} ({ratio:5.2f}x)"
        name = f"{method} on {case}, {batch} x {shape[0]}x{shape[1]}x{shape[1]}"
        print(f"{name:<40} {1 / statistics.median(seconds['plain']):8.1f}{cells}")


def measured(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of a step of every way in every round."""
    for step in steps.values():
        for _ in range(8):  # until it is recorded
            step()
    calls = max(1, round(0.2 / timed(steps["plain"], device)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(lambda step=step: [step() for _ in range(calls)], device) / calls)  # type: ignore[misc]
    return seconds


if __name__ == "__main__":
    typer.run(main)
