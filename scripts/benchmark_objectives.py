"""How long a step of IRMv1 takes, against the reference way, and of every objective against ERM.

The spirals recipe: 16 environments, an MLP of three layers of 256 units. The reference way differentiates twice: one
forward pass, then for each environment the losses of the even and of the odd rows times a dummy scale, their gradients
by the scale with a graph through them, and one backward pass through everything, as in DomainBed. Here the same numbers
(`estimate: unbiased`) and the square over all rows come from a closed form. All ways run in this process, interleaved,
each step with its optimiser; times are medians and ratios are medians of the rounds' ratios.

Then full-batch steps of a linear model: on all rows, and on a few that have the same moments (`trainer.condense`).

    python scripts/benchmark_objectives.py [--rounds 20] [--device cpu] [--examples 64]
"""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig, resolve
from invbench.seeding import stream
from invbench.system.device import choose_device, timed
from invbench.system.provenance import describe
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.sampling import BatchLoader, Sampler

Step = Callable[[], object]
OBJECTIVES = ("vrex", "mm_rex", "group_dro", "sd", "ib_erm", "ib_irm", "coral", "fishr", "mmd", "iga", "fish")
CALLS = 3


def engine_step(config: RunConfig, device: torch.device) -> Step:
    """Make one training step by the engine, from drawing a batch to updated parameters."""
    dtype = getattr(torch, config.trainer.dtype)
    problem = config.dataset.load(stream(0, "data")).to(device, dtype)
    training = TrainingLoop(config, problem, build_model(config, problem).to(device, dtype), RunFolder(Path()), "", 0)
    return lambda: training.step(training.next_batch())


def reference_step(config: RunConfig, device: torch.device) -> Step:
    """Make a step of IRMv1 by double backward passes, then torch's Adam."""
    problem = config.dataset.load(stream(0, "data")).to(device, torch.float32)
    model = build_model(config, problem).to(device)
    loader = BatchLoader(Sampler.of(problem.splits["train"], config.trainer, 0))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)

    def step() -> None:
        batch = loader.batch(0)
        logits = model(batch.x.flatten(0, 1)).prediction.squeeze(-1).unflatten(0, batch.y.shape)
        risk = penalty = torch.zeros((), device=device)
        for z, y in zip(logits, batch.y, strict=True):
            risk = risk + F.binary_cross_entropy_with_logits(z, y)
            scale = torch.ones((), device=device, requires_grad=True)
            halves = [F.binary_cross_entropy_with_logits(z[i::2] * scale, y[i::2]) for i in (0, 1)]
            first, second = (torch.autograd.grad(half, [scale], create_graph=True)[0] for half in halves)
            penalty = penalty + first * second
        adam.zero_grad()
        ((risk + penalty) / len(logits)).backward()
        adam.step()

    return step


def measure(ways: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time each way in each round, a few calls of one, then of the next, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds + 2):
        for name, step in ways.items():
            seconds = timed(lambda step=step: [step() for _ in range(CALLS)], device) / CALLS  # type: ignore[misc]
            if index >= 2:
                times[name].append(seconds)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """Compute the median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    device: Annotated[str, typer.Option()] = "cpu",
    examples: Annotated[int, typer.Option(help="examples per environment and step")] = 64,
) -> None:
    """Measure and print."""
    torch_device = choose_device(device)
    machine = describe(torch_device)
    print(f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, torch {torch.__version__}")
    plain = {"trainer.batch_size": examples}
    now = plain | {"method.anneal_steps": 0}
    ways = {
        "double backward": reference_step(resolve("erm", "spirals", 0, plain), torch_device),
        "erm": engine_step(resolve("erm", "spirals", 0, plain), torch_device),
        "irmv1 unbiased": engine_step(
            resolve("irmv1", "spirals", 0, now | {"method.estimate": "unbiased"}), torch_device
        ),
        "irmv1": engine_step(resolve("irmv1", "spirals", 0, now), torch_device),
    }
    ways |= {name: engine_step(resolve(name, "spirals", 0, plain), torch_device) for name in OBJECTIVES}
    times = measure(ways, rounds, torch_device)
    print(f"\n{f'spirals, 16 x {examples} examples':<28} {'ms/step':>8} {'times ERM':>10} {'faster than double':>20}")
    for name, values in times.items():
        gain = f"{ratio(times['double backward'], values):19.2f}x" if "irm" in name else ""
        print(f"{name:<28} {1e3 * statistics.median(values):8.2f} {ratio(values, times['erm']):9.2f}x {gain}")
    print(f"\n{'linear model, all rows':<28} {'ms/step':>8} {'condensed':>10} {'faster':>10}")
    for method, dataset in (("erm", "linear_unit_tests"), ("irmv1", "linear_unit_tests"), ("irmv1", "irm_regression")):
        pair = {
            "all": engine_step(resolve(method, dataset, 0, {"trainer.condense": False}), torch_device),
            "few": engine_step(resolve(method, dataset), torch_device),
        }
        seconds = measure(pair, rounds, torch_device)
        middle = (1e3 * statistics.median(values) for values in seconds.values())
        text = " ".join(f"{value:{width}.2f}" for value, width in zip(middle, (8, 10), strict=True))
        print(f"{f'{method} on {dataset}':<28} {text} {ratio(seconds['all'], seconds['few']):9.1f}x")


if __name__ == "__main__":
    typer.run(main)
