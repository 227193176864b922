"""Several steps of a group as one CUDA graph: the counters that it reads are tested without one, on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import small_config, without_coupling

from invbench.pytree import flatten
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.training.attempt import build_training
from invbench.training.build import load_problem
from invbench.training.fused.captured import STEPS, CapturedSteps, StepBlock
from invbench.training.fused.loop import FusedTraining
from invbench.training.progress import Report

CELLS: list[tuple[str, str, dict[str, Any]]] = [
    ("erm", "spirals", {"trainer__schedule": "cosine", "trainer__warmup": 0.2}),
    ("and_mask", "spirals", {"trainer__batch_size": 4}),
    ("irmv1", "irm_regression", {}),
    ("mutual_information", "mi_toy", {"method__critic_steps": 3}),
    ("adversary", "mi_toy", {}),
]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")


def fused(method: str, dataset: str, device: str = "cpu", **settings: Any) -> FusedTraining:
    runs = []
    for seed in range(2):
        further = {"trainer__epochs": None, "trainer__steps": 6 * STEPS, "trainer__evaluate_every": 1000} | settings
        config = without_coupling(small_config(method, dataset, seed, **further))
        options = Options(device, Path(), checkpoint_seconds=1e9)
        runs.append(build_training(config, load_problem(config), RunFolder(Path()), torch.device(device), "", options))
    return FusedTraining(runs)


def until_a_block_fits(group: FusedTraining) -> StepBlock:
    for _ in range(4 * STEPS):
        group.step()
        if (block := group.block()).fits(group.done, group.first.total):
            return block
    pytest.fail("no steps are alike")


def blocks(group: FusedTraining) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Make blocks of steps where they fit, else single ones. Yields the step and the runs after each."""
    block = until_a_block_fits(group)
    while group.done < group.first.total:
        if block.fits(group.done, group.first.total):
            block.begin(group.done)
            with torch.no_grad():
                group.leaves, group.aux = block.steps(group.leaves)
            group.done += STEPS
        else:
            group.step()
        yield group.done, group.leaves


@pytest.mark.parametrize(("method", "dataset", "settings"), CELLS)
def test_blocks_make_the_steps(method: str, dataset: str, settings: dict[str, Any]) -> None:
    ours, theirs = fused(method, dataset, **settings), fused(method, dataset, **settings)
    made = 0
    for done, leaves in blocks(ours):
        made += 1
        while theirs.done < done:
            theirs.step()
        assert all(torch.equal(*pair) for pair in zip(leaves, theirs.leaves, strict=True)), done
    assert made < ours.first.total - STEPS, "some are blocks"
    first, second = flatten(ours.aux()), flatten(theirs.aux())
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_blocks_end_ahead_of_what_differs() -> None:
    group = fused("erm", "spirals", trainer__batch_size=1)
    block = until_a_block_fits(group)
    assert block.fits(group.done, group.done + STEPS)
    assert not block.fits(group.done, group.done + STEPS - 1)
    block.restarts = {group.done + STEPS - 1}
    assert not block.fits(group.done, group.first.total)


@gpu
@pytest.mark.parametrize(("method", "dataset", "settings"), CELLS)
def test_captured_steps_on_a_gpu(method: str, dataset: str, settings: dict[str, Any]) -> None:
    ours, theirs = (fused(method, dataset, "cuda", **settings, trainer__dtype="float64") for _ in range(2))
    captured = CapturedSteps(until_a_block_fits(ours), ours.leaves, ours.done)
    while ours.done < ours.first.total:
        if captured.block.fits(ours.done, ours.first.total):
            ours.leaves, ours.aux = captured(ours.leaves, ours.done)
            ours.done += STEPS
        else:
            ours.step()
    while theirs.done < ours.done:
        theirs.step()
    for one, other in zip(ours.leaves, theirs.leaves, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-12)


@gpu
def test_a_training_on_a_gpu_is_captured() -> None:
    group = fused("and_mask", "spirals", "cuda")
    reports = [Report("", group.first.total, Path("/dev/null"), quiet=True) for _ in group.trainings]
    group.run(reports, lambda number, result: None)
    assert group.captured is not None
    assert group.can_capture
