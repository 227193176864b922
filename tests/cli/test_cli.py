"""The command as its users meet it: what it prints, and one clear line for every mistake."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from cells import SMALL
from conftest import Bench
from matplotlib.figure import Figure

from invbench.cli import entry, main
from invbench.core.registry import BACKBONES, DATASETS, METHODS, datasets_with_defaults, unmet
from invbench.errors import UserError
from invbench.reporting.drawing import save
from invbench.runs.commands import parse_seeds
from invbench.runs.config import parse_assignments
from invbench.runs.resolve import resolve, with_penalty

TINY = [part for name, value in SMALL["spirals"].items() for part in ("--set", f"{name}={value}")]
TINY += ["--set", "trainer.steps=6"]


def test_run_then_table(bench: Bench) -> None:
    status, out, err = bench("run", "--method", "and_mask", "--dataset", "spirals", "--seeds", "0-1", *TINY)
    assert status == 0
    assert "and_mask on spirals" in out
    assert "mean ± 95 %" in out
    assert "and_mask/spirals seed 1  step 6/6  train_accuracy" in err
    status, out, _ = bench(
        "run", "-m", "and_mask", "-d", "spirals", *TINY, "--set", "method.threshold=0", "--out", "results"
    )
    assert status == 0
    status, out, _ = bench("table")
    assert status == 0
    header, first, second, _, *said = out.splitlines()
    assert header.split() == ["method", "method.threshold", "spirals"]
    assert ("(1)" in first, "(2)" in second) == (True, True)
    assert said[0] == "test_accuracy: mean ± 95 % t-interval (number of seeds)"
    status, out, _ = bench("table", "results", "--format", "csv", "--metric", "train_loss")
    assert out.splitlines()[0].startswith("method,dataset,method.threshold,metric,at,n,runs,mean,half_width")
    status, _, err = bench("table", "--metric", "train_los")
    assert status == 2
    assert "no run has the metric 'train_los'; did you mean 'train_loss'?" in err
    _, _, err = bench("table", "--metric", "x")
    assert "test_accuracy" in err
    assert "_env" not in err, "there is one of each environment"


def test_many_metrics_are_rows(bench: Bench) -> None:
    """In a terminal of 80 letters; nothing is cut off."""
    settings = SMALL["irm_regression"] | {"trainer.steps": 3, "trainer.batch_size": "null"}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    status, out, _ = bench("run", "-m", "erm", "-d", "irm_regression", *sets)
    assert status == 0
    assert {"test_mean_squared_error_worst", "invariant_solution", "seconds"} <= set(out.split())
    assert "…" not in out


def test_json_prints_the_records_and_nothing_else(bench: Bench) -> None:
    status, out, err = bench("run", "-m", "erm", "-d", "spirals", "--seeds", "3,1", "--json", *TINY)
    assert status == 0
    records = json.loads(out)
    assert [record["spec"]["seed"] for record in records] == [3, 1]
    assert records[0]["metrics"]["test_accuracy"] >= 0
    assert "step 6/6" in err
    _, again, err = bench("run", "-m", "erm", "-d", "spirals", "--seeds", "3,1", "--json", *TINY)
    assert json.loads(again) == records
    assert err.count("is done already") == 2


def test_a_failed_run_is_status_1_and_does_not_stop_the_others(bench: Bench) -> None:
    wild = ["--set", "trainer.optimizer=sgd", "--set", "trainer.learning_rate=1e30"]
    status, out, err = bench("run", "-m", "erm", "-d", "spirals", "--seeds", "0-1", "--json", *TINY, *wild)
    assert status == 1
    assert [record["status"] for record in json.loads(out)] == ["failed", "failed"]
    last = err.splitlines()[-1]
    assert last.startswith("error: erm/spirals seed 0 failed (diverged):")
    assert last.endswith("(2 of 2 runs failed)")
    _, _, err = bench("table")
    assert "no finished run" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "-m", "and_maks", "-d", "spirals"), "no method 'and_maks'; did you mean 'and_mask'?"),
        (("run", "-m", "erm", "-d", "spiral"), "no dataset 'spiral'; did you mean 'spirals'?"),
        (("run", "-m", "GroupDRO", "-d", "spirals"), "no method 'GroupDRO'; did you mean 'group_dro'?"),
        (("run", "-m", "erm+IRM", "-d", "spirals"), "no method 'IRM'; did you mean 'irmv1'?"),
        (("run", "-m", "V-REx", "-d", "spirals"), "no method 'V-REx'; did you mean 'vrex'?"),
        (("run", "-m", "AND mask", "-d", "spirals"), "no method 'AND mask'; did you mean 'and_mask'?"),
        (("run", "-m", "erm", "-d", "ColoredMNIST"), "no dataset 'ColoredMNIST'; did you mean 'colored_mnist'?"),
        (("run", "-m", "erm", "-d", "Rotated MNIST"), "no dataset 'Rotated MNIST'; did you mean 'rotmnist'?"),
        (("show", "xyzzy"), "nothing is named 'xyzzy'; the nearest of "),
        (("run", "-m", "and_mask", "-d", "mario_iggy"), "datasets that can: and_mask_regression, chain_sem,"),
        (
            ("run", "-m", "and_mask", "-d", "digits", "--set", "dataset.environments=none"),
            "does not provide; set dataset.environments=rotation_bins",
        ),
        (("run", "-m", "erm", "-d", "spirals", "--set", "trainer.epohcs=3"), "did you mean 'epochs'?"),
        (("run", "-m", "erm", "-d", "spirals", "--set", "trainer.epochs=three"), "'trainer.epochs' is \"three\""),
        (("run", "-m", "and_mask", "-d", "spirals", "--set", "method.threshold=2"), "less than or equal to 1"),
        (("run", "-m", "erm", "-d", "spirals", "--set", "trainer.epochs"), "write it as section.name=value"),
        (("run", "-m", "erm", "-d", "spirals", "--device", "cuda:97"), "no GPU is visible"),
        (("run", "-m", "erm", "-d", "spirals", "--device", "tpu"), "is not one of auto, cpu, cuda"),
        (("run", "-m", "erm", "-d", "spirals", "--device", ""), "--device '' is not one of auto, cpu, cuda"),
        (("run", "-m", "erm", "-d", "spirals", "--device", "cpu:7"), "--device cpu:7 is not supported"),
        (("run", "-m", "erm", "-d", "spirals", "--seeds", "4-1"), "4-1 runs backwards; write 1-4"),
        (("run", "-m", "erm", "-d", "spirals", "--seed", "1", "--seeds", "2"), "give either --seed or --seeds"),
        (("run", "-m", "erm", "-d", "spirals", "--seed", "-1"), "must be a whole number from 0"),
        (("run", "-m", "erm"), "Missing option '--dataset'"),
        (("run", "--metod", "erm"), "No such option: --metod"),
        (("rnu",), "No such command 'rnu'"),
        (("show", "irmv1_colored_mnist"), "is a published claim; `bench reproduce irmv1_colored_mnist --dry-run`"),
        (("run", "-m", "erm", "-d", "spirals", "--set", "method.weight=2"), "no setting 'method.weight'; ERM has none"),
        (("run", "-m", "gga", "-d", "spirals", "--set", "method.last_step=50"), "first_step (100) must be below"),
        (("show", "and_maks"), "nothing is named 'and_maks'; did you mean 'and_mask'?"),
        (("table", "nowhere"), "no results folder nowhere"),
        (("table", "--vs-published", "--rows", "method"), "leave the other options out"),
        (("plot", "curve"), "nothing to draw is named 'curve'; did you mean 'curves'?"),
        (("ls", "cell"), "nothing to list is named 'cell'; did you mean 'cells'?"),
        (("show", "digits", "--picture", "x.png", "--json"), "give one of them"),
        (("plot", "ranks", "nowhere"), "no results folder nowhere"),
        (("report", "--out", "report.pdf"), "it must end in .html, in a folder that exists"),
        (("report", "nowhere"), "no results folder nowhere"),
        (("compare", "one", "other"), "'one' is neither a folder nor a git commit"),
        (("rerun-best", "nowhere"), "no results folder nowhere"),
        (("reproduce", "irmv1_colored_mnits"), "did you mean 'irmv1_colored_mnist'?"),
        (("data", "verify", "nothing"), "no dataset or release is named 'nothing'"),
        (("data", "fetch", "cifar"), "no dataset or release is named 'cifar'; did you mean 'cifar10'?"),
        (("show", "digits", "--picture", "digits.gif"), "must end in .png, .pdf or .svg"),
        (("show", "digits", "--picture", "nowhere/digits.png"), "there is no folder"),
        (("show", "mlp", "--set", "dataset.max_rotation=1"), "are of a dataset whose examples are counted or drawn"),
        (("show", "digits", "--set", "dataset.max_rotatoin=1"), "did you mean"),
        (
            ("run", "-m", "erm", "-d", "digits", "--infer-groups", "mixup"),
            "infers no environments; take eiil",
        ),
        (("show", "digits", "--picture", f"{'x' * 300}.png"), "a name has 255 bytes at most"),
        (("plot", "curves", "--out", f"{'x' * 300}.png"), "a name has 255 bytes at most"),
        (("plot", "widths", "--mark", "nan"), "it must be a finite number"),
        (("plot", "densities", "--at", "0", "--at", "inf"), "it must be a finite number"),
        (("run", "-m", "erm", "-d", "spirals", "--out", "a/" * 3000), "all of it 4095"),
        (("run", "-m", "erm", "-d", "spirals", "--out", "\udcff"), "no text in UTF-8"),
        (("run", "-m", "erm", "-d", "spirals", "--seeds", "0-1000000000"), "1,000,000,001, and can be 100,000"),
        (("run", "-m", "erm", "-d", "spirals", "--checkpoint-seconds", "nan"), "--checkpoint-seconds"),
        (("sweep", "smoke", "--out", "x" * 300), "a name has 255 bytes at most"),
        (("reproduce", "irmv1_colored_mnist", "--out", "x" * 300), "a name has 255 bytes at most"),
        (("reproduce", "irmv1_colored_mnist", "--workers", "1000000000"), "4096"),
        (("rerun-best", "--workers", "1000000000"), "4096"),
        (("compare", "x" * 300, "."), "a name has 255 bytes at most"),
        (("table", "x" * 300), "a name has 255 bytes at most"),
        (("report", "x" * 300), "a name has 255 bytes at most"),
        (("analyze", "spectrum", "x" * 300), "a name has 255 bytes at most"),
        (("analyze", "spectrum", ".", "--alpha", "inf"), "it must be a finite number"),
        (("analyze", "consistency", ".", "--reach", "inf"), "it must be a finite number"),
        (("analyze", "symmetry", ".", "--tolerance", "nan"), "it must be a finite number"),
    ],
)
def test_mistakes(bench: Bench, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    if "cuda" in str(arguments) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        import torch

        message = message if not torch.cuda.is_available() else "GPUs are visible"
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == [], "nothing is written for a mistake"


def test_what_is_advised_helps() -> None:
    """Of every method with every dataset that refuses it: with the settings that the error names it does not."""
    advised = 0
    for method, dataset in itertools.product(map(with_penalty, METHODS.entries()), datasets_with_defaults()):
        try:
            resolve(method, dataset)
        except UserError as error:
            settings = str(error).partition("; set ")[2]
            assert settings or "; datasets that can: " in str(error)
            if settings:
                advised += 1
                resolve(method, dataset, 0, parse_assignments(settings.split(" and ")))
    assert advised > 3


def test_no_setting_is_advised_that_does_not_help() -> None:
    with pytest.raises(UserError, match="needs vector and regression, .*; datasets that can: and_mask_regression, "):
        resolve("icp", "digits")
    with pytest.raises(UserError, match="; set dataset.grayscale=true$"):
        resolve("oracle", "colored_digits", 0, {"dataset.grayscale": False})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system that even root cannot write to")
def test_unwritable_out_as_root(bench: Bench) -> None:
    status, _, err = bench("run", "-m", "erm", "-d", "spirals", "--out", "/proc/nowhere", *TINY)
    assert status == 2
    assert err.startswith("error: cannot write to /proc/nowhere/")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [("show", "digits", "--picture"), ("plot", "curves", "--out")])
def test_a_picture_where_there_is_something_else(bench: Bench, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png"):
        status, _, err = bench(*command, name)
        assert (status, err) == (2, f"error: {command[-1]} {name}: that is no file\n")


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    figure = Figure()
    for path in (tmp_path / "none" / "x.png", tmp_path / f"{'x' * 300}.png"):
        with pytest.raises(UserError, match="cannot be written: "):
            save(figure, path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    save(figure, tmp_path / "loop.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loop.png"]
    assert (tmp_path / "loop.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["INVBENCH_DATA", "INVBENCH_CACHE"])
@pytest.mark.parametrize(
    ("value", "message"),
    [("~nobody_of_this_name/x", "nobody's home is ~nobody_of_this_name"), ("x" * 300, "255"), ("\udcff", "UTF-8")],
)
def test_folders_that_cannot_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    status, out, err = bench("data", "verify", "mnist")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {name}")
    assert message in err


@pytest.mark.parametrize("columns", ["9" * 5000, "²", "-5", ""])
def test_an_odd_width_is_no_width(bench: Bench, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert bench("run", "-m", "erm", "-d", "spirals", *TINY)[0] == 0


def test_tables_that_go_to_a_pipe_are_not_broken_into_lines(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = bench("run", "-m", "erm", "-d", "colored_digits", "--seeds", "0-1", "--set", "trainer.steps=2")[1]
    assert max(map(len, out.splitlines())) > 80
    assert len(re.findall(r"^\W+[01]\W.*\W[0-9a-f]{16}\W+$", out, re.MULTILINE)) == 2


def test_data_that_do_not_fit_into_memory(bench: Bench) -> None:
    status, _, err = bench("run", "-m", "erm", "-d", "spirals", "--set", "dataset.examples=9007199254740991")
    assert (status, err.count("\n")) == (1, 1)
    assert "failed (oom): its data do not fit into memory" in err


def test_out_that_is_a_file(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    status, _, err = bench("run", "-m", "erm", "-d", "spirals", "--out", "taken", *TINY)
    assert status == 2
    assert "choose another folder with --out" in err
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_truncated_file_is_one_line_and_leaves_nothing(bench: Bench, mnist_folder: Path, tmp_path: Path) -> None:
    images = mnist_folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:1000])
    status, out, err = bench("run", "-m", "erm", "-d", "rotmnist", "--out", "runs")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{images} is a damaged gzip file" in err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_full_disk_is_a_failed_run(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("invbench.training.loop.write_rows", full)
    status, _, err = bench("run", "-m", "erm", "-d", "spirals", *TINY)
    assert status == 1
    assert "failed (disk_full): [Errno 28] No space left on device" in err.splitlines()[-1]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert bench("run", "-m", "erm", "-d", "spirals", *TINY)[0] == 0


def test_what_nobody_foresaw_is_one_line_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invbench.runs.resolve.resolve", lambda *arguments: 1 / 0)
    status, _, err = bench("run", "-m", "erm", "-d", "spirals")
    assert (status, err.count("\n")) == (1, 1)
    assert "unexpected ZeroDivisionError: division by zero; `bench --debug`" in err


def test_listing_and_showing(bench: Bench) -> None:
    assert "AND-mask and geometric mean" in bench("ls")[1]
    out = bench("show", "and_mask")[1]
    assert "method.threshold = 1.0  (float, ≥ 0, ≤ 1; search U(0, 1))" in out
    assert "agreement τ" in out
    out = bench("show", "rotmnist")[1]
    assert "dataset.max_rotation = 6.28" in out
    assert "licence: CC BY-SA 3.0" in out
    assert "name: cnn_small" in out
    assert "splits: known once its files are here" in out
    out = bench("show", "colored_digits")[1]
    assert "splits: train 1120, validation 280, test 397\nenvironments of train: 0 560; 1 560\n" in out
    assert "known once its files are here; give --set dataset.root=" in bench("show", "images")[1]
    unlike = ["--set", "dataset.rare=0.5", "--seed", "1", "--set", "dataset.attribute_known=[train]"]
    out = bench("show", "grouped_penguins", *unlike)[1]
    assert "groups of train: female, Adelie 36; female, Gentoo 14; male, Adelie 18; male, Gentoo 30\n" in out
    assert "groups of validation" not in out
    for wrong in (["grouped_penguins", "--json", "--seed", "1"], ["erm", "--set", "dataset.rare=1"]):
        status, _, err = bench("show", *wrong)
        assert (status, "are of a dataset whose examples are counted or drawn" in err) == (2, True)
    assert "trainer.learning_rate = 0.001  (float, > 0; search adam: log-U(3.1" in bench("show", "trainer")[1]


def test_cells_are_a_matrix(bench: Bench) -> None:
    lines = bench("ls", "cells")[1].splitlines()
    assert max(map(len, lines)) <= 80
    names = {line.split()[1].rstrip(":"): int(line.split()[0]) for line in lines if re.match(" +[0-9]+ +[a-z]", line)}
    assert list(names) == list(DATASETS.entries())
    marks = {line.split()[0]: "".join(line.split()[1:]) for line in lines if "×" in line and "(" not in line}
    assert list(marks) == list(METHODS.entries())
    for method, dataset in itertools.product(marks, names):
        able = not unmet(METHODS.traits(method), DATASETS.traits(dataset))
        assert marks[method][names[dataset] - 1] == ("×" if able else "·")


def test_lists_as_json(bench: Bench) -> None:
    status, out, err = bench("ls", "--json")
    assert (status, err) == (0, "")
    lists = json.loads(out)
    assert list(lists) == ["methods", "datasets", "backbones"]
    assert next(one for one in lists["methods"] if one["name"] == "and_mask") == {
        "name": "and_mask", "requires": ["environments"], "summary": METHODS.entries()["and_mask"].summary
    }  # fmt: skip
    assert {"name", "provides", "summary", "on_this_machine"} == set(lists["datasets"][0])
    assert "smoke" in json.loads(bench("ls", "sweeps", "--json")[1])["sweeps"]
    assert "spirals" in json.loads(bench("ls", "cells", "--json")[1])["cells"]["and_mask"]
    published = json.loads(bench("ls", "published", "--json")[1])["published"]
    assert any("irmv1_colored_mnist" in source["claims"] for source in published.values())


def test_what_is_shown_as_json(bench: Bench) -> None:
    (entry,) = json.loads(bench("show", "and_mask", "--json")[1])
    assert (entry["kind"], entry["name"], entry["requires"]) == ("method", "and_mask", ["environments"])
    threshold = next(one for one in entry["settings"] if one["name"] == "threshold")
    assert (threshold["type"], threshold["default"], threshold["range"]) == ("float", 1.0, "≥ 0, ≤ 1")
    assert threshold["search_range"] == "U(0, 1)"
    assert "agreement" in threshold["meaning"]
    for name in [*METHODS.entries(), *DATASETS.entries(), *BACKBONES.entries(), "trainer"]:
        status, out, err = bench("show", name, "--json")
        assert (status, err) == (0, "")
        assert all(one["settings"] is not None for one in json.loads(out))


def test_a_dataset_without_a_recipe_is_drawn(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Though its own network would not take it."""
    monkeypatch.setattr("invbench.runs.config.recipe_text", lambda name: None)
    monkeypatch.setattr(DATASETS.load("digits"), "backbone", "point_resnet")
    status, out, err = bench("show", "digits", "--picture", "sheet.png")
    assert (status, err) == (0, "")
    assert out.startswith("sheet.png: digits, fingerprint ")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_quiet(bench: Bench, tmp_path: Path) -> None:
    status, out, err = bench("run", "-m", "erm", "-d", "spirals", "-q", *TINY)
    assert status == 0
    assert "erm on spirals" in out
    assert "step" not in err
    assert "step 6/6" in next(tmp_path.glob("results/*/log.txt")).read_text()
    (tmp_path / "x.yaml").write_text("cells: [{method: erm, dataset: spirals, set: {trainer.steps: 6}}]")
    assert bench("sweep", "x.yaml", "--workers", "1", "--quiet") == (0, "", "")
    (tmp_path / "x.yaml").write_text("cells: [{method: erm, dataset: spirals, set: {trainer.learning_rate: 1e30}}]")
    status, out, err = bench("sweep", "x.yaml", "--workers", "1", "--quiet")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: 1 of 1 runs are not done")


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_runs_have_settings_and_lines(bench: Bench, monkeypatch: pytest.MonkeyPatch, verbose: bool) -> None:
    """On a terminal, where there is a bar otherwise."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "400")
    status, _, err = bench("run", "-m", "erm", "-d", "spirals", "--seeds", "0-1", *["-v"] * verbose, *TINY)
    assert status == 0
    settings = {line.strip() for line in err.splitlines()[1:] if line.startswith("  ")}
    expected = {"trainer.steps = 6", 'backbone.name = "mlp"', "trainer.betas = [0.9, 0.999]", "trainer.epochs = null"}
    assert (expected <= settings) is verbose
    assert bool(re.search("^  seed 1: results/[0-9a-f]{16}$", err, re.MULTILINE)) is verbose
    assert bool(re.search("^erm/spirals seed 0  step 3/6", err, re.MULTILINE)) is verbose
    assert ("\x1b[" in err) is not verbose


def test_verbose_sweeps_say_what_they_run_and_when(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grid = "grid: {trainer.learning_rate: [0.1, 0.2]}"
    (tmp_path / "x.yaml").write_text(f"cells: [{{method: erm, dataset: spirals, set: {{trainer.steps: 6}}, {grid}}}]")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, _, err = bench("sweep", "x.yaml", "--workers", "1", "-v")
    assert status == 0
    assert re.search("^erm on spirals: .*  trainer.steps=6  ", err, re.MULTILINE)
    assert re.search(
        "^[0-9a-f]{16}  to do  queued   erm/spirals seed 0 .*  trainer.learning_rate=0.2$", err, re.MULTILINE
    )
    assert len(re.findall(r"^[0-9:]{8}  erm/spirals seed 0 \(.*\)  begins on", err, re.MULTILINE)) == 2
    assert len(re.findall(r"^[0-9:]{8}  erm/spirals seed 0 \(.*\)  done after", err, re.MULTILINE)) == 2
    out = bench("sweep", "x.yaml", "--dry-run", "-v")[1]
    assert out.splitlines()[0].startswith("erm on spirals: ")
    assert "erm on spirals: " not in bench("sweep", "x.yaml", "--dry-run")[1]
    assert "spirals: " in bench("rerun-best", "results", "--dry-run", "-v", "--select", "oracle")[1]
    preview = bench("reproduce", "irmv1_colored_mnist", "--dry-run", "-v")[1]
    assert "irmv1 on colored_mnist: " in preview
    assert "published test_accuracy: 0.6" in preview


@pytest.mark.parametrize("command", ["run -m erm -d spirals", "sweep smoke"])
def test_quiet_and_verbose_are_opposites(bench: Bench, command: str) -> None:
    assert bench(*command.split(), "-q", "-v") == (
        2, "", "error: --quiet shows less and --verbose more; give one of them\n",
    )  # fmt: skip


def test_a_dry_run_of_many_runs_is_a_summary(bench: Bench, tmp_path: Path) -> None:
    search = "random: {trials: 4, settings: [trainer.learning_rate, method.rule]}"
    cells = f"[{{method: and_mask, dataset: spirals, grid: {{trainer.steps: [5, 6]}}, {search}}}]"
    (tmp_path / "x.yaml").write_text(f"seeds: 0-2\ncells: {cells}")
    lines = bench("sweep", "x.yaml", "--dry-run")[1].splitlines()
    assert lines[:4] == [
        "24 runs: 1 method × 1 dataset × 8 trials × 3 seeds",
        "  methods: and_mask",
        "  datasets: spirals",
        "  method.rule: geometric_mean, mask",
    ]
    assert re.fullmatch(r"  trainer.learning_rate: [0-9e.-]+(, [0-9e.-]+){3}", lines[5])
    assert lines[4] == "  trainer.steps: 5, 6"
    assert lines[6] == "  seeds: 0-2"
    assert len(lines) == 7 + 5 + 1 + 1
    assert lines[-2] == "and 19 more: -v lists all"
    assert lines[-1].startswith("24 of 24 runs are left")
    assert (
        sum("and_mask/spirals seed" in line for line in bench("sweep", "x.yaml", "--dry-run", "-v")[1].splitlines())
        == 24
    )
    (tmp_path / "x.yaml").write_text("seeds: 0-9\ncells: [{method: [erm, irmv1], dataset: spirals}]")
    assert len(bench("sweep", "x.yaml", "--dry-run")[1].splitlines()) == 20 + 1
    more = "{method: erm, dataset: irm_regression}"
    (tmp_path / "x.yaml").write_text(f"seeds: 0-9\ncells: [{{method: [erm, irmv1], dataset: spirals}}, {more}]")
    first = bench("sweep", "x.yaml", "--dry-run")[1].splitlines()[0]
    assert first == "30 runs: some of 2 methods, 2 datasets, 1 trial, 10 seeds"


def test_a_dry_run_counts_first_stages(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "seeds: 0-1\nset: {trainer.epochs: null, trainer.steps: 2, dataset.examples: 32, trainer.batch_size: 32}\n"
        "cells: [{method: [erm, jtt, crt], dataset: spirals}]"
    )
    dry = ("sweep", "x.yaml", "--dry-run", "--out", "runs")
    assert bench(*dry)[1].splitlines()[-1].startswith("6 of 6 runs are left, and 2 first stages that they begin from;")
    values = ("trainer.epochs=null", "trainer.steps=2", "dataset.examples=32", "trainer.batch_size=32")
    settings = [word for value in values for word in ("--set", value)]
    assert bench("run", "-m", "jtt", "-d", "spirals", *settings, "--out", "runs", "-q")[0] == 0
    assert bench(*dry)[1].splitlines()[-1].startswith("5 of 6 runs are left, and 1 first stage that they begin from")


def test_a_dry_run_tells_the_trials_of_a_search_apart(bench: Bench, tmp_path: Path) -> None:
    trials = "random: {trials: 3, settings: [trainer.learning_rate, method.threshold]}"
    (tmp_path / "x.yaml").write_text(f"seeds: 0-1\ncells: [{{method: [and_mask], dataset: spirals, {trials}}}]")
    status, out, _ = bench("sweep", "x.yaml", "--dry-run")
    assert status == 0
    differences = [line.partition("no record like it  ")[2] for line in out.splitlines()[:-1]]
    assert len(differences) == 6
    assert differences[:3] == differences[3:], "the same for both seeds"
    assert len(set(differences)) == 3
    assert all(
        re.fullmatch(r"method\.threshold=[0-9.e-]+  trainer\.learning_rate=[0-9.e-]+", text) for text in differences
    )
    (tmp_path / "x.yaml").write_text("cells: [{method: [erm, and_mask], dataset: spirals}]")
    assert "=" not in bench("sweep", "x.yaml", "--dry-run")[1]
    (tmp_path / "x.yaml").write_text("cells: [{method: erm, dataset: spirals, grid: {backbone.name: [mlp, linear]}}]")
    assert "backbone.name=linear" in bench("sweep", "x.yaml", "--dry-run")[1]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("run -m and_m", "and_mask"),
        ("run -m erm+and_m", "erm+and_mask"),
        ("run -d spir", "spirals"),
        ("show trai", "trainer"),
        ("show rotm", "rotmnist"),
        ("sweep smo", "smoke"),
        ("ls cel", "cells"),
        ("reproduce erm_rotmnist_7", "erm_rotmnist_75"),
        ("data fetch rotm", "rotmnist"),
        ("table --select be", "best_validation"),
        ("plot curves --select ora", "oracle"),
        ("report --select la", "last"),
        ("rerun-best --select l", "leave_one_env_out"),
        ("run -m erm -d spirals --set ", "method. dataset. backbone. trainer."),
        ("run -m erm -d spirals --set trainer.opt", "trainer.optimizer= trainer.optimizer=adam trainer.optimizer=sgd"),
        ("run -m erm -d spirals --set trainer.mom", "trainer.momentum= trainer.momentum=0.0"),
        ("run -m erm -d spirals --set trainer.steps = 3 --set trainer.optimizer = s", "sgd"),
        ("run -m erm -d spirals --set trainer.optimizer =", "adam sgd"),
        ("run -m erm -d spirals --set trainer.condense = ", "false true"),
        ("run -m and_mask -d spirals --set method.th", "method.threshold= method.threshold=1.0"),
        (
            "run -m and_mask+irmv1 -d x --set method.and_mask.th",
            "method.and_mask.threshold= method.and_mask.threshold=1.0",
        ),
        ("run -m nothing -d nothing --set method.", ""),
        (
            "show digits --set dataset.env",
            "dataset.environments= dataset.environments=none dataset.environments=rotation_bins",
        ),
    ],
)
def test_completion(words: str, completed: str, tmp_path: Path) -> None:
    assert offered(words, tmp_path) == completed.split()


def offered(words: str, folder: Path) -> list[str]:
    """Return what bash is offered for the last of these words; bash takes a `=` for a word."""
    line = f"bench {words}".replace(" ", "\n")
    asked = {"_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count("\n"))}
    code = "import sys; from invbench.cli.entry import main; sys.argv[0] = 'bench'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_completion_of_conditions(bench: Bench, tmp_path: Path) -> None:
    """By what is in the results."""
    assert offered("table --where data", tmp_path) == []
    bench("run", "-m", "erm", "-d", "spirals", "--out", "mine", *TINY)
    assert offered("table mine --where datas", tmp_path)[:2] == ["dataset=", "dataset.validation_share="]
    assert offered("table mine --where statu", tmp_path) == ["status=", "status=done"]
    assert offered("plot curves mine --where dataset = s", tmp_path) == ["spirals"]
    assert offered("table mine --where trainer.epochs =", tmp_path) == ["null"]
    assert offered("table --where datas", tmp_path) == []


@pytest.mark.parametrize("none", ["null", "~", " null ", ""])
def test_conditions_take_runs_that_have_none(bench: Bench, none: str) -> None:
    bench("run", "-m", "erm", "-d", "spirals", *TINY)
    status, out, _ = bench("table", "--where", f"trainer.epochs={none}")
    assert status == 0
    assert "erm" in out
    status, _, err = bench("table", "--where", f"trainer.steps={none}")
    assert status == 2
    assert "--where trainer.steps=: no run has it; known: 6" in err


@pytest.mark.parametrize(
    "verb", ["run", "sweep", "ls", "show", "plot", "table", "reproduce", "rerun-best", "data verify", "analyze widths"]
)
def test_help_splits_no_name(bench: Bench, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = bench(*verb.split(), "--help")
    assert status == 0
    assert not re.search(r"<[a-z][^>\n]*\n", out), "a type that does not fit into its column"


@pytest.mark.usefixtures("mnist_folder")
def test_data(bench: Bench) -> None:
    out = bench("data", "ls")[1]
    assert "spirals: always available; generated by this package" in out
    assert "rotmnist: here in" in out
    assert "cifar10: not here; get it with: bench data fetch cifar10; 170 MB to fetch" in out
    status, out, err = bench("data", "verify", "rotmnist")
    assert status == 2
    assert out.count("is not the published file") == 4
    assert "4 files differ from what should be there" in err
    assert "mnist: all files are here already" in bench("data", "fetch", "colored_mnist")[1]
    assert re.search("rotmnist .* here  ", bench("ls", "datasets")[1])
    out = bench("show", "qm9")[1]
    assert "release: qm9, 87 MB to fetch, not here" in out
    assert "get it: bench data fetch qm9" in out


def test_data_become_representations(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "spirals.safetensors"
    command = ("data", "embed", "spirals", "--backbone", "mlp", "--set", "backbone.width=4")
    status, out, err = bench(*command, "--out", str(file))
    assert status == 0, err
    assert f"{file}: 4 numbers of each example; train " in out
    (advice,) = re.findall("^bench (run .*)", out, re.MULTILINE)
    status, out, err = bench(*shlex.split(advice), "--set", "trainer.steps=2", "--json")
    assert status == 0, err
    assert json.loads(out)[0]["status"] == "done"
    status, _, err = bench(*command[:3], "--backbone", "none", "--out", str(tmp_path / "none.safetensors"))
    assert status == 2
    assert "no backbone 'none'" in err


@pytest.mark.realdata
def test_official_data_are_verified(bench: Bench) -> None:
    status, out, _ = bench("data", "verify", "mnist")
    assert status == 0
    assert out.count("is the official file") == 4


def test_doctor(bench: Bench, tmp_path: Path) -> None:
    status, out, _ = bench("doctor")
    assert status == 0
    assert "torch 2" in out
    assert re.search(
        "^torchvision: imports(?! in)" if _imports_alone("torchvision") else "^torchvision: imports in", out, re.M
    )
    assert f"cache {tmp_path / 'cache'}: writable" in out
    assert "extra slurm:" in out


def _imports_alone(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def test_version(bench: Bench) -> None:
    assert bench("--version") == (0, f"invbench {version('invbench')}\n", "")


def test_help_without_arguments(bench: Bench) -> None:
    status, out, _ = bench()
    assert status == 0
    assert "doctor" in out


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--debug", "show", "nothing_like_this"])
    with pytest.raises(UserError):
        main()


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("7", [7]), ("0,2,1-3", [0, 2, 1, 3])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


def test_ctrl_c_while_the_command_is_being_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *others: object) -> None:
            if name == "invbench.cli":
                raise KeyboardInterrupt

    for name in [name for name in sys.modules if name.startswith("invbench.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert (stop.value.code, capsys.readouterr().err) == (130, "error: interrupted\n")
