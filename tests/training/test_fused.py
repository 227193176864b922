"""Runs that are trained together end as they do alone, leave what they leave alone, and do not notice each other."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import assert_same_training, small_config, without_coupling
from conftest import Bench
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from invbench.core.data import Problem
from invbench.core.method import Method, State
from invbench.core.registry import METHODS
from invbench.errors import CannotFuse, Interrupted, RunFailed, UserError
from invbench.methods.erm import ERM
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.curves import read_curves
from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig, fusion_key, resolve
from invbench.runs.spec import parse_fuse
from invbench.sweeps.engines.worker import carry_out, settle_outcomes
from invbench.sweeps.jobs import Job, Outcome, jobs_of
from invbench.sweeps.monitor import SweepMonitor
from invbench.system.signals import StopRequest
from invbench.training.build import build_model, load_problem
from invbench.training.curve_columns import SECONDS
from invbench.training.fused.loop import FusedTraining
from invbench.training.fused.payoff import Memory, check_memory, check_that_it_pays
from invbench.training.loop import TrainingLoop
from invbench.training.recording import traced
from invbench.training.runner import Ended, run_one, run_together

SEEDS = 3
QUICK = ("erm", "and_mask", "irmv1", "iga", "mutual_information", "adrmx", "swad", "group_weights", "jtt")
"""Methods of different kinds, which are compared by default; the others are slow tests."""
CELLS = [
    *(
        pytest.param(method, "spirals", marks=[] if method in QUICK else [pytest.mark.slow])
        for method in METHODS.entries()
    ),
    ("adareg", "irm_regression"),
    ("irmv1", "linear_unit_tests"),
    ("and_mask", "chain_sem"),
    ("mutual_information", "mi_toy"),
    ("adversary", "mi_toy"),
    ("irmv1", "colored_digits"),
    ("group_dro", "tabular_nuisance"),
]
FALLBACK = {"augerino": "digits", "augerino_color": "digits", "fixed_augmentation": "digits", "steerable": "digits"}
FALLBACK |= {
    "canonical": "digits",
    "insta_aug": "digits",
    "symmetrised": "digits",
    "partial_steerable": "digits",
    "marginal_likelihood": "digits",
    "oracle": "irm_regression",
    "irm_games": "colored_digits",
    "icp": "irm_regression",
    "afr": "grouped_digits",
    "arm": "colored_digits",
}
"""Where a method has nothing to say on spirals."""


def spread(method: str, dataset: str, **settings: Any) -> list[RunConfig]:
    """Return runs that differ in the seed, the learning rate and every fusable setting of the method."""
    cls: type[Method] = METHODS.load(method)
    configs = []
    for seed in range(SEEDS):
        values = {name: cls.model_fields[name].get_default() for name in cls.fusable()}
        changed = {f"method__{name}": type(value)(value * (1 - 0.25 * seed)) for name, value in values.items()}
        rate = {"trainer__learning_rate": 1e-3 * (1 + seed)}
        config = small_config(method, dataset, seed, **({"trainer__evaluate_every": 5} | rate | changed | settings))
        configs.append(without_coupling(config))
    return configs


def together(configs: Sequence[RunConfig], out: Path, fuse: Any = SEEDS) -> dict[int, Ended]:
    """Train the runs together and return how each ended, by seed."""
    ends: dict[int, Ended] = {}
    run_together(
        configs, Options("cpu", out, 0, fuse=fuse), lambda config, ended: ends.update({config.spec.seed: ended})
    )
    return ends


def assert_close(one: RunFolder, other: RunFolder, tolerance: float) -> None:
    """Check that metrics and curves are equal but for rounding.

    What is estimated from ranks jumps where rounding makes or breaks a tie.
    """
    records = [folder.read_record() for folder in (one, other)]
    curves = [read_curves(folder.curves) for folder in (one, other)]
    first, second = (record.metrics for record in records if record is not None)
    assert first.keys() == second.keys()
    for name, value in first.items():
        jump = 1e-2 if "mutual_information" in name else tolerance
        assert second[name] == pytest.approx(value, rel=jump, abs=jump), name
    assert curves[0] is not None
    assert curves[1] is not None
    assert set(curves[0]) == set(curves[1])
    for name in curves[0].columns.difference([SECONDS]):
        left, right = curves[0][name].to_numpy(), curves[1][name].to_numpy()
        jump = 1e-2 if "mutual_information" in name else tolerance
        scale = np.abs(left[np.isfinite(left)]).max(initial=1e-3)
        np.testing.assert_allclose(right, left, rtol=0, atol=jump * scale, err_msg=name)


@pytest.mark.parametrize(("method", "dataset"), CELLS)
def test_the_same_as_alone(method: str, dataset: str, tmp_path: Path) -> None:
    """To 1e-5 in double precision, for every method that can; one that cannot says why."""
    dataset = FALLBACK.get(method, dataset) if dataset == "spirals" else dataset
    if not METHODS.literal(method, "trains", True) or METHODS.literal(method, "replaces_model", False):
        configs = [small_config(method, dataset, seed) for seed in range(SEEDS)]
    else:
        configs = spread(method, dataset, trainer__dtype="float64")
    assert len({fusion_key(config) for config in configs}) == 1
    if configs[0].method.fuse_obstacle:
        with pytest.raises(CannotFuse, match=method):
            together(configs, tmp_path / "together")
        return
    ended = together(configs, tmp_path / "together")
    for config in configs:
        record, run_id = ended[config.spec.seed], config.spec.run_id
        assert isinstance(record, Record)
        assert record.engine["fused"] == SEEDS
        alone = run_one(config, Options("cpu", tmp_path / "alone"))
        assert {**record.engine, "fused": 0} == {**alone.engine, "strategy": record.engine["strategy"], "fused": 0}
        assert_close(RunFolder(tmp_path / "alone" / run_id), RunFolder(tmp_path / "together" / run_id), 1e-5)


@pytest.mark.parametrize(
    ("method", "dataset", "network"),
    [
        ("erm", "digits", {"backbone__name": "simple_conv"}),
        ("erm", "digits", {"backbone__dropout": 0.0}),
        ("irmv1", "spirals", {"backbone__batch_norm": True}),
        ("mutual_information", "mi_toy", {"backbone__name": "mlp", "backbone__batch_norm": True}),
    ],
)
def test_running_means_are_each_runs_own(method: str, dataset: str, network: dict[str, Any], tmp_path: Path) -> None:
    """Batch normalisation, of small convolutional networks too: as alone, in evaluation and in the last checkpoint."""
    configs = spread(method, dataset, trainer__dtype="float64", **network)
    ended = together(configs, tmp_path / "together")
    for config in configs:
        assert isinstance(ended[config.spec.seed], Record)
        run_one(config, Options("cpu", tmp_path / "alone"))
        folders = [RunFolder(tmp_path / name / config.spec.run_id) for name in ("alone", "together")]
        assert_close(*folders, 1e-5)
        alone, fused_ = (Checkpoint.load(folder.checkpoint) for folder in folders)
        assert alone is not None
        assert fused_ is not None
        torch.testing.assert_close(dict(fused_.tensors["model"]), dict(alone.tensors["model"]))


@pytest.mark.parametrize("method", ["erm", "and_mask", "irmv1", "mutual_information"])
def test_nearly_the_same_in_single_precision(method: str, tmp_path: Path) -> None:
    configs = spread(method, "mi_toy" if method == "mutual_information" else "spirals")
    together(configs, tmp_path / "together")
    for config in configs:
        run_one(config, Options("cpu", tmp_path / "alone"))
        folders = [RunFolder(tmp_path / name / config.spec.run_id) for name in ("alone", "together")]
        assert_close(*folders, 1e-2)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("erm", {"trainer__average": "mean", "trainer__average_from": 3}),
        ("vrex", {"trainer__average": "exponential", "trainer__average_decay": 0.7, "backbone__batch_norm": True}),
        ("swad", {"method__start_windows": 1, "trainer__evaluate_every": 2, "trainer__learning_rate": 0.03}),
    ],
)
def test_means_of_weights(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Those of runs alone, in metrics and checkpoints."""
    settings |= {"trainer__dtype": "float64", "trainer__steps": 9}
    configs = [small_config(method, "spirals", seed, **settings) for seed in range(SEEDS)]
    together(configs, tmp_path / "together")
    for config in configs:
        alone = run_one(config, Options("cpu", tmp_path / "alone"))
        folders = [RunFolder(tmp_path / name / config.spec.run_id) for name in ("alone", "together")]
        assert_close(*folders, 1e-5)
        record, checkpoints = folders[1].read_record(), [Checkpoint.load(folder.checkpoint) for folder in folders]
        assert record is not None
        assert record.engine["fused"] == SEEDS
        assert record.engine["mean_of_steps"] == alone.engine["mean_of_steps"]
        first, second = (dict(checkpoint.tensors["average"]["parameters"]) for checkpoint in checkpoints if checkpoint)
        torch.testing.assert_close(second, first)


def test_annealing_steps_and_zero_weights(tmp_path: Path) -> None:
    """Weights that jump at other steps, and with them the optimiser's new start."""
    configs = [
        small_config(
            "irmv1", "spirals", seed, trainer__dtype="float64", method__anneal_steps=4 + seed, method__weight=9.0
        )
        for seed in range(SEEDS)
    ]
    together(configs, tmp_path / "together")
    for config in configs:
        run_one(config, Options("cpu", tmp_path / "alone"))
        folders = [RunFolder(tmp_path / name / config.spec.run_id) for name in ("alone", "together")]
        assert_close(*folders, 1e-5)
    never = small_config("irmv1", "spirals", 0, method__anneal_steps=0)
    assert fusion_key(never) != fusion_key(configs[0]), "without annealing it is another program"


def test_one_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    rates = [1e-3, 1e18, 2e-3]
    configs = [small_config("erm", "linear_unit_tests", seed, trainer__optimizer="sgd", trainer__learning_rate=rate,
                        trainer__evaluate_every=2) for seed, rate in enumerate(rates)]  # fmt: skip
    good = [
        configs[0],
        small_config("erm", "linear_unit_tests", 1, trainer__optimizer="sgd", trainer__evaluate_every=2),
        configs[2],
    ]
    ended = together(configs, tmp_path / "with")
    failure = ended[1]
    assert isinstance(failure, RunFailed)
    assert failure.kind == "diverged"
    record = RunFolder(tmp_path / "with" / configs[1].spec.run_id).read_record()
    assert record is not None
    assert (record.status, record.kind) == ("failed", "diverged")
    together(good, tmp_path / "without")
    for config in (configs[0], configs[2]):
        assert_same_training(*(RunFolder(tmp_path / name / config.spec.run_id) for name in ("with", "without")))


def test_a_penalty_on_the_gradients_of_changed_representations_keeps_runs_apart(tmp_path: Path) -> None:
    configs = [small_config("rsc+iga", "colored_digits", seed) for seed in range(SEEDS)]
    with pytest.raises(CannotFuse, match="representations are changed by the examples of all environments"):
        together(configs, tmp_path)


def test_interrupted_runs_go_on(tmp_path: Path) -> None:
    """Together and alone: SIGTERM keeps every run's checkpoint, and the end is that of an undisturbed group."""
    average = {"trainer__average": "mean", "trainer__average_from": 2}
    configs = spread(
        "adareg", "spirals", trainer__steps=80, trainer__dtype="float64", trainer__evaluate_every=40, **average
    )
    folders = [RunFolder(tmp_path / "parted" / config.spec.run_id) for config in configs]
    thread = threading.Thread(target=terminate_after, args=(folders[0], 5))
    thread.start()
    ended = together(configs, tmp_path / "parted")
    thread.join()
    assert all(isinstance(one, Interrupted) for one in ended.values())
    steps = {reached(folder) for folder in folders}
    assert len(steps) == 1, "all of one step"
    assert 5 <= steps.pop() < 80
    assert all(isinstance(one, Record) for one in together(configs, tmp_path / "parted").values())
    together(configs, tmp_path / "whole")
    for config in configs:
        assert_same_training(*(RunFolder(tmp_path / name / config.spec.run_id) for name in ("parted", "whole")))


def terminate_after(folder: RunFolder, steps: int) -> None:
    """Send SIGTERM to this process once the run has kept so many steps."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if reached(folder) >= steps:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.002)


def test_a_part_of_the_group_is_further(tmp_path: Path) -> None:
    """A run that was carried on alone meanwhile, and one that is done already."""
    configs = spread("erm", "spirals", trainer__dtype="float64")
    run_one(configs[0], Options("cpu", tmp_path))
    mark = RunFolder(tmp_path / configs[0].spec.run_id).record.stat().st_mtime_ns
    ended = together(configs, tmp_path)
    assert [record.engine.get("fused") for record in ended.values() if isinstance(record, Record)] == [None, 2, 2]
    assert RunFolder(tmp_path / configs[0].spec.run_id).record.stat().st_mtime_ns == mark


def test_a_run_that_was_killed_before_its_record_is_carried_out_once(tmp_path: Path) -> None:
    configs = spread("erm", "spirals", trainer__dtype="float64")[:2]
    before = run_one(configs[0], Options("cpu", tmp_path))
    RunFolder(tmp_path / configs[0].spec.run_id).record.unlink()
    ended: list[tuple[int, Ended]] = []
    run_together(configs, Options("cpu", tmp_path, fuse=2), lambda config, end: ended.append((config.spec.seed, end)))
    assert sorted(seed for seed, _ in ended) == [0, 1]
    again = dict(ended)[0]
    assert isinstance(again, Record)
    assert again.metrics == before.metrics


def test_killed_and_started_again(tmp_path: Path) -> None:
    """A real kill in the middle of the critics' updates; what follows is what follows in an undisturbed group."""
    configs = spread("mutual_information", "mi_toy", trainer__steps=40, method__critic_steps=5)
    specs = [config.spec.model_dump() for config in configs]
    code = f"""
from pathlib import Path
from invbench.sweeps.engines.worker import carry_out
from invbench.runs.options import Options
carry_out({specs!r}, Options("cpu", Path({str(tmp_path / "killed")!r}), 0, fuse=3))
"""
    folders = [RunFolder(tmp_path / "killed" / config.spec.run_id) for config in configs]
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 120
    while time.monotonic() < until and reached(folders[2]) < 5:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert all(5 <= reached(folder) < 40 for folder in folders)
    outcomes = [carry_out(specs, Options("cpu", tmp_path / name, fuse=3)) for name in ("killed", "whole")]
    assert {outcome.status for each in outcomes for outcome in each} == {"done"}
    assert fused_with(tmp_path / "whole") == [3, 3, 3]
    parts = fused_with(tmp_path / "killed")
    for config in configs:
        both = [RunFolder(tmp_path / name / config.spec.run_id) for name in ("killed", "whole")]
        if parts == [3, 3, 3]:  # killed between two checkpoints of a step, they go on apart: equal but for rounding
            assert_same_training(*both)
        else:
            assert_close(*both, 1e-2)


def reached(folder: RunFolder) -> int:
    """Return the step of a run's checkpoint."""
    checkpoint = Checkpoint.load(folder.checkpoint)
    return 0 if checkpoint is None else int(checkpoint.facts["step"])


def fused_with(out: Path) -> list[int]:
    """Return the size of the group that each run of a folder was trained in."""
    records = [folder.read_record() for folder in run_folders(out)]
    return sorted(record.engine.get("fused", 1) for record in records if record is not None)


def fused(configs: Sequence[RunConfig], tmp_path: Path) -> FusedTraining:
    def training(config: RunConfig, problem: Problem) -> TrainingLoop:
        return TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)

    return FusedTraining([training(config, load_problem(config)) for config in configs])


def test_what_cannot_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotFuse, match="batch normalisation"):
        fused([small_config("and_mask", "spirals", seed, backbone__batch_norm=True) for seed in range(2)], tmp_path)
    with pytest.raises(CannotFuse, match="differ in more"):
        fused([small_config("erm", "spirals"), small_config("irmv1", "spirals")], tmp_path)
    sizes = [small_config("erm", "linear_unit_tests", dataset__examples=count) for count in (40, 50)]
    with pytest.raises(CannotFuse, match="differ in more"):
        fused(sizes, tmp_path)
    with pytest.raises(CannotFuse, match="random numbers"):
        fused([small_config("pcgrad", "spirals", seed, method__order="random") for seed in range(2)], tmp_path).step()


def test_where_it_does_not_pay_they_go_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = spread("erm", "spirals")
    group = fused(configs, tmp_path)
    before = [leaf.clone() for leaf in group.leaves]
    monkeypatch.setattr("invbench.training.fused.payoff.GAIN", 0.0)
    check_that_it_pays(group)
    assert all(torch.equal(a, b) for a, b in zip(group.leaves, before, strict=True)), "measuring changes nothing"
    file = Path(os.environ["INVBENCH_CACHE"]) / "calibration.json"
    (gain,) = json.loads(file.read_text()).values()
    assert gain > 0
    monkeypatch.setattr("invbench.training.fused.payoff.GAIN", gain + 1)
    with pytest.raises(CannotFuse, match="of the time that they take one by one"):
        check_memory(configs[0], torch.device("cpu"), SEEDS)
    check_memory(configs[0], torch.device("cpu"), SEEDS + 1)  # of so many nothing is known
    outcomes = carry_out(
        [config.spec.model_dump() for config in configs], Options("cpu", tmp_path / "out", fuse="auto")
    )
    assert {outcome.status for outcome in outcomes} == {"apart"}
    assert not (tmp_path / "out").exists(), "known before anything is loaded"


def test_what_cannot_be_remembered_counts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INVBENCH_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr("invbench.training.fused.payoff.GAIN", float("inf"))
    with pytest.raises(CannotFuse, match="of the time that they take one by one"):
        check_that_it_pays(fused(spread("erm", "spirals"), tmp_path))


def test_a_memory_that_is_damaged_or_cannot_be_written(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "folder" / "file.json")
    assert memory.get("a") is None
    memory.put("a", 2.0)
    assert memory.get("a") == 2.0
    memory.path.write_text("[1")
    assert memory.get("a") is None
    Memory(tmp_path / "folder" / "file.json" / "below").put("a", 1.0)


def test_groups_that_fail_are_tried_otherwise(tmp_path: Path) -> None:
    """Killed or out of memory: in halves. An error: one by one. Runs that ended meanwhile are not tried again."""
    configs = {config.spec.run_id: config for config in (small_config("erm", "spirals", seed) for seed in range(4))}
    a, b, c, d = configs
    job = Job(a, others=(b, c, d))

    def following(*outcomes: Outcome) -> list[tuple[str, ...]]:
        monitor = SweepMonitor({run_id: run_id for run_id in configs}, StopRequest(), quiet=True)
        return [one.run_ids for one in settle_outcomes(job, outcomes, configs, tmp_path, monitor)]

    assert following(*[Outcome("failed", "killed")] * 4) == [(a, b), (c, d)]
    assert following(Outcome("done"), *[Outcome("apart", "oom")] * 3) == [(b, c), (d,)]
    assert following(*[Outcome("apart", message="why")] * 4) == [(a,), (b,), (c,), (d,)]
    assert following(*[Outcome("done")] * 4) == []
    assert following(Outcome("held"), *[Outcome("done")] * 3) == [(a,)]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.one_of(st.integers(1, 9), st.just("auto")), st.integers(1, 8))
def test_every_run_is_in_one_job(kinds: list[str], fuse: Any, slots: int) -> None:
    names = {"a": ("erm", {}), "b": ("irmv1", {}), "c": ("fish", {})}
    configs = [CACHED[kind, seed] for seed, kind in enumerate(kinds) if names[kind]]
    jobs = jobs_of(configs, fuse, slots)
    assert sorted(run_id for job in jobs for run_id in job.run_ids) == sorted(config.spec.run_id for config in configs)
    by_id = {config.spec.run_id: config for config in configs}
    for job in jobs:
        assert len({fusion_key(by_id[run_id]) for run_id in job.run_ids}) == 1
        assert len(job.run_ids) == 1 or not by_id[job.run_id].method.fuse_obstacle
        assert fuse == "auto" or len(job.run_ids) <= fuse
    if fuse == "auto":
        assert len(jobs) >= min(slots, len(configs))
    if fuse == 1:
        assert len(jobs) == len(configs)


CACHED = {
    (kind, seed): resolve(method, "spirals", seed)
    for kind, method in (("a", "erm"), ("b", "irmv1"), ("c", "fish"))
    for seed in range(30)
}


@pytest.mark.slow
def test_the_command(bench: Bench, tmp_path: Path) -> None:
    """--fuse wins over the file; methods that cannot are carried out all the same; the table does not care."""
    values = {f"dataset.{k}": v for k, v in small_config("erm", "spirals").spec.dataset_settings.items()}
    values |= {"trainer.steps": 4, "trainer.batch_size": 16, "backbone.width": 8}
    configs = [{"method": ["erm", "fish"], "dataset": "spirals", "set": values}]
    Path("mine.yaml").write_text(json.dumps({"seeds": "0-3", "fuse": "off", "cells": configs}))
    status, _, said = bench("sweep", "mine.yaml", "--out", "out", "--fuse", "2", "--workers", "1")
    assert status == 0, said
    assert "and 1 more begins on worker 0" in said
    assert fused_with(Path("out")) == [1, 1, 1, 1, 2, 2, 2, 2]
    status, _, said = bench("sweep", "mine.yaml", "--out", "alone", "--workers", "1")
    assert fused_with(Path("alone")) == [1] * 8
    tables = [bench("table", name)[1] for name in ("out", "alone")]
    assert tables[0] == tables[1]
    status, _, said = bench("sweep", "mine.yaml", "--fuse", "many")
    assert status == 2
    assert "--fuse many: it is auto, off, or a number of runs from 1" in said


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "yes", ""])
def test_mistakes(text: str) -> None:
    with pytest.raises(UserError, match="--fuse"):
        parse_fuse(text)


def test_operations_are_repeated_not_results() -> None:
    """With constants, in-place operations, views and derivatives; and random numbers are refused."""
    constant = torch.tensor([2.0, 3.0])

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        total = torch.zeros_like(x).add_(x).view(3, 2).mul_(constant)
        slopes = vmap(grad(lambda a, b: (a * b).sin().sum()))(total, y.expand(3, 2))
        return [slopes @ y, total.T.contiguous(), torch.bmm(total[None], total[None].transpose(1, 2)), x]

    def draw(x: Tensor) -> list[Tensor]:
        return [x + torch.randn(3)]

    first, second = [(torch.randn(3, 2), torch.randn(2)) for _ in range(2)]
    again = traced(function, first)
    for arguments in (second, first, second):
        for ours, theirs in zip(again(*arguments), function(*arguments), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-6)
    with pytest.raises(CannotFuse, match="random"):
        traced(draw, [torch.zeros(3)])


def with_constants(x: Tensor) -> list[Tensor]:
    """Use constants that derive from each other, two of which share a tensor."""
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    return [x * first + second * torch.tensor([5.0, 6.0]) + torch.tensor([7.0, 8.0]) + torch.ones_like(x) / 3]


def changed_in_place(x: Tensor) -> list[Tensor]:
    """Change in place what the call has made: constants, a part of one, zeros, and what derives from the input."""
    halved, filled, zeros = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), torch.zeros_like(x)
    halved *= 0.5
    filled[1] += x[1]
    zeros[:1].add_(x[0])
    return [halved * x + filled, zeros, (x * 2).exp_()]


def from_numpy(x: Tensor) -> list[Tensor]:
    return [torch.from_numpy(np.array([1.0, 2.0], np.float32)).mul_(3) * x]


def constant_results(x: Tensor) -> list[Tensor]:
    one = torch.ones_like(x)
    return [one, one * 2, x]


def conjugates(x: Tensor) -> list[Tensor]:
    """Use a conjugate, a view of the same memory whose numbers differ."""
    z = torch.complex(x, x * 2)
    return [(z * z.conj()).real, (z.conj() * 3).imag.contiguous()]


def into_the_first(x: Tensor) -> list[Tensor]:
    """Write a result into a view of the operand."""
    y = x * 1
    torch.mul(y, 2, out=y.view(2))
    return [y + x]


@pytest.mark.parametrize(
    "function", [with_constants, changed_in_place, from_numpy, constant_results, conjugates, into_the_first]
)
def test_recorded_operations_begin_anew_in_every_call(function: Callable[[Tensor], list[Tensor]]) -> None:
    again = traced(function, [torch.randn(2)])
    for _ in range(3):
        x = torch.randn(2)
        for ours, theirs in zip(again(x), function(x), strict=True):
            assert torch.equal(ours, theirs)
            ours.add_(1)  # a result is the caller's


def test_a_captured_tensor_that_changes_in_place_is_refused() -> None:
    captured = torch.ones(3)

    def whole(x: Tensor) -> list[Tensor]:
        captured.add_(1)
        return [captured * x]

    def part(x: Tensor) -> list[Tensor]:
        captured[1:].view(2, 1).squeeze(1).mul_(2)
        return [captured * x]

    for function in (whole, part):
        with pytest.raises(CannotFuse, match="a step changes in place a tensor that it has not made"):
            traced(function, [torch.ones(3)])
    assert torch.equal(captured, torch.ones(3))


def test_runs_in_one_order_share_their_batches(tmp_path: Path) -> None:
    """Runs that differ in numbers only; their results are those that they have alone."""
    configs = [small_config("irmv1", "spirals", 0, trainer__learning_rate=rate) for rate in (1e-3, 2e-3)]
    loader = fused(configs, tmp_path).loader
    assert loader.axis is None
    assert loader.batch(0)["x"].ndim == 3
    ends: list[Ended] = []
    run_together(configs, Options("cpu", tmp_path / "together", 0, fuse=2), lambda _, ended: ends.append(ended))
    for config in configs:
        run_one(config, Options("cpu", tmp_path / "alone", 0))
        name = config.spec.run_id
        assert_close(RunFolder(tmp_path / "alone" / name), RunFolder(tmp_path / "together" / name), 1e-5)


class Reading(ERM):
    """Reads a number of the risks, which is another one in each run."""

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        return risks.mean() * (1 if risks.sum().item() > 0 else 2), state


def test_the_log_says_that_runs_turn_out_to_be_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._registered, "erm", Reading)
    specs = [small_config("erm", "spirals", seed).spec for seed in range(2)]
    outcomes = carry_out([spec.model_dump() for spec in specs], Options("cpu", tmp_path, fuse=2))
    assert {outcome.status for outcome in outcomes} == {"apart"}
    for spec in specs:
        log = (tmp_path / spec.run_id / "log.txt").read_text()
        assert "trained together with 1 other run\n" in log
        assert "trained alone after all: a step of these runs cannot be mapped: " in log
