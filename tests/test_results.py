"""Folders of many runs: the index tells what the records tell, and nothing that they do not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import invbench
from invbench.records import Record, RunFolder, run_folders
from invbench.results import INDEX, INDEXED
from invbench.spec import RunSpec, resolve


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return resolve("vrex", "spirals").spec


def leave(out: Path, spec: RunSpec, accuracy: float, **changes: object) -> RunFolder:
    """A finished run's folder."""
    folder = RunFolder(out / spec.run_id)
    folder.create(spec)
    record = Record(
        run_id=spec.run_id, status="done", spec=spec, metrics={"test_accuracy": accuracy}, finished="2026-01-01",
        data={"metric": "test_accuracy", "variant": "v", "fingerprint": f"f{spec.seed}"},
        cost={"wall_seconds": 1.0, "seconds_per_step": 0.1, "peak_memory_bytes": 2.0**20}, code={"sources": "s"},
    )  # fmt: skip
    folder.write_record(record.model_copy(update=changes))
    return folder


@pytest.fixture
def many(tmp_path: Path, spec: RunSpec) -> Path:
    """So many runs that they get an index."""
    for seed in range(INDEXED):
        leave(tmp_path / f"group{seed % 3}", spec.model_copy(update={"seed": seed}), seed / INDEXED)
    return tmp_path


def read(out: Path) -> pd.DataFrame:
    return invbench.load_results(out).sort_values("seed", ignore_index=True)


def test_it_tells_the_same(many: Path) -> None:
    cold = read(many)
    assert (many / INDEX).exists()
    warm = read(many)
    pd.testing.assert_frame_equal(cold, warm)
    assert len(warm) == INDEXED
    assert warm["test_accuracy"].tolist() == [seed / INDEXED for seed in range(INDEXED)]
    assert str(warm["seed"].dtype) == "Int64"
    assert warm["test_accuracy"].dtype == float


def test_it_is_used(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(many)
    monkeypatch.setattr(RunFolder, "read_record", lambda folder: pytest.fail("a record was read"))
    assert len(read(many)) == INDEXED


def test_what_changes_is_seen(many: Path, spec: RunSpec) -> None:
    """Another record, one less, one more, one that cannot be read."""
    read(many)
    first, second, third, *_ = run_folders(many)
    changed = first.read_record()
    assert changed is not None
    first.write_record(changed.model_copy(update={"metrics": {"test_accuracy": 7.0}}))
    shutil.rmtree(second.path)
    third.record.write_text("{")
    leave(many, spec.model_copy(update={"seed": 1000}), 8.0)
    with pytest.warns(UserWarning, match=r"left out: .*record.json is not JSON"):
        found = read(many).set_index("run_id")
    assert len(found) == INDEXED
    assert found.loc[first.path.name, "test_accuracy"] == 7
    assert second.path.name not in found.index
    assert found.loc[third.path.name, "status"] == "unreadable"
    assert found.loc[spec.model_copy(update={"seed": 1000}).run_id, "test_accuracy"] == 8


def truncated(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:100])


def of_other_code(index: Path) -> None:
    table = pd.read_parquet(index)
    table["row"] = b"{}"
    table.to_parquet(index)


@pytest.mark.parametrize("damage", [truncated, of_other_code, Path.unlink])
def test_it_can_always_be_made_again(damage: Callable[[Path], None], many: Path) -> None:
    before = read(many)
    damage(many / INDEX)
    pd.testing.assert_frame_equal(read(many), before)
    pd.testing.assert_frame_equal(read(many), before)


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise PermissionError

    monkeypatch.setattr("invbench.results.pq.write_table", refuse)
    assert len(read(many)) == INDEXED
    assert not list(many.glob("*index*"))
