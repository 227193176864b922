"""A checkpoint is taken up whole or not at all: what is damaged or does not fit means starting afresh, with a word."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cells import assert_same_training, run_until, small_config
from torch import Tensor

from invbench.errors import Unusable, UserError
from invbench.pytree import Tree, flatten, unflatten
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig
from invbench.system.provenance import sources_hash
from invbench.training.build import load_problem
from invbench.training.restored import load_run
from invbench.training.runner import run_one

CELL = small_config("adareg", "spirals", trainer__steps=20, trainer__evaluate_every=4)
STEP = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("undisturbed")
    run_one(CELL, Options("cpu", out))
    return RunFolder(out / CELL.spec.run_id)


@pytest.fixture
def stopped(tmp_path: Path) -> RunFolder:
    """Return the same run, killed in the middle."""
    return stop(CELL, tmp_path)


def stop(config: RunConfig, out: Path) -> RunFolder:
    folder = RunFolder(out / config.spec.run_id)
    folder.create(config.spec)
    run_until(config, folder, STEP, origin=f"{sources_hash(*config.classes)}-{load_problem(config).fingerprint}")
    return folder


def go_on(folder: RunFolder) -> tuple[Record, str]:
    """Continue the run to its end and return its record and its log."""
    record = run_one(CELL, Options("cpu", folder.path.parent))
    return record, folder.log.read_text()


def test_it_goes_on(stopped: RunFolder, undisturbed: RunFolder) -> None:
    record, log = go_on(stopped)
    assert f"continuing at step {STEP}/20" in log
    assert "afresh" not in log
    assert_same_training(stopped, undisturbed)
    before = undisturbed.read_record()
    assert before is not None
    assert record.metrics == before.metrics


@pytest.mark.parametrize("seed", range(12))
def test_any_flipped_bit_is_noticed(stopped: RunFolder, undisturbed: RunFolder, seed: int) -> None:
    """In the header, in the facts, in weights, moments and random state."""
    content, rng = bytearray(stopped.checkpoint.read_bytes()), random.Random(seed)  # noqa: S311
    for whole in (range(8), range(8, 2000), range(2000, len(content))):
        flipped = bytearray(content)
        for _ in range(2):
            flipped[rng.choice(whole)] ^= 1 << rng.randrange(8)
        stopped.checkpoint.write_bytes(flipped)
        if flipped == content:
            continue
        with pytest.raises(Unusable, match="is damaged"):
            Checkpoint.load(stopped.checkpoint)
    _, log = go_on(stopped)
    assert "the checkpoint is damaged; starting afresh" in log
    assert_same_training(stopped, undisturbed)


def test_a_finished_run_with_a_damaged_checkpoint_is_not_analysed(undisturbed: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / undisturbed.path.name)
    folder.path.mkdir()
    for path in undisturbed.path.iterdir():
        (folder.path / path.name).write_bytes(path.read_bytes())
    assert load_run(folder.path).config.spec == CELL.spec
    content = bytearray(folder.checkpoint.read_bytes())
    content[-1] ^= 64
    folder.checkpoint.write_bytes(content)
    with pytest.raises(UserError, match="the checkpoint is damaged; delete it"):
        load_run(folder.path)


Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


def _without(prefix: str) -> Change:
    return lambda flat, facts: [flat.pop(name) for name in list(flat) if name.startswith(prefix)] and None


def _largest(prefix: str, change: Callable[[Tensor], Tensor]) -> Change:
    def act(flat: dict[str, Tensor], facts: dict[str, Any]) -> None:
        names = sorted(name for name in flat if name.startswith(prefix))  # a file gives them in any order
        name = max(names, key=lambda name: flat[name].numel())
        flat[name] = change(flat[name])

    return act


def _fact(name: str, value: Any) -> Change:
    return lambda flat, facts: facts.__setitem__(name, value)


CHANGES: dict[str, tuple[Change, str]] = {
    "no model": (_without("model/"), "it lacks model/"),
    "no optimizer": (_without("optimizer/"), "it lacks optimizer/"),
    "no method": (_without("method/"), "it lacks method/"),
    "no random state": (_without("random"), "it lacks random/cpu"),
    "no objective sum": (_without("objective_sum"), "it lacks objective_sum"),
    "shape of a weight": (_largest("model/", lambda value: value.flatten()[:1]), "another form of model/"),
    "type of a weight": (_largest("model/", lambda value: value.long()), "another form of model/"),
    "double weight": (_largest("model/", lambda value: value.double()), "another form of model/"),
    "shape of a moment": (_largest("optimizer/", lambda value: torch.zeros(2)), "another form of optimizer/"),
    "half moment": (_largest("optimizer/", lambda value: value.half()), "another form of optimizer/"),
    "objective sum of many": (
        _largest("objective_sum", lambda value: torch.zeros(4, dtype=torch.float64)),
        "another form of objective_sum",
    ),
    "short random state": (_largest("random", lambda value: value[:3]), "random state cannot be restored"),
    "random state of zeros": (_largest("random", lambda value: value * 0), "random state cannot be restored"),
    "more weights": (lambda flat, facts: flat.update({"model/more": torch.zeros(1)}), "no use for model/more"),
    "beyond the end": (_fact("step", 21), "of step 21, beyond the end"),
    "step of text": (_fact("step", "10"), "by another version"),
    "negative step": (_fact("step", -1), "by another version"),
    "half a step": (_fact("step", 9.5), "by another version"),
    "no step": (lambda flat, facts: facts.pop("step") and None, "by another version"),
    "negative seconds": (_fact("seconds", {"training": -1.0}), "by another version"),
    "other code": (_fact("origin", "other"), "by other code or from other data"),
    "other run": (_fact("run_id", "other"), "by other code or from other data"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_left(stopped: RunFolder, undisturbed: RunFolder, name: str) -> None:
    """Whole, with a right checksum, but not this run's."""
    change, message = CHANGES[name]
    checkpoint = Checkpoint.load(stopped.checkpoint)
    assert checkpoint is not None
    flat, facts = flatten(checkpoint.tensors, "/"), dict(checkpoint.facts)
    change(flat, facts)
    Checkpoint(unflatten(flat, "/"), facts).save(stopped.replacing(stopped.checkpoint))
    record, log = go_on(stopped)
    assert record.status == "done"
    assert message in log
    assert "; starting afresh" in log
    assert_same_training(stopped, undisturbed)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"[]", b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\0\0\0\0[]"])
def test_what_is_no_checkpoint(stopped: RunFolder, content: bytes) -> None:
    stopped.checkpoint.write_bytes(content)
    _, log = go_on(stopped)
    assert "the checkpoint is damaged; starting afresh" in log


@pytest.mark.parametrize("facts", ["[]", "1", "[" * 100_000, '{"a": NaN'])
def test_facts_that_are_none(tmp_path: Path, facts: str) -> None:
    header = json.dumps({"__metadata__": {"facts": facts, "sha256": "0"}}).encode()
    (tmp_path / "c").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Unusable, match="is damaged"):
        Checkpoint.load(tmp_path / "c")


def test_a_checkpoint_without_a_checksum_is_an_older_versions(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a/b": torch.ones(2)}, tmp_path / "c", metadata={"facts": '{"step": 3}'})
    checkpoint = Checkpoint.load(tmp_path / "c")
    assert checkpoint is not None
    tensors: Tree = checkpoint.tensors
    assert torch.equal(tensors["a"]["b"], torch.ones(2))


def test_a_method_that_trains_nothing_can_be_killed_before_its_record(tmp_path: Path) -> None:
    """Its optimiser has no moments, of which a file knows nothing."""
    config = small_config("icp", "irm_regression")
    first = run_one(config, Options("cpu", tmp_path))
    folder = RunFolder(tmp_path / config.spec.run_id)
    folder.record.unlink()
    assert run_one(config, Options("cpu", tmp_path)).metrics == first.metrics
    assert "afresh" not in folder.log.read_text()


CURVES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "another number": lambda rows: rows.assign(test_loss=rows["test_loss"] * (1 + 1e-15)),
    "a row less": lambda rows: rows.iloc[1:],
    "none": lambda rows: rows.iloc[:0],
    "a column less": lambda rows: rows.drop(columns="test_loss"),
}


@pytest.mark.parametrize("name", [*CURVES, "garbage"])
def test_curves_that_are_not_those_of_the_checkpoint(stopped: RunFolder, undisturbed: RunFolder, name: str) -> None:
    """Damaged, or of another attempt that got no further than to write them."""
    if name == "garbage":
        stopped.curves.write_bytes(b"PAR1")
    else:
        CURVES[name](pd.read_parquet(stopped.curves)).to_parquet(stopped.curves, index=False)
    _, log = go_on(stopped)
    assert "the curves cannot be read, or are not those of the checkpoint; starting afresh" in log
    assert_same_training(stopped, undisturbed)


def test_curves_that_are_ahead_of_the_checkpoint_do_no_harm(stopped: RunFolder, undisturbed: RunFolder) -> None:
    """They are written first."""
    rows = pd.read_parquet(stopped.curves)
    pd.concat([rows, rows.tail(1).assign(step=STEP + 1, more=3.0)]).to_parquet(stopped.curves, index=False)
    _, log = go_on(stopped)
    assert "afresh" not in log
    assert_same_training(stopped, undisturbed)
