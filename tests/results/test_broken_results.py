"""A run whose files are broken is named and left out; nothing else is lost, and nothing is read without a bound."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cells import SMALL
from conftest import Bench
from fuzz_results import VICTIM, config, edited, put, replaced_by_folder, runs, unfinished, whole, written
from fuzz_results import Damage as Change
from safetensors.torch import load_file, save_file

import invbench
from invbench.errors import UserError
from invbench.published.claims import claims_of
from invbench.published.verdicts import against_published, sweep_of
from invbench.pytree import unflatten
from invbench.reporting import nuisance_figures, result_figures
from invbench.reporting import run_figures as figures
from invbench.reporting.page import report
from invbench.results.comparison import compare
from invbench.results.layout import laid_out
from invbench.results.load import INDEX, finished, load_made_by
from invbench.results.table import omitted
from invbench.runs.curves import read_curves
from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.options import Options
from invbench.runs.record import Newer, Record, Unreadable
from invbench.sweeps.definition import Sweep, SweepCells
from invbench.sweeps.folder import CostEstimator, announce_changes
from invbench.sweeps.rerun_best import sweep_of_best
from invbench.training.restored import load_run
from invbench.training.runner import run_one

LEFT_OUT = "left out: "


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Copy two runs of erm and two of vrex, all done."""
    shutil.copytree(runs(), tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def victim(out: Path) -> RunFolder:
    """Return the run that is damaged."""
    return RunFolder(out / VICTIM)


BROKEN: dict[str, tuple[Change, str]] = {
    "not JSON": (written("record.json", "{"), "is not JSON"),
    "deep": (written("record.json", "[" * 100_000), "is not JSON"),
    "not UTF-8": (written("record.json", b"\xff\xfe{}"), "is not JSON"),
    "large": (written("record.json", b" " * (2**24 + 1)), "larger than 16 MiB"),
    "folder": (replaced_by_folder("record.json"), "is not a file"),
    "list": (written("record.json", "[]"), "is not the record of a run"),
    "version text": (put("schema_version", value="2"), "is not the record of a run"),
    "version huge": (put("schema_version", value=10**30), "is not the record of a run"),
    "newer": (put("schema_version", value=3), "written by a newer invbench"),
    "no code": (put("code", value={}), "nothing tells its code"),
    "no data": (put("data", value={}), "nothing tells its data"),
    "no cost": (put("cost", value={}), "nothing tells its cost"),
    "no metrics": (put("metrics", value={}), "nothing tells its metrics"),
    "some costs": (put("cost", value={"wall_seconds": 1.0}), "cost: seconds_per_step"),
    "metric list": (put("data", "metric", value=[1]), "data: metric"),
    "fingerprint null": (put("data", "fingerprint", value=None), "data: fingerprint"),
    "direction text": (put("data", "higher_is_better", value="yes"), "data: higher_is_better"),
    "sources number": (put("code", "sources", value=1), "code: sources"),
    "steps text": (put("engine", "steps", value="x"), "engine: steps"),
    "named method": (put("metrics", "method", value=1.0), "no metric can be called 'method'"),
    "named run_id": (put("metrics", "run_id", value=1.0), "no metric can be called 'run_id'"),
    "named data.metric": (put("metrics", "data.metric", value=1.0), "no metric can be called 'data.metric'"),
    "named cost.x": (put("metrics", "cost.x", value=1.0), "no metric can be called 'cost.x'"),
    "without a name": (put("metrics", "", value=1.0), "metrics"),
    "nan": (put("metrics", "test_accuracy", value=float("nan")), "metrics.test_accuracy"),
    "infinity": (put("metrics", "test_accuracy", value=float("inf")), "metrics.test_accuracy"),
    "null": (put("metrics", "test_accuracy", value=None), "metrics.test_accuracy"),
    "huge": (put("spec", "trainer", "steps", value=10**400), "trainer.steps has a number"),
    "setting nan": (put("spec", "trainer", "learning_rate", value=float("nan")), "trainer.learning_rate has a number"),
    "setting of two lines": (put("spec", "trainer", "a\nb", value=1), "no setting is called"),
    "generators list": (put("invariance", value={"generators": [1]}), "invariance: generators"),
    "generator empty": (put("invariance", value={"generators": {"rotation": {}}}), "invariance: generators.rotation"),
    "lengths": (
        put("invariance", value={"generators": {"rotation": {"magnitudes": [0.0, 1.0], "changes": [1.0]}}}),
        "2 magnitudes, and 1 changes",
    ),
    "no generators": (put("invariance", value={"quarter_turns": 1.0}), "invariance: generators"),
    "step negative": (put("best_validation", "step", value=-5), "best_validation.step"),
    "method list": (put("spec", "method", value=["a"]), "spec.method"),
}


@pytest.mark.parametrize(("damage", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_record_costs_one_run(out: Path, victim: RunFolder, damage: Change, why: str) -> None:
    damage(victim.path)
    with pytest.warns(UserWarning, match=LEFT_OUT) as warned:
        runs = invbench.load_results(out).set_index("run_id")
    assert [why in str(one.message) for one in warned] == [True]
    assert why in str(runs.loc[VICTIM, "message"])
    assert runs["status"].value_counts().to_dict() == {"done": 3, "unreadable": 1}
    assert [runs.loc[VICTIM, name] for name in ("method", "dataset", "seed")] == ["vrex", "spirals", 0]
    means = invbench.table(runs.reset_index()).set_index("method")
    assert means["n"].to_dict() == {"erm": 2, "vrex": 1}
    assert means["runs"].to_dict() == {"erm": 2, "vrex": 2}
    assert omitted(runs.reset_index()) == {"unreadable": 1}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(BROKEN["no data"][0], id="no data", marks=pytest.mark.slow),
        pytest.param(BROKEN["newer"][0], id="newer"),
    ],
)
def test_every_reader_leaves_it_out(out: Path, victim: RunFolder, damage: Change) -> None:
    damage(victim.path)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert len(finished([out])) == 3
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert invbench.load_curves(out)["run_id"].nunique() == 3
    code = str(finished([runs()])[0][1].code["sources"])
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert len(load_made_by(out, code)) == 3
    with pytest.warns(UserWarning, match=LEFT_OUT):
        results = invbench.load_results(out)
    assert compare(results, results)["n"].sum() == 3
    assert len(result_figures.curves(invbench.table(results), results).axes) == 1
    assert len(sweep_of_best(results, None, "best_validation").cells) == 2
    assert set(against_published(results)["verdict"]) <= {"not yet run", "different protocol"}
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert len(figures.revived([out])) == 3


def test_where_nothing_else_is_there_the_error_says_why(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(runs() / VICTIM, tmp_path / "results" / VICTIM)
    (tmp_path / "results" / VICTIM / "record.json").write_text("{")
    for verb in (["table"], ["plot", "profile"], ["analyze", "spectrum", f"results/{VICTIM}"]):
        status, _, said = bench(*verb)
        assert (status, said.count("\n")) == (2, 1)
        assert "no finished run in" in said


def test_many_are_counted(tmp_path: Path) -> None:
    shutil.copytree(runs(), tmp_path / "runs")
    for number in range(8):
        (tmp_path / f"broken{number}").mkdir()
        (tmp_path / f"broken{number}" / "record.json").write_text("{")
    with pytest.warns(UserWarning, match=LEFT_OUT) as warned:
        loaded = invbench.load_results(tmp_path)
    assert loaded["status"].value_counts().to_dict() == {"unreadable": 8, "done": 4}
    assert len(warned) == 6
    assert "3 more runs" in str(warned[-1].message)


def test_a_warning_of_the_command_is_one_line(bench: Bench, out: Path) -> None:
    (out / "copy\n\x1b").mkdir()
    (out / "copy\n\x1b" / "spec.yaml").write_text("[1]")
    with pytest.warns(UserWarning) as warned:
        status, output, _ = bench("table")
    assert status == 0
    assert "not in the table: 1 unreadable" in output
    assert [str(one.message).count("\n") + str(one.message).count("\x1b") for one in warned] == [0]


# --- specifications --------------------------------------------------------------------------------------------------


def bomb() -> str:
    """Return ten lines that stand for three billion words."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines)


SPECIFICATIONS: dict[str, str | bytes] = {
    "not UTF-8": b"\xff\xfe\x00", "list": "[1]", "open": "[" * 5000, "deep": "a: " + "[" * 900 + "]" * 900,
    "tag": "!!python/object/apply:os.system [id]", "control": "a: \x01", "int": "seed: !!int abc",
    "date": "seed: 2020-13-45", "timestamp": "seed: !!timestamp x", "bool": "seed: !!bool abc",
    "recursive": "&a {method: *a}", "no anchor": "method: *x", "digits": f"seed: {'9' * 5000}", "bomb": bomb(),
    "large": b"x" * (2**24 + 1),
}  # fmt: skip


@pytest.mark.parametrize("text", SPECIFICATIONS.values(), ids=SPECIFICATIONS)
def test_a_broken_specification(out: Path, victim: RunFolder, text: str | bytes) -> None:
    """The record has all that it says; only a run without one is lost with it."""
    written("spec.yaml", text)(victim.path)
    assert victim.read_spec() is None
    assert invbench.load_results(out)["status"].tolist() == ["done"] * 4
    assert invbench.load_curves(out)["run_id"].nunique() == 4
    assert len(sweep_of_best(invbench.load_results(out), None, "best_validation").cells) == 2
    victim.record.unlink()
    with pytest.warns(UserWarning, match=LEFT_OUT):
        runs = invbench.load_results(out).set_index("run_id")
    assert runs.loc[VICTIM, "status"] == "unreadable"
    assert "spec.yaml" in str(runs.loc[VICTIM, "message"])
    assert (runs["status"] == "done").sum() == 3


def test_a_specification_is_what_was_written(tmp_path: Path) -> None:
    spec = config("vrex", 3).spec
    odd = spec.model_copy(
        update={"trainer": spec.trainer | {"a": "1e-3", "b": "yes", "c": [1.5, None, "é\n"], "d": {}}}
    )
    RunFolder(tmp_path).create(odd)
    assert RunFolder(tmp_path).load_spec() == odd


def test_a_sweep_leaves_a_newer_record_and_carries_out_the_others(tmp_path: Path, bench: Bench) -> None:
    settings = ", ".join(f"{name}: {value}" for name, value in (SMALL["spirals"] | {"trainer.steps": 3}).items())
    (tmp_path / "s.yaml").write_text(f"seeds: 0-1\nset: {{{settings}}}\ncells: [{{method: erm, dataset: spirals}}]\n")
    assert bench("sweep", "s.yaml", "--workers", "1", "--out", "r")[0] == 0
    first, second = run_folders(tmp_path / "r")
    newer = json.dumps(json.loads(first.record.read_text()) | {"schema_version": 99})
    first.record.write_text(newer)
    second.record.unlink()
    status, _, said = bench("sweep", "s.yaml", "--workers", "1", "--out", "r")
    assert (status, "1 made by a newer invbench" in said) == (0, True), said
    assert second.read_record() is not None
    assert first.record.read_text() == newer


def test_a_number_to_base_60_is_not_computed(victim: RunFolder) -> None:
    """It takes a time that grows with the square of its length."""
    victim.spec.write_text("seed: 1" + ":1" * 200_000)
    with pytest.raises(Unreadable, match="a value of more than"):
        victim.load_spec()


def test_a_pipe_is_not_waited_for(victim: RunFolder) -> None:
    for path in (victim.spec, victim.record, victim.curves):
        path.unlink()
        os.mkfifo(path)
    assert victim.read_spec() is None
    assert victim.read_record() is None
    assert read_curves(victim.curves) is None


def test_a_record_alone_is_a_run(out: Path, victim: RunFolder) -> None:
    victim.spec.unlink()
    assert invbench.load_results(out)["status"].tolist() == ["done"] * 4


def test_folders_within_folders(out: Path) -> None:
    deep = out
    for _ in range(600):
        deep = deep / "d"
        deep.mkdir()
    (out / "loop").symlink_to("..")
    assert len(run_folders(out)) == 4


def test_names_that_no_run_has(out: Path, victim: RunFolder) -> None:
    victim.path.rename(victim.path.with_name(os.fsdecode(b"\xff\xfe")))
    with pytest.warns(UserWarning, match=r"\\udcff\\udcfe is no name"):
        runs = invbench.load_results(out)
    assert runs["status"].value_counts().to_dict() == {"done": 3, "unreadable": 1}
    assert set(runs["run_id"]) >= {r"\udcff\udcfe"}


# --- records as they are made ----------------------------------------------------------------------------------------


def test_messages_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    record = Record.of_failure(config("erm", 0).spec, "input_output", "no file \udcff\udcfe")
    RunFolder(tmp_path).write_record(record)
    assert RunFolder(tmp_path).read_record() == record
    assert record.message == r"no file \udcff\udcfe"


def test_the_run_itself_refuses_a_newer_record(out: Path, victim: RunFolder) -> None:
    put("schema_version", value=3)(victim.path)
    before = victim.record.read_bytes()
    with pytest.raises(Newer, match="update invbench"):
        run_one(config("vrex", 0), Options(device="cpu", out=out))
    assert victim.status() == "newer"
    assert victim.record.read_bytes() == before


def test_parts_that_older_versions_did_not_write(out: Path, victim: RunFolder) -> None:
    def older(record: dict[str, dict[str, object]]) -> None:
        del record["data"]["primary"], record["data"]["higher_is_better"], record["best_validation"]
        record.update(schema_version=1, engine={}, machine={})  # type: ignore[call-overload]

    edited(older)(victim.path)
    runs = invbench.load_results(out)
    assert runs["status"].tolist() == ["done"] * 4
    assert invbench.table(runs)["n"].tolist() == [2, 2]


# --- the index -------------------------------------------------------------------------------------------------------


def forged(out: Path, rows: list[object], metadata: dict[str, str]) -> None:
    """Write an index with forged rows on the victim."""
    stat = (out / VICTIM / "record.json").stat()
    mark = f"{stat.st_mtime_ns} {stat.st_size} {stat.st_ino}"
    table = pa.table({"path": [VICTIM] * len(rows), "mark": [mark] * len(rows), "row": rows})
    pq.write_table(table.replace_schema_metadata(metadata), out / INDEX)


@pytest.mark.parametrize("row", [b"xx", b"[]", None, b"{}", "{}", b'{"status": "done"}', b"[" * 10_000])
@pytest.mark.parametrize("kind", ["sources", "checksum"])
def test_rows_that_were_never_written_are_not_believed(out: Path, row: object, kind: str) -> None:
    from invbench.system.provenance import sources_hash

    before = invbench.load_results(out)
    forged(out, [row], {kind: sources_hash()})
    pd.testing.assert_frame_equal(invbench.load_results(out), before)


def test_an_index_that_is_none(out: Path) -> None:
    before = invbench.load_results(out)
    pq.write_table(pa.table({"path": ["a"]}).replace_schema_metadata({b"checksum": b"\xff\xfe"}), out / INDEX)
    pd.testing.assert_frame_equal(invbench.load_results(out), before)
    (out / INDEX).unlink()
    (out / INDEX).mkdir()
    pq.write_table(pa.table({"path": ["a"], "mark": ["b"], "row": [b"{}"]}), out / INDEX / "part.parquet")
    pd.testing.assert_frame_equal(invbench.load_results(out), before)


def test_a_changed_byte_of_a_row(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invbench.results.load.INDEXED", 1)
    before = invbench.load_results(out)
    table = pq.read_table(out / INDEX)
    rows = [row.replace(b'"done"', b'"lost"') for row in table.column("row").to_pylist()]
    changed = table.set_column(2, "row", pa.array(rows)).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, out / INDEX)
    pd.testing.assert_frame_equal(invbench.load_results(out), before)


# --- curves ----------------------------------------------------------------------------------------------------------


CURVES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "without step": lambda rows: rows.drop(columns="step"),
    "text as step": lambda rows: rows.assign(step="a"),
    "nan as step": lambda rows: rows.assign(step=float("nan")),
    "text": lambda rows: rows.assign(test_accuracy="a"),
    "lists": lambda rows: rows.assign(test_accuracy=pd.Series([[1]] * len(rows))),
    "method": lambda rows: rows.assign(method=1.0),
    "run": lambda rows: rows.assign(run_id=1.0),
}


@pytest.mark.parametrize("change", CURVES.values(), ids=CURVES)
def test_curves_that_are_none(out: Path, victim: RunFolder, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(victim.curves)).to_parquet(victim.curves)
    assert read_curves(victim.curves) is None
    with pytest.warns(UserWarning, match=r"curves.parquet cannot be understood"):
        assert invbench.load_curves(out)["run_id"].nunique() == 3
    results = invbench.load_results(out)
    with pytest.warns(UserWarning, match=r"curves.parquet cannot be understood"):
        assert len(result_figures.curves(invbench.table(results), results).axes[0].lines) == 3, "two, and a level"
    with pytest.warns(UserWarning, match=r"curves.parquet cannot be understood"):
        page = report([out])
    assert f'"{out.name}/{VICTIM}/curves.parquet cannot be understood"' in page


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"x" * 1000, b"cut"])
def test_files_of_curves_that_are_damaged(victim: RunFolder, content: bytes) -> None:
    victim.curves.write_bytes(whole("curves.parquet")[:-100] if content == b"cut" else content)
    assert read_curves(victim.curves) is None


def test_curves_with_steps_twice_and_infinities_are_drawn(out: Path, victim: RunFolder) -> None:
    rows = pd.read_parquet(victim.curves)
    rows.loc[1, "test_accuracy"] = np.inf
    pd.concat([rows, rows]).to_parquet(victim.curves)
    results = invbench.load_results(out)
    figure = result_figures.curves(invbench.table(results), results)
    lengths = {str(line.get_label()).partition(" ")[0]: np.size(line.get_xdata()) for line in figure.axes[0].lines}
    assert lengths == {"ERM": len(rows), "V-REx": len(rows) - 1, "constant": 2}
    assert len(result_figures.curves(invbench.table(results), results, "step").axes) == 1


def test_a_folder_as_curves(victim: RunFolder) -> None:
    rows = pd.read_parquet(victim.curves)
    replaced_by_folder("curves.parquet")(victim.path)
    rows.to_parquet(victim.curves / "part.parquet")
    assert read_curves(victim.curves) is None


# --- tables, comparisons, selections ---------------------------------------------------------------------------------


def test_a_setting_that_some_records_lack(bench: Bench, out: Path) -> None:
    """As older versions' do: it is not there, and so another one than any value."""
    for folder in run_folders(out):
        record = folder.read_record()
        assert record is not None
        if record.spec.seed == 1:
            edited(lambda content: content["spec"]["trainer"].pop("floor"))(folder.path)
    results = invbench.load_results(out)
    means = invbench.table(results)
    assert means["n"].tolist() == [1] * 4
    assert len(laid_out(means).rows) == 4
    with pytest.raises(UserError, match=r"runs with trainer.floor (0 and unset|unset and 0) are not averaged"):
        laid_out(means, rows=["method"], columns=["dataset"])
    assert compare(results, results)["n"].tolist() == [1] * 4
    for verb in (["table"], ["table", "--format", "csv"], ["compare", "results", "results"]):
        assert bench(*verb)[0] == 0
    assert bench("table", "--rows", "method", "--columns", "dataset")[0] == 2


@pytest.mark.parametrize("name", ["trainer.new", "dataset.new", "backbone.new", "method.new"])
@pytest.mark.parametrize("value", [0.0, "", "a", [1]])
def test_what_is_missing_is_no_value(name: str, value: object) -> None:
    row = {
        "status": "done", "method": "erm", "dataset": "spirals", "backbone": "mlp", "protocol": "last",
        "data.metric": "test_accuracy", "cost.seconds_per_step": 0.1,
    }  # fmt: skip
    rows = pd.DataFrame([row | {"seed": 0, "test_accuracy": 0.5, name: value}, row | {"seed": 1, "test_accuracy": 0.7}])
    means = invbench.table(rows)
    assert means["n"].tolist() == [1, 1]
    assert name in means
    laid_out(means)


def test_a_setting_of_another_method_is_no_difference(out: Path) -> None:
    means = invbench.table(invbench.load_results(out))
    assert "method.weight" not in means
    assert means["n"].tolist() == [2, 2]


def test_a_copy_of_a_run_counts_once(out: Path, victim: RunFolder) -> None:
    before = invbench.table(invbench.load_results(out))
    shutil.copytree(victim.path, out / "a copy")
    results = invbench.load_results(out)
    after = invbench.table(results)
    pd.testing.assert_frame_equal(after.drop(columns="run_ids"), before.drop(columns="run_ids"))
    assert compare(results, results)["n"].tolist() == [2, 2]


def test_metrics_that_are_no_numbers(out: Path) -> None:
    results = invbench.load_results(out)
    for name in ("method", "data.fingerprint", "status"):
        with pytest.raises(UserError, match="none of the runs"):
            compare(results, results, name)
    with pytest.raises(UserError, match="no run has the metric 'method'; known: .*test_accuracy"):
        nuisance_figures.tradeoff([out], "method", "test_loss")


def test_metrics_that_no_run_has_together(out: Path, victim: RunFolder) -> None:
    put("metrics", "one", value=1.0)(victim.path)
    put("metrics", "another", value=1.0)(out / config("erm", 0).spec.run_id)
    with pytest.raises(UserError, match="no run has both metrics, one and another"):
        nuisance_figures.tradeoff([out], "one", "another")


def test_steps_that_take_no_time(out: Path) -> None:
    for folder in run_folders(out):
        put("cost", "seconds_per_step", value=0.0)(folder.path)
    results = invbench.load_results(out)
    assert np.isnan(compare(results, results)["time"]).all()
    assert result_figures.cost(invbench.table(results)).axes


def test_names_of_metrics_that_look_like_those_of_pairs(out: Path) -> None:
    for folder in run_folders(out):
        put("metrics", "test_accuracy_1", value=1.0)(folder.path)
        put("metrics", "test_accuracy_2", value=1.0)(folder.path)
    results = invbench.load_results(out)
    assert compare(results, results)["verdict"].tolist() == ["the same numbers"] * 2


def test_selection_by_what_records_do_not_have(out: Path) -> None:
    for folder in run_folders(out):
        put("data", "primary", value="nothing")(folder.path)
    with pytest.raises(UserError, match="has no validation_nothing, which its settings would be selected by"):
        invbench.table(invbench.load_results(out), select="best_validation")
    for folder in run_folders(out):
        put("data", "environments", value=2**31)(folder.path)
    put("spec", "trainer", "held_out_environment", value="a")(out / VICTIM)
    with pytest.raises(UserError, match=r"each of its 2147483648 environments left out.*18, 19, \.\.\.\]"):
        invbench.table(invbench.load_results(out), select="leave_one_env_out")


def test_published_numbers_beside_runs_that_lack_the_metric(tmp_path: Path) -> None:
    name, claim = next(iter(claims_of("irmv1_colored_mnist").items()))
    template = (runs() / VICTIM / "record.json").read_bytes()
    for one in sweep_of(claim).runs():
        folder = RunFolder(tmp_path / one.spec.run_id)
        folder.create(one.spec)
        folder.record.write_bytes(template)
        put("spec", value=one.spec.model_dump())(folder.path)
        put("metrics", value={"other": 1.0})(folder.path)
        put("data", "fingerprint", value=str(one.spec.seed))(folder.path)
    verdicts_table = against_published(invbench.load_results(tmp_path), [name])
    assert set(verdicts_table["verdict"]) == {"different protocol"}
    assert verdicts_table["why"].str.contains("no run has the metric").all()


# --- figures and models ----------------------------------------------------------------------------------------------


def test_profiles_that_were_measured_elsewhere(out: Path) -> None:
    """Only those at the magnitudes of the first are drawn with it."""
    for number, folder in enumerate(run_folders(out)):
        count = 3 if number else 5
        profile = {"magnitudes": list(range(count)), "changes": [0.5] * count}
        generators = {"rotation": profile} if number != 2 else {"scale": profile}
        put("invariance", value={"generators": generators})(folder.path)
    assert figures.profile([out]).axes


def test_weights_that_are_none(out: Path, victim: RunFolder) -> None:
    tensors = load_file(victim.checkpoint)
    facts = {"facts": "{}"}
    name = next(name for name in tensors if name.startswith("model/"))
    others = {
        "another version of the network": [
            {key: value for key, value in tensors.items() if not key.startswith("model/")},
            {"model": torch.zeros(1)},
            tensors | {name: tensors[name].to(torch.int64)},
            tensors | {name: torch.zeros(3, 3)},
        ],
        "not all finite": [tensors | {name: tensors[name] * torch.nan}],
    }
    for why, several in others.items():
        for changed in several:
            save_file(changed, victim.checkpoint, metadata=facts)
            with pytest.raises(UserError, match=why):
                load_run(victim.path)
    with pytest.warns(UserWarning, match="not all finite"):
        assert len(figures.revived([out])) == 3


# --- sweeps ----------------------------------------------------------------------------------------------------------


SWEEP = Sweep(seeds="0-1", cells=(SweepCells(method="erm", dataset="spirals"),))


def test_what_a_sweep_costs_is_known_from_its_folder(out: Path, victim: RunFolder) -> None:
    planned = config("vrex", 7)
    assert CostEstimator(out).seconds(planned) is not None
    put("schema_version", value=3)(victim.path)
    assert CostEstimator(out).seconds(planned) is not None, "there is another run like it"
    put("engine", value={})(out / config("vrex", 1).spec.run_id)
    assert CostEstimator(out).seconds(planned) is None


def test_or_from_some_runs_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be anybody's, and many."""
    shutil.copytree(runs(), tmp_path / "mine")
    for number in range(300):
        folder = tmp_path / "theirs" / f"{number:03}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text('{"schema_version": 9}')
    (tmp_path / "not a folder").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    os.utime(tmp_path / "theirs", (time.time() + 1000,) * 2)
    read: list[RunFolder] = []
    load = RunFolder.load_record

    def counted(folder: RunFolder) -> Record | None:
        read.append(folder)
        return load(folder)

    monkeypatch.setattr(RunFolder, "load_record", counted)
    for out in (tmp_path / "new", Path(os.path.relpath(tmp_path / "new"))):
        assert CostEstimator(out).seconds(config("vrex", 7)) is not None
    (tmp_path / "new").mkdir()
    assert CostEstimator(tmp_path / "new").seconds(config("vrex", 7)) is not None
    assert len(read) <= 3 * (50 + 4)
    assert CostEstimator(tmp_path / "none" / "new").seconds(config("vrex", 7)) is None


def test_a_sweep_beside_runs_of_others(out: Path, victim: RunFolder) -> None:
    put("schema_version", value=3)(victim.path)
    (out / "sweep.yaml").write_bytes(b"\xff\xfe\n" * 10_000)
    lines = announce_changes(SWEEP, "full", SWEEP.runs(), out)
    assert "are not part of the sweep as it is now" in lines[-1]
    assert "3 done" in lines[-1]
    assert "1 newer" in lines[-1]
    assert len(lines) < 50
    (out / "sweep.yaml").unlink()
    os.mkfifo(out / "sweep.yaml")
    with pytest.raises(Unreadable, match="sweep.yaml is not a file"):
        announce_changes(SWEEP, "full", SWEEP.runs(), out)


def test_a_broken_run_of_a_sweep_is_open(victim: RunFolder) -> None:
    for damage in (BROKEN["no data"][0], BROKEN["nan"][0]):
        damage(victim.path)
        assert victim.status() == "lost"
    unfinished(lambda _: None)(victim.path)
    assert victim.status() == "lost"


@pytest.mark.parametrize("flat", [{"a": 0, "a.b": 1}, {"a.b": 1, "a": 0}])
def test_a_leaf_has_no_leaves(flat: dict[str, int]) -> None:
    """In whatever order a file gives the names."""
    with pytest.raises(ValueError, match="leaf"):
        unflatten(flat)


def test_a_name_that_is_a_part_of_another(victim: RunFolder) -> None:
    save_file(load_file(victim.checkpoint) | {"model": torch.zeros(1)}, victim.checkpoint, metadata={"facts": "{}"})
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        load_run(victim.path)
