"""What do pictures cost? Against torchvision's `ImageFolder` with a `DataLoader` that has a process for each core.

    python scripts/benchmark_images.py [--each 143] [--rounds 3] [--device cpu]

    data      all batches of an epoch of 224-pixel pictures: the first epoch, which decodes them, and later ones
    whole     whole runs on 64-pixel pictures with ERM and small networks, a linear one and convolutions of width 4 and
              16, the cache empty and full
    embedded  a sweep of 200 learning rates on 10,000 representations: trained together by `bench sweep --fuse`, against
              200 commands `bench run`, of which 4 are made, and a loop in one process, of which 20

Sides alternate, round by round. The pictures are drawn by `draw_pictures.py`; 4 environments x 7 classes x --each.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import draw_pictures
import numpy as np
import torch
import typer
from torch.utils.data import DataLoader

import invbench
from invbench.core.pixels import IMAGENET
from invbench.datasets import _pictures
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.system.device import choose_device
from invbench.system.threads import available_cores
from invbench.system.workarounds import torchvision
from invbench.training.attempt import build_training
from invbench.training.build import _kept, build_model, load_problem

BATCH, EPOCHS, RUNS, LOOPED, COMMANDS = 32, 5, 200, 20, 4
RATE = "trainer.learning_rate"
QUIET = {"trainer.measure_invariance": "off", "dataset.validation_share": 0.0, "dataset.test_share": 0.05}


def main(
    each: Annotated[int, typer.Option(min=8, help="Pictures of a class in an environment.")] = 143,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:i")] = "cpu",
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        large, small = Path(scratch) / "224", Path(scratch) / "64"
        draw_pictures.main(large, each, 280)
        data(large, 224, rounds, device)
        draw_pictures.main(small, each, 80)
        whole(small, 64, {"backbone.name": "linear"}, rounds, device)
        for width in (4, 16):
            whole(small, 64, {"backbone.width": width}, rounds, device)
        embedded(Path(scratch), rounds, device)


def report(what: str, ours: list[float], theirs: list[float]) -> None:
    """Print the median of the ratios, and both sides."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"{what:34} {ratio:6.2f}x   {statistics.median(ours):7.2f} s against {statistics.median(theirs):7.2f} s",
        flush=True,
    )


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Use an empty cache within a block."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"INVBENCH_CACHE": folder}):
        _kept.clear()
        yield
        _kept.clear()


def seconds_of(act: Callable[[], object]) -> float:
    """Measure the seconds of a call."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def compare(what: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """Measure ours with an empty cache and with a full one, and theirs, and report."""
    first, later, plain = [], [], []
    for _ in range(rounds):
        with fresh_cache():
            first.append(seconds_of(ours))
            later.append(seconds_of(ours))
            plain.append(seconds_of(theirs))
    report(f"{what}, empty cache", first, plain)
    report(f"{what}, full cache", later, plain)


def plain_loader(root: Path, size: int) -> Any:
    """Make the loader of a plain loop over all environments."""
    vision = torchvision()
    transforms = vision.transforms
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET.mean, IMAGENET.deviation),
        ]
    )
    folders = [vision.datasets.ImageFolder(str(folder), transform) for folder in sorted(root.iterdir())]
    together = torch.utils.data.ConcatDataset(folders)
    return DataLoader(together, 4 * BATCH, shuffle=True, num_workers=available_cores(), drop_last=True)


def settings_of(root: Path, size: int) -> dict[str, Any]:
    """Return the settings of a run on these pictures."""
    steps = {"trainer.epochs": EPOCHS, "trainer.batch_size": BATCH}
    return QUIET | steps | {"dataset.root": str(root), "dataset.image_size": size}


def data(root: Path, size: int, rounds: int, device: str) -> None:
    """Compare the time of an epoch's batches, without a network."""

    def epoch_of_ours() -> None:
        _kept.clear()
        config = resolve("erm", "images", 0, settings_of(root, size))
        training = build_training(
            config, load_problem(config), RunFolder(root), choose_device(device), "", Options(checkpoint_seconds=1e9)
        )
        for step in range(training.sampler.steps_per_epoch):
            training.loader.batch(step)

    def epoch_of_theirs() -> None:
        for x, y in plain_loader(root, size):
            x.to(device), y.to(device)

    with mock.patch.object(_pictures, "MOST_IN_MEMORY", 0):  # the road of large data
        compare(f"data, {size} pixels", epoch_of_ours, epoch_of_theirs, rounds)


def whole(root: Path, size: int, network_settings: dict[str, Any], rounds: int, device: str) -> None:
    """Compare whole runs of the same network."""
    settings = settings_of(root, size) | network_settings

    def run_of_theirs() -> None:
        config = resolve("erm", "images", 0, settings)
        network = build_model(config, load_problem(config)).to(device)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        loader = plain_loader(root, size)
        for _ in range(EPOCHS):
            for x, y in loader:
                optimizer.zero_grad()
                prediction = network(x.to(device)).prediction
                torch.nn.functional.cross_entropy(prediction, y.to(device)).backward()
                optimizer.step()

    def run_of_ours() -> None:
        with tempfile.TemporaryDirectory() as out:
            _kept.clear()
            invbench.run("erm", "images", settings=settings, device=device, out=out, progress=False)

    which = " ".join(map(str, network_settings.values()))
    compare(f"whole, {size} pixels, {which}", run_of_ours, run_of_theirs, rounds)


def embedded(scratch: Path, rounds: int, device: str) -> None:
    """Compare a sweep of heads that are trained together with a loop over runs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_000, 512)).astype(np.float32)
    y = (x[:, :7] + rng.normal(size=(10_000, 7))).argmax(1)
    file = scratch / "embedded.safetensors"
    invbench.Problem.from_arrays(x, y, environment=np.arange(10_000) % 4).save(file)
    rates = [float(rate) for rate in np.geomspace(1e-4, 1e-2, RUNS)]
    common = {"dataset.path": str(file), "trainer.epochs": None, "trainer.steps": 100}
    sweep = {"set": common, "cells": [{"method": "irmv1", "dataset": "embedded", "grid": {RATE: rates}}]}

    def loop(out: str) -> None:
        for rate in rates[:: RUNS // LOOPED]:
            invbench.run("irmv1", "embedded", settings=common | {RATE: rate}, out=out, device=device, progress=False)

    def commands(out: str) -> None:
        """Run the commands of a few of the learning rates."""
        given = [f"--set=dataset.path={file}", "--set=trainer.steps=100", f"--device={device}", f"--out={out}", "-q"]
        for rate in rates[:: RUNS // COMMANDS]:
            command = ["bench", "run", "-m", "irmv1", "-d", "embedded", f"--set={RATE}={rate}", *given]
            subprocess.run(command, check=True, capture_output=True)

    together, by_command, apart = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            runs = invbench.sweep(sweep, out=out, workers=1, fuse=RUNS, progress=False)
            together.append(time.perf_counter() - began)
        if set(runs["status"]) != {"done"}:
            sys.exit("error: not all runs are done")
        with tempfile.TemporaryDirectory() as out:
            apart.append(RUNS / LOOPED * seconds_of(lambda out=out: loop(out)))
            by_command.append(RUNS / COMMANDS * seconds_of(lambda out=out: commands(out)))
    report(f"embedded, {RUNS} commands", together, by_command)
    report(f"embedded, {RUNS} runs in a loop", together, apart)


if __name__ == "__main__":
    typer.run(main)
