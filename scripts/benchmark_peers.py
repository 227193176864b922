"""How fast a step of every method is against the published algorithm in plain PyTorch (`peers.py`).

Both sides train the same network on the same data with Adam, in this process, interleaved: a few steps of one, as many
of the other, for some rounds. A step is everything from drawing minibatches to updated parameters. A ratio is the
median of the rounds' ratios; above 1 the suite is faster. Before a pair is timed, one step of both from the same
weights and the same minibatches has to move the parameters alike, where nothing is random.

Sizes are environments x rows of each, then units in the three hidden layers. The convolutional network is a ResNet-9
of width 8 with group norm, on images of 28x28.

    python scripts/benchmark_peers.py                                   every method, size and number of threads
    python scripts/benchmark_peers.py --method coral --method iga --threads 1
"""

import copy
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from peers import ERM, IMAGE_PEERS, LEARNING_RATE, PEERS, Draw, Minibatch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Batch, Problem, Split
from invbench.core.registry import METHODS
from invbench.core.task import Classification
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import resolve
from invbench.system.device import timed
from invbench.system.provenance import describe
from invbench.system.workarounds import keep_freed_memory
from invbench.training.build import model_on
from invbench.training.loop import TrainingLoop
from invbench.training.recorded_step import EARLIER

BATCHES, CLASSES, INPUTS = 8, 3, 24
SECONDS = 0.05
"""Time of the steps of one side in a round, at least."""
FROM_THE_START = {"anneal_steps": 0, "bottleneck_anneal_steps": 0, "burn_in": 0, "warm_up": 0}
FROM_THE_START |= {"learning_rate_after": LEARNING_RATE}
"""Settings with which a method does from the first step on what it does in the end."""
RANDOM = ("mixup", "pcgrad", "irm_games", "mutual_information", "adversary", "augerino", "augerino_color")
RANDOM += ("fixed_augmentation", "causirl", "dann", "sagnet", "selfreg", "urm", "mldg", "pgrad", "gga_l")
"""Methods of which a step draws random numbers, or begins with weights of its own."""
OTHERWISE = ("eqrm", "transfer")
"""Methods whose step is not the peer's; their files say how it differs."""
CPU = torch.device("cpu")


class Size(NamedTuple):
    """Size of a step: environments, rows of each, width of the network."""

    environments: int
    rows: int
    width: int
    convolutional: bool = False

    def __str__(self) -> str:
        return f"{self.environments} x {self.rows}, {'ResNet-9' if self.convolutional else self.width}"

    def problem(self) -> Problem:
        """Make random data."""
        draw = torch.Generator().manual_seed(0)
        count = self.environments * self.rows * BATCHES
        x = torch.randn(count, *((1, 28, 28) if self.convolutional else (INPUTS,)), generator=draw)
        y, nuisance = torch.randint(CLASSES, (count,), generator=draw), torch.randn(count, 1, generator=draw)
        split = Split(x, y, torch.arange(self.environments).repeat_interleave(count // self.environments), nuisance)
        kind = "image" if self.convolutional else "vector"
        return Problem({"train": split, "test": split}, Classification(CLASSES), kind, "synthetic")


SIZES = (Size(4, 64, 256), Size(3, 256, 64), Size(16, 32, 256), Size(3, 32, 8, convolutional=True))


class Minibatches:
    """Minibatches of every environment, shuffled anew in each epoch."""

    def __init__(self, split: Split, rows: int) -> None:
        self.environments = [split.rows(index) for index in split.environment_rows]
        self.rows = rows
        self.epochs = [self._epoch(len(environment)) for environment in self.environments]

    def __call__(self) -> list[Minibatch]:
        minibatches = []
        for split, epoch in zip(self.environments, self.epochs, strict=True):
            index = next(epoch)
            minibatches.append((split.inputs()[index], split.y[index], _nuisance(split)[index]))
        return minibatches

    def _epoch(self, count: int) -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(count).split(self.rows)


def _nuisance(rows: Split | Batch) -> Tensor:
    if rows.nuisance is None:
        raise ValueError("these data have a nuisance")
    return rows.nuisance


def training_of(method: str, size: Size, problem: Problem, dtype: str = "float32") -> TrainingLoop:
    """Make the suite's training of a method, as a run does: a convolutional network has its channels last in memory."""
    cls = METHODS.load(method.split("+")[-1])
    settings = {f"method.{name}": value for name, value in FROM_THE_START.items() if name in cls.model_fields}
    settings |= {"trainer.steps": 10**6, "trainer.batch_size": size.rows, "trainer.learning_rate": LEARNING_RATE}
    settings |= {
        "trainer.dtype": dtype,
        "trainer.weight_decay": 0,
        "trainer.schedule": "constant",
        "trainer.optimizer": "adam",
    }
    if not cls.replaces_model:
        settings |= {"backbone.width": size.width, "backbone.name": "resnet9" if size.convolutional else "mlp"}
        settings |= {"backbone.norm": "group"} if size.convolutional else {}
    config = resolve(method, "corrupted_digits", 0, settings)
    return TrainingLoop(config, problem, model_on(CPU, config, problem), RunFolder(Path()), "", 1e9)


def network_of(training: TrainingLoop) -> FeaturesAndHead:
    """Return the network that a method's model starts from, or one like it."""
    for module in training.model.modules():
        if isinstance(module, FeaturesAndHead):
            return module
    return FeaturesAndHead(nn.Identity(), nn.Linear(1, 1))  # of a method that makes its own


def check(method: str, size: Size) -> None:
    """Check in double precision that one step of both sides is the same. Raises SystemExit where it is not."""
    torch.set_default_dtype(torch.float64)
    try:
        problem = size.problem()
        training = training_of(method, size, problem, "float64")
        peer = (PEERS | IMAGE_PEERS)[method](copy.deepcopy(network_of(training)), problem)
        before = flat(training.model)
        start(peer, training.model)
        batch = training.loader.batch(0)
        minibatches = list(zip(batch.x, batch.y, _nuisance(batch), strict=True))
        training.model.train()
        training.step(batch)
        peer.update(lambda: minibatches)
        moved = flat(training.model) - before
        expected = torch.cat([parameter.detach().flatten() for parameter in peer.parameters]) - before
    finally:
        torch.set_default_dtype(torch.float32)
    difference = float((moved - expected).norm() / expected.norm())
    if not difference < 1e-4:
        sys.exit(f"{method}, {size}: a step of the suite and of its peer differ by {difference:.1e} of its length")


@torch.no_grad()
def start(peer: ERM, model: nn.Module) -> None:
    """Begin with the model's weights in further networks of the peer, too."""
    for parameter, value in zip(peer.parameters, model.parameters(), strict=True):
        parameter.copy_(value)


def flat(module: nn.Module) -> Tensor:
    """Copy all parameters into one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


def measured(method: str, size: Size, rounds: int) -> tuple[float, float, float]:
    """Return the seconds of a step of the peer and of the suite, and the median of their ratios."""
    problem = size.problem()
    training = training_of(method, size, problem)
    network = copy.deepcopy(network_of(training)).to(memory_format=torch.contiguous_format)
    peer = (PEERS | IMAGE_PEERS)[method](network, problem)
    draw: Draw = Minibatches(problem.splits["train"], size.rows)
    training.model.train()

    def theirs() -> None:
        peer.update(draw)

    def ours() -> None:
        training.step(training.next_batch())

    kinds = size.environments if method == "irm_games" else 1  # of steps: the players' are recorded one by one
    for step in (theirs, ours):
        for _ in range((EARLIER + 2) * kinds):
            step()
    calls = max(1, round(SECONDS / timed(ours, CPU)))
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        first, second = (timed(lambda step=step: [step() for _ in range(calls)], CPU) for step in (theirs, ours))  # type: ignore[misc]
        times.append((first / calls, second / calls))
    theirs_seconds, ours_seconds = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    return theirs_seconds, ours_seconds, statistics.median(first / second for first, second in times)


def main(
    method: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2 by default.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Numbers of sizes, from 0; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 11,
) -> None:
    """Measure and print the tables."""
    keep_freed_memory()
    facts = describe(CPU)
    print(f"{facts['cpu']}, torch {torch.__version__}")
    sizes = [SIZES[number] for number in size or range(len(SIZES))]
    known = PEERS | IMAGE_PEERS
    ratios: list[float] = []
    for count in threads or (1, 2):
        torch.set_num_threads(count)
        table = Table("ms of peer / suite (ratio)", *map(str, sizes), title=f"threads: {count}")
        for name in method or known:
            cells = []
            for one in sizes:
                if (name in IMAGE_PEERS and not one.convolutional) or (name == "irm_games" and one.convolutional):
                    cells.append("")
                    continue
                if name not in (*RANDOM, *OTHERWISE):
                    check(name, one)
                theirs, ours, ratio = measured(name, one, rounds)
                ratios.append(ratio)
                cells.append(f"{1e3 * theirs:.2f} / {1e3 * ours:.2f} ({ratio:.2f})")
            print(name, *cells, sep="  ", file=sys.stderr, flush=True)
            table.add_row(name, *cells)
        Console(width=140).print(table)
    below = sum(ratio < 1 for ratio in ratios)
    print(f"geometric mean {statistics.geometric_mean(ratios):.2f}, least {min(ratios):.2f}, below 1: {below}")


if __name__ == "__main__":
    typer.run(main)
