"""How long an AND-mask step takes, against the reference way and against ERM.

spirals: the recipe, 16 environments with 256 examples each, an MLP of three layers of 256 units.
photographs: every example of a batch of 80 is an environment, resnet9 with group norm and width 16, random images.

The reference way, as in the authors' code, is one forward pass over all environments and then one backward pass per
environment through the whole joint graph, all gradients kept, then masked. All ways run in this process, interleaved,
each step with its optimiser; the printed times are medians and the ratios are medians of the rounds' ratios.

    python scripts/benchmark_gradients.py [spirals | photographs] [--rounds 20] [--device cpu] [--examples 256]
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from invbench.core.data import Problem, Split
from invbench.core.task import Classification
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.device import choose_device, timed
from invbench.system.provenance import describe
from invbench.system.workarounds import keep_freed_memory
from invbench.training.build import build_model, load_problem
from invbench.training.gradients import choose_strategy
from invbench.training.loop import TrainingLoop
from invbench.training.sampling import BatchLoader, Sampler

Step = Callable[[], object]
BATCH = 80
NETWORK = {"backbone.name": "resnet9", "backbone.norm": "group", "backbone.width": 16}


def photographs(environments: bool) -> Problem:
    """Make random images in the place of photographs; each is an environment, or there is none."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH * 4, 3, 32, 32, generator=draw), torch.randint(10, (BATCH * 4,), generator=draw)
    split = Split(x, y, torch.arange(len(x)) if environments else None)
    return Problem({"train": split, "test": split}, Classification(10), "image", "synthetic")


def problem_of(config: RunConfig, device: torch.device) -> Problem:
    """Load the data of a run."""
    if config.spec.dataset == "cifar10":
        return photographs(config.trainer.environments_per_step is not None).to(device, torch.float32)
    return load_problem(config).to(device, torch.float32)


def engine_step(config: RunConfig, device: torch.device) -> Step:
    """Make one training step by the engine, from drawing a batch to updated parameters."""
    problem = problem_of(config, device)
    training = TrainingLoop(config, problem, build_model(config, problem).to(device), RunFolder(Path()), "", 0)
    return lambda: training.step(training.next_batch())


def reference_step(config: RunConfig, device: torch.device) -> Step:
    """Make a step as published: E backward passes through one graph, then the mask, then torch's Adam."""
    problem = problem_of(config, device)
    model = build_model(config, problem).to(device)
    leaves = list(model.parameters())
    loader = BatchLoader(Sampler.of(problem.splits["train"], config.trainer, 0))
    adam = torch.optim.Adam(leaves, lr=1e-2, weight_decay=1e-3)

    def step() -> None:
        batch = loader.batch(0)
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
    case: Annotated[str, typer.Argument(help="spirals or photographs")] = "spirals",
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    device: Annotated[str, typer.Option()] = "cpu",
    examples: Annotated[int, typer.Option(help="examples per environment and step")] = 256,
) -> None:
    """Measure and print."""
    torch_device = choose_device(device)
    keep_freed_memory()
    dataset, settings, erm = "spirals", {"trainer.batch_size": examples}, {"trainer.batch_size": examples}
    if case == "photographs":
        dataset, erm = "cifar10", NETWORK | {"trainer.batch_size": BATCH, "dataset.environments": "none"}
        settings = NETWORK | {"trainer.batch_size": 1, "trainer.environments_per_step": BATCH}
    mask = resolve("and_mask", dataset, 0, settings)
    auto = choose_strategy(mask.method, torch.nn.Linear(1, 1), mask.trainer)
    ways = {
        "reference": reference_step(mask, torch_device),
        "erm": engine_step(resolve("erm", dataset, 0, erm), torch_device),
    }
    for strategy in ("joint", "loop", "vmap") if case == "spirals" else ("loop", "vmap"):
        config = resolve("and_mask", dataset, 0, settings | {"trainer.strategy": strategy})
        ways[f"and_mask {strategy}"] = engine_step(config, torch_device)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds + 2):
        for name, step in ways.items():
            seconds = timed(step, torch_device)
            if index >= 2:
                times[name].append(seconds)
    machine = describe(torch_device)
    print(f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, torch {torch.__version__}")
    print(f"{case}: AND-mask on {dataset}, {rounds} rounds; auto is {auto}")
    print(f"{'way':<16} {'ms/step':>8} {'faster than reference':>22} {'times ERM':>10}")
    for name, values in times.items():
        gain = statistics.median(r / v for r, v in zip(times["reference"], values, strict=True))
        cost = statistics.median(v / e for v, e in zip(values, times["erm"], strict=True))
        print(f"{name:<16} {1e3 * statistics.median(values):8.1f} {gain:21.1f}x {cost:9.2f}x")


if __name__ == "__main__":
    typer.run(main)
