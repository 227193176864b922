"""What a run leaves behind, and what is made of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cells import small_config

import invbench
from invbench import files
from invbench.errors import RunFailed, Unusable, UserError
from invbench.files import replacing, write_text
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder
from invbench.runs.lease import Owner
from invbench.runs.options import Options
from invbench.runs.record import SCHEMA, Record
from invbench.system.device import forget_peak_memory, peak_memory
from invbench.training.runner import run, run_one


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_a_run_becomes_a_row(out: Path) -> None:
    record = run_one(small_config("and_mask", "spirals", 3), Options(out=out))
    folder = RunFolder(out / record.run_id)
    assert {path.name for path in folder.path.iterdir()} == {
        "spec.yaml", "curves.parquet", "checkpoint.safetensors", "log.txt", "record.json",
    }  # fmt: skip
    assert folder.read_record() == record
    assert folder.read_spec() == record.spec
    row = invbench.load_results(out).iloc[0]
    assert (row["status"], row["method"], row["dataset"], row["seed"]) == ("done", "and_mask", "spirals", 3)
    assert row["method.threshold"] == 1.0
    assert row["test_accuracy"] == record.metrics["test_accuracy"]
    assert row["cost.seconds_per_step"] > 0
    assert record.machine["packages"]["torch"] == torch.__version__.split("+")[0] or record.machine["packages"]["torch"]
    assert record.cost["peak_memory_bytes"] > 1e6
    assert record.data["variant"] == "synthetic"
    curves = invbench.load_curves(out)
    assert curves["step"].tolist() == [2, 4, 6, 8, 10, 12]
    assert {"method", "seed", "objective", "train_accuracy", "state.surviving_fraction"} <= set(curves)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is the process's")
def test_the_peak_of_memory_is_the_run_s_own() -> None:
    device, size = torch.device("cpu"), 300_000_000
    forget_peak_memory(device)
    before = peak_memory(device)
    block = bytearray(size)
    assert peak_memory(device) > before + 0.9 * size
    del block
    assert peak_memory(device) > before + 0.9 * size
    forget_peak_memory(device)
    assert peak_memory(device) < before + 0.5 * size


def test_the_same_run_again_is_not_repeated(out: Path) -> None:
    first = run_one(small_config("erm", "spirals"), Options(out=out))
    assert run_one(small_config("erm", "spirals"), Options(out=out)) == first


def test_a_record_of_an_older_version_is_migrated(out: Path) -> None:
    record = run_one(small_config("erm", "spirals"), Options(out=out))
    folder = RunFolder(out / record.run_id)
    older = json.loads(folder.record.read_text()) | {"schema_version": 1}
    del older["best_validation"]
    folder.record.write_text(json.dumps(older))
    assert folder.read_record() == record.model_copy(update={"best_validation": None})
    assert invbench.load_results(out)["status"].tolist() == ["done"]


def test_a_record_of_a_newer_version_is_not_taken_for_none(out: Path) -> None:
    record = run_one(small_config("erm", "spirals"), Options(out=out))
    folder = RunFolder(out / record.run_id)
    newer = json.dumps(json.loads(folder.record.read_text()) | {"schema_version": SCHEMA + 1, "what": "is new"})
    folder.record.write_text(newer)
    with pytest.raises(UserError, match=r"written by a newer invbench \(records of version 3; this one knows up to 2"):
        run_one(small_config("erm", "spirals"), Options(out=out))
    row = invbench.load_results(out).iloc[0]
    assert (row["status"], row["method"], row["seed"]) == ("unreadable", "erm", 0)
    assert "written by a newer invbench" in row["message"]
    assert folder.record.read_text() == newer


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"schema_version": 1}', '{"schema_version": "x"}'])
def test_a_damaged_record_is_none(out: Path, text: str) -> None:
    record = run_one(small_config("erm", "spirals"), Options(out=out))
    folder = RunFolder(out / record.run_id)
    folder.record.write_text(text)
    assert folder.read_record() is None


def test_a_record_of_other_code_is_made_anew_and_kept(out: Path) -> None:
    first = run_one(small_config("erm", "spirals"), Options(out=out))
    folder = RunFolder(out / first.run_id)
    data = json.loads(folder.record.read_text())
    data["code"]["sources"] = "older"
    folder.record.write_text(json.dumps(data))
    assert folder.status("newer") == "stale"
    again = run_one(small_config("erm", "spirals"), Options(out=out))
    assert again.metrics == first.metrics
    assert again.code["sources"] == first.code["sources"]
    assert json.loads((folder.path / "record.previous.json").read_text())["code"]["sources"] == "older"


def test_a_record_of_other_data_is_not_believed(tmp_path: Path) -> None:
    """A table that has changed since is another problem under the same name; one that is gone leaves the record."""
    path, settings = tmp_path / "events.csv", {"dataset.nuisance": ["mass"], "trainer.steps": 3}
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["mass", "a", "b"])
    frame["_label"] = np.arange(60) % 2

    def again() -> Record:
        sizes = {"dataset.table": str(path), "trainer.batch_size": 10, "backbone.width": 4}
        return run("erm", "tabular_nuisance", settings=settings | sizes, out=tmp_path / "runs")

    frame.to_csv(path, index=False)
    first = again()
    assert again() == first
    frame.assign(mass=frame.mass + 1).to_csv(path, index=False)
    second = again()
    assert second.run_id == first.run_id
    assert second.data["fingerprint"] != first.data["fingerprint"]
    assert again() == second
    path.unlink()
    assert again() == second


def test_code_is_what_was_imported_not_what_is_on_disk(tmp_path: Path) -> None:
    """Editing a file while seeds run must not credit the new code with the old code's numbers."""
    source = "from invbench.core.method import Method\nclass Mine(Method):\n    pass\n"
    path = tmp_path / "mine_on_disk.py"
    path.write_text(source)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom mine_on_disk import Mine\nfrom invbench.system.provenance import sources_hash\n"
        "first = sources_hash(Mine)\nPath(sys.argv[1], 'mine_on_disk.py').write_text('# edited')\n"
        "assert sources_hash(Mine) == first\nprint(first)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    hashes = []
    for text in (source, source, source + "# another\n"):
        path.write_text(text)
        hashes.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert hashes[0] == hashes[1] != hashes[2]


def test_python_api(out: Path) -> None:
    settings = {"trainer.steps": 2, "dataset.examples": 300, "backbone.width": 4, "dataset.environments": 2}
    record = invbench.run("and_mask", "spirals", seed=1, settings=settings, out=out)
    assert record.status == "done"
    assert record.spec.trainer["steps"] == 2


def test_divergence_is_a_failed_run(out: Path) -> None:
    config = small_config("erm", "spirals", trainer__learning_rate=1e30, trainer__optimizer="sgd", trainer__steps=60)
    with pytest.raises(RunFailed, match="diverged") as error:
        run_one(config, Options(out=out))
    assert error.value.kind == "diverged"
    folder = RunFolder(out / config.spec.run_id)
    record = folder.read_record()
    assert record is not None
    assert (record.status, record.kind, record.metrics) == ("failed", "diverged", {})
    assert record.engine["steps"] < 60, "stopped early"
    assert "a smaller learning rate may help" in (record.message or "")
    row = invbench.load_results(out).iloc[0]
    assert (row["status"], row["kind"]) == ("failed", "diverged")
    with pytest.raises(UserError, match="no finished run"):
        invbench.table(invbench.load_results(out))


def test_an_exception_is_a_failed_run_with_its_traceback(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("inside the step")

    monkeypatch.setattr("invbench.training.loop.TrainingLoop.step", broken)
    config = small_config("erm", "spirals")
    with pytest.raises(RunFailed, match="inside the step"):
        run_one(config, Options(out=out))
    record = RunFolder(out / config.spec.run_id).read_record()
    assert record is not None
    assert (record.kind, "ZeroDivisionError" in (record.traceback or "")) == ("error", True)
    monkeypatch.undo()
    assert run_one(config, Options(out=out)).status == "done", "a failed run may be tried again"


def test_a_mistake_leaves_nothing(out: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 999"):
        run_one(small_config("erm", "spirals", trainer__batch_size=999), Options(out=out))
    with pytest.raises(UserError, match="no split 'tset'; there are train, validation, test"):
        run_one(small_config("erm", "spirals", trainer__evaluate_splits=["tset"]), Options(out=out))
    assert list(out.iterdir()) == []


def test_chosen_splits_are_watched_and_the_last_step_measures_all(out: Path) -> None:
    record = run_one(
        small_config("erm", "spirals", trainer__evaluate_splits=["validation"], trainer__evaluate_every=5),
        Options(out=out),
    )
    curves = invbench.load_curves(out)
    assert curves["step"].tolist() == [5, 10, 12]
    assert curves["test_accuracy"].notna().tolist() == [False, False, True]
    assert curves["validation_accuracy"].notna().all()
    assert {"train_accuracy", "validation_accuracy", "test_accuracy"} <= set(record.metrics)


def test_looking_more_often_changes_nothing(out: Path) -> None:
    """Evaluation draws nothing from the streams of training."""
    records = [
        run_one(small_config("erm", "digits", trainer__evaluate_every=every), Options(out=out)) for every in (1, 12)
    ]
    assert records[0].metrics == records[1].metrics


def test_methods_of_one_seed_share_data_initialisation_and_order(out: Path) -> None:
    """With threshold 0 the mask is ERM: the same data, weights and batches must give the same run."""
    settings = {"method__threshold": 0.0, "trainer__dtype": "float64"}
    mask = run_one(small_config("and_mask", "spirals", **settings), Options(out=out))
    erm = run_one(small_config("erm", "spirals", trainer__dtype="float64"), Options(out=out))
    assert mask.data["fingerprint"] == erm.data["fingerprint"]
    assert mask.metrics["train_loss"] == pytest.approx(erm.metrics["train_loss"], rel=1e-9)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk"), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems; what was written is in its place."""
    sync = files._sync

    def odd(path: Path) -> None:
        if path.is_dir():
            raise OSError(22, "Invalid argument")
        sync(path)

    monkeypatch.setattr(files, "_sync", odd)
    record = run_one(small_config("erm", "spirals"), Options("cpu", tmp_path))
    assert RunFolder(tmp_path / record.run_id).read_record() == record


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 64, b"\x00" * 7, b"null", b"[]"])
def test_damaged_files_are_never_taken_for_results(out: Path, damage: bytes) -> None:
    record = run_one(small_config("erm", "spirals"), Options(out=out))
    folder = RunFolder(out / record.run_id)
    folder.record.write_bytes(damage)
    folder.checkpoint.write_bytes(damage)
    assert folder.read_record() is None
    with pytest.raises(Unusable):
        Checkpoint.load(folder.checkpoint)
    assert folder.status() == "lost"
    assert invbench.load_results(out).iloc[0]["status"] == "unreadable"
    assert run_one(small_config("erm", "spirals"), Options(out=out)).metrics == record.metrics


def test_statuses(out: Path) -> None:
    config = small_config("erm", "spirals")
    folder = RunFolder(out / config.spec.run_id)
    assert folder.create(config.spec) is True
    assert folder.create(config.spec) is False
    assert folder.status() == "queued"
    here = Owner.this_process()
    write_text(folder.lease_file, here.model_dump_json())
    assert folder.status() == "running"
    write_text(folder.lease_file, here.model_copy(update={"pid": 2**22 + 1}).model_dump_json())
    assert folder.status() == "lost"


def test_a_claimed_run_is_left_alone(out: Path) -> None:
    config = small_config("erm", "spirals")
    folder = RunFolder(out / config.spec.run_id)
    folder.create(config.spec)
    with folder.hold(), pytest.raises(UserError, match=f"worked on by process {os.getpid()} on"):
        run_one(config, Options(out=out))
    assert folder.spec.exists(), "the loser must not tidy up the winner's folder"
    assert run_one(config, Options(out=out)).status == "done"


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    tensors = {"a": {"b.c": torch.randn(2, 3), "d": {"e": torch.tensor(4)}}, "f": torch.zeros(0)}
    Checkpoint(tensors, {"step": 3, "why": "über"}).save(replacing(tmp_path / "c"))
    checkpoint = Checkpoint.load(tmp_path / "c")
    assert checkpoint is not None
    assert checkpoint.facts == {"step": 3, "why": "über"}
    assert torch.equal(checkpoint.tensors["a"]["b.c"], tensors["a"]["b.c"])  # type: ignore[index]
    assert checkpoint.tensors["a"]["d"]["e"].shape == ()
