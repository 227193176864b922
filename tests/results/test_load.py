"""Folders of many runs: the index tells what the records tell, and nothing that they do not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Bench
from faulty import FaultySweep

import invbench
from invbench.errors import UserError
from invbench.results.load import INDEX, INDEXED, meeting
from invbench.results.table import completeness, omitted
from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.record import Record
from invbench.runs.resolve import resolve
from invbench.runs.spec import RunSpec


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return resolve("vrex", "spirals").spec


def leave(out: Path, spec: RunSpec, accuracy: float, **changes: object) -> RunFolder:
    """Write the folder of a finished run."""
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
    """Write so many runs that they get an index."""
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
        runs = read(many).set_index("run_id")
    assert len(runs) == INDEXED
    assert runs.loc[first.path.name, "test_accuracy"] == 7
    assert second.path.name not in runs.index
    assert runs.loc[third.path.name, "status"] == "unreadable"
    assert runs.loc[spec.model_copy(update={"seed": 1000}).run_id, "test_accuracy"] == 8


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

    monkeypatch.setattr("invbench.results.load.pq.write_table", refuse)
    assert len(read(many)) == INDEXED
    assert not list(many.glob("*index*"))


def test_links_to_runs_are_read(tmp_path: Path, spec: RunSpec) -> None:
    """Those to other folders may lead back, and are not followed; a run that is met twice counts once."""
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    run = leave(elsewhere, spec, 0.5)
    (here / "group").mkdir(parents=True)
    (here / "group" / run.path.name).symlink_to(run.path)
    assert [folder.path for folder in run_folders(here)] == [here / "group" / run.path.name]
    (here / "group" / "back").symlink_to(here)
    (here / "nowhere").symlink_to("not/there")
    (here / "loop").symlink_to("loop")
    leave(here, spec.model_copy(update={"seed": 1}), 0.7)
    (run.path / "itself").symlink_to(run.path)
    assert len(run_folders(here)) == 2
    (scores,) = invbench.table(invbench.load_results([here, elsewhere]))["seeds"]
    assert scores == {0: 0.5, 1: 0.7}


def test_who_was_stopped_is_interrupted_and_who_died_is_lost(tmp_path: Path, spec: RunSpec) -> None:
    """A run that ends in order gives its claim up."""
    folder = RunFolder(tmp_path / spec.run_id)
    folder.create(spec)
    assert invbench.load_results(tmp_path)["status"].tolist() == ["queued"]
    with folder.hold():
        folder.checkpoint.touch()
        assert invbench.load_results(tmp_path)["status"].tolist() == ["running"]
        claim = folder.lease_file.read_text()
    assert invbench.load_results(tmp_path)["status"].tolist() == ["interrupted"]
    folder.lease_file.write_text(claim.replace(f'"pid":{os.getpid()}', '"pid":2147483647'))
    assert invbench.load_results(tmp_path)["status"].tolist() == ["lost"]


def test_conditions(tmp_path: Path, spec: RunSpec) -> None:
    for seed in range(3):
        leave(tmp_path, spec.model_copy(update={"seed": seed}), seed / 2)
    runs = invbench.load_results(tmp_path)
    weight = next(str(name) for name in runs if str(name).startswith("method."))
    value = runs[weight].iloc[0]
    for conditions, count in (
        ([], 3), (["dataset=spirals"], 3), (["seed=01"], 1), (["dataset=spirals", "test_accuracy=1"], 1),
        (["status=done", f"{weight}={value}"], 3), (["kind="], 3), (["trainer.compile=false"], 3),
    ):  # fmt: skip
        assert len(meeting(runs, conditions)) == count, conditions
    for condition, message in (
        ("datset=spirals", "no column 'datset'; did you mean 'dataset'"),
        ("dataset=spiral", "no run has it; did you mean 'spirals'"), ("dataset", "write COLUMN=VALUE"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            meeting(runs, [condition])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no run left has it; known: 0"):
        meeting(runs, ["seed=0", "seed=1"])


def test_the_commands_take_conditions(tmp_path: Path, spec: RunSpec, bench: Bench) -> None:
    """And a table is one JSON document, or has the digits that are asked for."""
    for seed, accuracy in enumerate((0.81, 0.8234567)):
        leave(tmp_path / "results", spec.model_copy(update={"seed": seed}), accuracy)
    out = str(tmp_path / "results")
    status, said, _ = bench("table", out, "--where", "seed=1", "--json")
    (row,) = json.loads(said)
    assert (status, row["mean"], row["half_width"], row["seeds"]) == (0, 0.8234567, None, {"1": 0.8234567})
    assert "81.7 ± 8.5 (2)" in bench("table", out, "--percent", "--digits", "1")[1]
    assert r"test accuracy (\%)" in bench("table", out, "--percent", "--format", "latex")[1].lower()
    assert r"\label{tab:oracle}" in bench("table", out, "--format", "latex", "--label", "tab:oracle")[1]
    assert bench("table", out, "--format", "latex", "--label", "tab:}")[0] == 2
    for more in (("--json", "--format", "csv"), ("--digits", "2", "--format", "csv"), ("--percent", "--json")):
        status, said, error = bench("table", out, *more)
        assert (status, said, error.count("\n")) == (2, "", 1)
    picture, page = tmp_path / "cost.png", tmp_path / "report.html"
    for command in (("plot", "cost", out, "--out", str(picture)), ("report", out, "--out", str(page))):
        assert bench(*command, "--where", "seed=1")[0] == 0
        assert "no run has it; known: 0, 1" in bench(*command, "--where", "seed=9")[2]
    for option in (("--select", "oracle"), ("--metric", "test_accuracy")):
        status, _, error = bench("plot", "tradeoff", out, *option)
        assert (status, error.count("\n")) == (2, 1)
        assert f"{option[0]} changes nothing in tradeoff; it is for curves," in error
    assert picture.exists()
    assert "1 runs: 1 done" in page.read_text(encoding="utf-8")


def test_a_record_in_a_notebook(tmp_path: Path, spec: RunSpec) -> None:
    record = leave(tmp_path, spec, 0.98765).read_record()
    assert str(record) == repr(record) == "Record(vrex on spirals, seed 0: done, test_accuracy 0.9877, time 1 s)"
    assert record is not None
    assert '<th scope="row">test_accuracy</th><td>0.9877</td>' in record._repr_html_()
    failed = Record.of_failure(spec, "oom", "<b>\x1b no room")
    assert repr(failed) == "Record(vrex on spirals, seed 0: failed (oom))"
    assert r"&lt;b&gt;\x1b no room" in failed._repr_html_()


def test_a_sweep_and_its_table_count_alike(faulty_sweep: FaultySweep) -> None:
    """One of three runs fails."""
    status, said = faulty_sweep.run(faulty_sweep.file(["none", "raise", "none"]))
    assert status == 1, said
    runs = invbench.load_results(faulty_sweep.out)
    (line,) = completeness(runs)
    assert line == "2 of 3 runs done, 1 failed"
    assert f"\n{line} (--rerun failed): `bench table {faulty_sweep.out}`\n" in said
    assert omitted(runs) == {"failed (error)": 1}
