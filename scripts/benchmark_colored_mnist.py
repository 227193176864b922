"""A coloured-MNIST run of IRMv1 with its evaluations, against a plain loop of PyTorch.

501 steps on two environments, an MLP of two layers of 390 units, Adam, ten evaluations of all splits. The plain loop is
what one writes first: a DataLoader for each environment and each split, losses and dummy-scale gradients environment by
environment, differentiated twice, and the objective's `.item()` in every step. Both start from the same data, random
pictures of MNIST's size, which are made before the clocks start; ours also writes its records. They take turns.

    python scripts/benchmark_colored_mnist.py [--batch-size 64] [--digits 59940] [--rounds 3] [--device cpu]
"""

import gzip
import os
import statistics
import struct
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from invbench.core.data import Problem, Split
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.device import choose_device, timed
from invbench.training.build import build_model, load_problem
from invbench.training.runner import run_one


def main(
    batch_size: Annotated[int, typer.Option(min=2, help="examples of each environment in a step")] = 64,
    digits: Annotated[int, typer.Option(min=600, help="not 60000: that would be checked against MNIST")] = 59_940,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    device: str = "cpu",
) -> None:
    """Time both, and print the ratio."""
    torch_device, durations = choose_device(device), {"plain": list[float](), "invbench": list[float]()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INVBENCH_DATA"] = folder
        write_digits(Path(folder), digits)
        settings = {"trainer.batch_size": batch_size, "trainer.evaluate_every": 50}
        configs = [resolve("irmv1", "colored_mnist", seed, settings) for seed in range(rounds + 1)]
        for config in configs:
            problem = load_problem(config)
            durations["plain"].append(timed(partial(plain, config, problem, torch_device), torch_device))
            durations["invbench"].append(
                timed(partial(run_one, config, Options(device, Path(folder) / "results")), torch_device)
            )
    ratio = statistics.median(a / b for a, b in zip(durations["plain"][1:], durations["invbench"][1:], strict=True))
    seconds = {name: statistics.median(times[1:]) for name, times in durations.items()}  # the first is to warm up
    print(f"batches of 2 x {batch_size}, {digits} digits, {rounds} rounds, {torch.get_num_threads()} threads, {device}")
    print(f"plain loop {seconds['plain']:.1f} s, invbench {seconds['invbench']:.1f} s, ratio {ratio:.1f}")


def plain(config: RunConfig, problem: Problem, device: torch.device) -> float:
    """Train the run in a plain loop. Returns the last accuracy."""
    model = build_model(config, problem).to(device)
    trainer, settings = config.trainer, config.spec.method_settings["irmv1"]
    adam = torch.optim.Adam(model.parameters(), lr=trainer.learning_rate, weight_decay=trainer.weight_decay)
    train = problem.splits["train"]
    env = torch.zeros(len(train)) if train.env is None else train.env
    size = trainer.batch_size or 0
    streams = [forever(train.rows(env == e), size) for e in range(problem.environments)]
    accuracy = 0.0
    for step in range(trainer.steps or 0):
        risks, penalties = [], []
        for stream in streams:
            x, y = (part.to(device) for part in next(stream))
            logits, scale = model(x).prediction.squeeze(-1), torch.ones((), device=device, requires_grad=True)
            risks.append(F.binary_cross_entropy_with_logits(logits, y))
            scaled = F.binary_cross_entropy_with_logits(logits * scale, y)
            penalties.append(torch.autograd.grad(scaled, [scale], create_graph=True)[0] ** 2)
        weight = settings["weight"] if step >= settings["anneal_steps"] else 1.0
        objective = (torch.stack(risks).mean() + weight * torch.stack(penalties).mean()) / weight
        adam.zero_grad()
        objective.backward()
        adam.step()
        objective.item()
        if (step + 1) % (trainer.evaluate_every or 1) == 0:
            accuracy = [correct(model, split, device) for split in problem.splits.values()][-1]
    return accuracy


def forever(split: Split, size: int) -> Iterator[list[Tensor]]:
    """Yield batches in random order, epoch after epoch."""
    while True:
        yield from DataLoader(TensorDataset(split.x, split.y), size, shuffle=True, drop_last=True)


@torch.no_grad()
def correct(model: nn.Module, split: Split, device: torch.device) -> float:
    """Compute the accuracy on a split."""
    hits = 0
    for x, y in DataLoader(TensorDataset(split.x, split.y), 64):
        prediction = model(x.to(device)).prediction.squeeze(-1)
        hits += ((prediction > 0) == (y.to(device) > 0.5)).sum().item()
    return hits / len(split)


def write_digits(folder: Path, count: int) -> None:
    """Write random pictures in the form and the number of MNIST's files."""
    (folder / "MNIST" / "raw").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, some in (("train", count), ("t10k", count // 6)):
        write(folder / f"MNIST/raw/{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (some, 28, 28), np.uint8))
        write(folder / f"MNIST/raw/{prefix}-labels-idx1-ubyte.gz", rng.integers(0, 10, some, np.uint8))


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write bytes in the idx format."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


if __name__ == "__main__":
    typer.run(main)
