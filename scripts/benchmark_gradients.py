"""How long an AND-mask step takes, against the reference way and against ERM.

The spirals recipe: 16 environments with 256 examples each, an MLP of three layers of 256 units. The reference way, as
in the authors' code, is one forward pass over all environments and then one backward pass per environment through the
whole joint graph, all gradients kept, then masked. All ways run in this process, interleaved, each step with its
optimiser; the printed times are medians and the ratios are medians of the rounds' ratios.

    python scripts/benchmark_gradients.py [--rounds 20] [--device cpu] [--examples 256]
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from invbench.gradients import choose_strategy
from invbench.machine import choose_device, describe, timed
from invbench.records import RunFolder
from invbench.runner import build_model
from invbench.sampling import Sampler
from invbench.seeds import stream
from invbench.spec import Cell, resolve
from invbench.training import Training

Step = Callable[[], object]


def engine_step(cell: Cell, device: torch.device) -> Step:
    """One training step by the engine, from the indices of a batch to updated parameters."""
    problem = cell.dataset.load(stream(0, "data")).to(device, torch.float32)
    training = Training(cell, problem, build_model(cell, problem).to(device), RunFolder(Path()), "", 0)
    examples, env = (part[0] for part in training.sampler.epoch(0))
    return lambda: training.step(examples, env)


def reference_step(cell: Cell, device: torch.device) -> Step:
    """The published algorithm as published: E backward passes through one graph, then the mask, then torch's Adam."""
    problem = cell.dataset.load(stream(0, "data")).to(device, torch.float32)
    model = build_model(cell, problem).to(device)
    leaves = list(model.parameters())
    sampler = Sampler.of(problem.splits["train"], cell.trainer, 0)
    examples, env = (part[0] for part in sampler.epoch(0))
    adam = torch.optim.Adam(leaves, lr=1e-2, weight_decay=1e-3)

    def step() -> None:
        batch = sampler.batch(examples, env)
        prediction = model(batch.x.flatten(0, 1)).prediction.unflatten(0, batch.y.shape)
        risks = problem.task.losses(prediction, batch.y).mean(1)
        gradients: list[list[Tensor]] = [[] for _ in leaves]
        for risk in risks:
            for kept, g in zip(gradients, torch.autograd.grad(risk, leaves, retain_graph=True), strict=True):
                kept.append(g)
        for leaf, kept in zip(leaves, gradients, strict=True):
            stack = torch.stack(kept)
            mask = (stack.sign().mean(0).abs() >= 1).to(stack.dtype)
            leaf.grad = mask * stack.mean(0) / (1e-10 + mask.mean())
        adam.step()

    return step


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    device: Annotated[str, typer.Option()] = "cpu",
    examples: Annotated[int, typer.Option(help="examples per environment and step")] = 256,
) -> None:
    """Measure and print."""
    place = choose_device(device)
    settings = {"trainer.batch_size": examples}
    mask = resolve("and_mask", "spirals", 0, settings)
    auto = choose_strategy(mask.method, torch.nn.Linear(1, 1), mask.trainer)
    ways = {
        "reference": reference_step(mask, place),
        "erm": engine_step(resolve("erm", "spirals", 0, settings), place),
    }
    for strategy in ("joint", "loop", "vmap"):
        own = resolve("and_mask", "spirals", 0, settings | {"trainer.strategy": strategy})
        ways[f"and_mask {strategy}"] = engine_step(own, place)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds + 2):
        for name, step in ways.items():
            seconds = timed(step, place)
            if index >= 2:
                times[name].append(seconds)
    machine = describe(place)
    print(f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, torch {torch.__version__}")
    print(f"{mask.dataset.environments} environments x {examples} examples, {rounds} rounds; auto is {auto}")
    print(f"{'way':<16} {'ms/step':>8} {'faster than reference':>22} {'times ERM':>10}")
    for name, values in times.items():
        gain = statistics.median(r / v for r, v in zip(times["reference"], values, strict=True))
        cost = statistics.median(v / e for v, e in zip(values, times["erm"], strict=True))
        print(f"{name:<16} {1e3 * statistics.median(values):8.1f} {gain:21.1f}x {cost:9.2f}x")


if __name__ == "__main__":
    typer.run(main)
