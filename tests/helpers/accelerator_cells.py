"""Trains cells on an accelerator and on the CPU, and prints as JSON how they compare, one line a cell.

`python accelerator_cells.py pretend METHOD/DATASET...`, or `cuda` in place of `pretend`. A method's first cell is
trained by each strategy. It is a command since the pretend device has to be registered ahead of torch's first backward
pass.
"""

import json
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from frames import innermost
from torch import Tensor

SETTINGS: dict[str, Any] = {
    "trainer__dtype": "float64",
    "trainer__optimizer": "adam",
    "trainer__epsilon": 1e-3,  # a gradient that is zero up to rounding moves nothing
    "trainer__learning_rate": 1e-3,
}
NOISY = ("mutual_information", "distance_correlation")
"""Metrics that rounding changes, since neighbours change places."""
SEEDS = 3
"""Runs that are trained together."""
WARM_UP, COUNTED = 9, 3
"""Steps ahead of those in which waits and copies are counted, and these."""


@dataclass(frozen=True)
class Accelerator:
    """A device, the mode in which it can be used, a counter of waits and copies, and the way back to the CPU."""

    device: torch.device
    mode: Callable[[], AbstractContextManager[Any]]
    counting: Callable[[], AbstractContextManager[Any]]
    on_cpu: Callable[[Tensor], Tensor]


def accelerator(name: str) -> Accelerator:
    """Return the pretend device, or a GPU."""
    if name == "cuda":
        return Accelerator(torch.device("cuda", 0), nullcontext, _counting_on_gpu, Tensor.cpu)
    import pretend_device

    return Accelerator(
        pretend_device.DEVICE, pretend_device.PretendDevice, pretend_device.counting, pretend_device.on_cpu
    )


class GpuCounts:
    """Waits of the host in a block, copies of pageable memory among them; copies and operations are not told apart."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.operations = 0


@contextmanager
def _counting_on_gpu() -> Iterator[GpuCounts]:
    counts = GpuCounts()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    counts.waits.update(f"a wait at {warning.filename}:{warning.lineno}" for warning in waits)


def compare(gpu: Accelerator, config: Any, with_invariance: bool = True) -> dict[str, Any]:
    """Train a cell on the CPU and on the device, alone: steps, evaluation, invariance, checkpoint and resume."""
    from invbench.evaluation.invariance import measure

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        reference = _training(config, torch.device("cpu"), first)
        with reference.noise():
            _make_steps(reference, WARM_UP + COUNTED)
            expected = reference.measure(tuple(reference.problem.splits), last=True)
        with gpu.mode():
            training = _training(config, gpu.device, second)
            with training.noise():
                _make_steps(training, WARM_UP)
                begun = _epochs(training.loader, *training.critics.loaders.values())
                with gpu.counting() as steps:
                    _make_steps(training, COUNTED)
                begun = _epochs(training.loader, *training.critics.loaders.values()) - begun
                with gpu.counting() as evaluation:
                    metrics = training.measure(tuple(training.problem.splits), last=True)
                training.save()
                if with_invariance:
                    measure(training.model, training.problem, config.spec.seed, training.done)
            resumed = _training(config, gpu.device, second)
            with resumed.noise():
                resumed.begin(_report())
        return {
            "strategy": training.objective.strategy,
            "waits": steps.waits,
            "copies": steps.copies,
            "epochs": begun,
            "operations": steps.operations / COUNTED,
            "waits_of_evaluation": evaluation.waits,
            "difference": _difference(training, reference, gpu.on_cpu),
            "difference_of_metrics": max(
                abs(metrics[name] - value) / max(abs(value), 1.0)
                for name, value in expected.items()
                if not any(noisy in name for noisy in NOISY)
            ),
            "difference_of_resumed": _difference(resumed, training, gpu.on_cpu) if resumed.done == training.done else 1,
        }


def compare_together(gpu: Accelerator, configs: Sequence[Any]) -> dict[str, Any]:
    """Train runs of a cell together, on the CPU and on the device."""
    from invbench.errors import CannotFuse
    from invbench.training.fused.loop import FusedTraining

    def fused(device: torch.device) -> FusedTraining:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in configs]
        return FusedTraining([_training(*pair) for pair in zip(configs, [device] * len(configs), folders, strict=True)])

    with ExitStack() as stack:
        try:
            reference = fused(torch.device("cpu"))
            for _ in range(WARM_UP + COUNTED):
                reference.step()
        except CannotFuse as reason:
            return {"cannot_fuse": str(reason)}
        reference.unstack_runs()
        with gpu.mode():
            training = fused(gpu.device)
            for _ in range(WARM_UP):
                training.step()
            begun = _epochs(training.loader, *training.critic_loaders.values())
            with gpu.counting() as steps:
                for _ in range(COUNTED):
                    training.step()
            begun = _epochs(training.loader, *training.critic_loaders.values()) - begun
            training.unstack_runs()
        pairs = zip(training.trainings, reference.trainings, strict=True)
        return {
            "waits": steps.waits,
            "copies": steps.copies,
            "epochs": begun,
            "operations": steps.operations / COUNTED,
            "difference": max(_difference(one, other, gpu.on_cpu) for one, other in pairs),
        }


def _training(config: Any, device: torch.device, folder: str) -> Any:
    from invbench.runs.folder import RunFolder
    from invbench.runs.options import Options
    from invbench.training.attempt import build_training
    from invbench.training.build import load_problem

    options = Options(checkpoint_seconds=1e9)
    return build_training(config, load_problem(config), RunFolder(Path(folder)), device, "", options)


def _report() -> Any:
    from invbench.training.progress import Report

    return Report("", 1, Path("/dev/null"), quiet=True)


def _make_steps(training: Any, count: int) -> None:
    training.model.train()
    feed = training.steps()
    for _ in range(count):
        next(feed, None)


def _epochs(*loaders: Any) -> int:
    """Return how many epochs the loaders have begun."""
    return sum(loader.order.number for loader in loaders)


def _difference(one: Any, other: Any, on_cpu: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference of two runs' parameters."""
    pairs = [(value.detach(), other.parameters[name].detach()) for name, value in one.parameters.items()]
    return max((float((on_cpu(a) - on_cpu(b)).abs().max()) for a, b in pairs), default=0.0)


def _failure(error: Exception) -> str:
    where = innermost(traceback.extract_tb(error.__traceback__))
    return f"{type(error).__name__}: {str(error).splitlines()[0]} at {where}"


def _print(cell: str, act: Callable[[], dict[str, Any]]) -> None:
    """Print what a comparison returns or raises, without the folders of files."""
    from invbench.errors import UserError

    try:
        result = act()
    except UserError as refusal:
        result = {"refused": str(refusal)}
    except Exception as error:  # a test reads it
        result = {"error": _failure(error)}
    text = json.dumps({"cell": cell, **result})
    sys.stdout.write(re.sub(r"/[^ \"]*/(?=benchmark/|methods/|datasets/|tests/|invbench/)", "", text) + "\n")


def compare_method(gpu: Accelerator, method: str, datasets: Sequence[str]) -> None:
    """Compare a method's cells: the first by each strategy, all as they are, and runs that are trained together."""
    from cells import small_config, without_coupling

    for strategy in ("joint", "loop", "vmap"):
        plain = without_coupling(small_config(method, datasets[0], trainer__strategy=strategy, **SETTINGS))
        # The model's invariance does not depend on how gradients are computed.
        _print(f"{method}/{datasets[0]} {strategy}", partial(compare, gpu, plain, strategy == "joint"))
    for dataset in datasets:
        config = small_config(method, dataset, **SETTINGS)
        if dataset != datasets[0] or without_coupling(config) != config:  # else it is one of the three
            _print(f"{method}/{dataset} alone", partial(compare, gpu, config))
        alike = [without_coupling(small_config(method, dataset, seed, **SETTINGS)) for seed in range(SEEDS)]
        _print(f"{method}/{dataset} together", partial(compare_together, gpu, alike))


def main(device: str, cells: Sequence[str]) -> None:
    """Compare the training of cells, METHOD/DATASET, on a device and on the CPU, and print a line for each."""
    gpu = accelerator(device)
    from invbench.evaluation import metrics

    metrics.ROWS_OF_CPU = metrics.ROWS  # so that random copies are drawn in the same order
    for method, of_method in groupby((cell.split("/") for cell in cells), key=itemgetter(0)):
        compare_method(gpu, method, [dataset for _, dataset in of_method])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    if sys.argv[1] == "pretend":
        import pretend_device

        pretend_device.leave()
