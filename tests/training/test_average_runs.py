"""Means of the weights of several runs: which are in them, batch norm, what is refused, the command."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import invbench
from invbench.cli import app
from invbench.errors import UserError
from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.record import Record
from invbench.sweeps.rerun_best import sweep_of_best
from invbench.training.average_runs import average_runs

SHORT: dict[str, Any] = {
    "trainer.epochs": None,
    "trainer.steps": 30,
    "trainer.schedule": "constant",
    "backbone.name": "mlp",
    "backbone.width": 8,
}
RATES = (1e-3, 1e-2, 3e-2, 1.0)


def trained(out: Path, seed: int = 0, **settings: Any) -> Path:
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    return out / invbench.run("erm", "digits", seed=seed, settings=SHORT | changed, out=out).run_id


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs with other learning rates, of which the last one does harm."""
    out = tmp_path_factory.mktemp("runs")
    return [trained(out, trainer__learning_rate=rate) for rate in RATES]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return invbench.load_run(folder).model.state_dict()


@pytest.mark.parametrize("rule", ["uniform", "restricted"])
def test_the_mean_of_one_run_is_that_run(runs: list[Path], rule: Any) -> None:
    averaged = average_runs(runs[:1], rule)
    for name, value in weights_of(runs[0]).items():
        assert torch.equal(averaged.model.state_dict()[name], value)
    assert averaged.metrics == averaged.best
    record = invbench.load_results(runs[0]).iloc[0]
    assert averaged.metrics["test_accuracy"] == pytest.approx(record["test_accuracy"])


def test_uniform_is_the_mean_of_all(runs: list[Path]) -> None:
    averaged = average_runs(runs[:3])
    each = [weights_of(folder) for folder in runs[:3]]
    for name, value in averaged.model.state_dict().items():
        torch.testing.assert_close(value, sum(weights[name] for weights in each) / 3)
    assert set(averaged.members) == set(runs[:3])
    problem = invbench.load_run(runs[0]).problem
    test = problem.splits["test"]
    accuracy = (averaged.model(test.x).prediction.argmax(1) == test.y).double().mean().item()
    assert averaged.metrics["test_accuracy"] == pytest.approx(accuracy)


def test_restricted_takes_what_does_not_harm(runs: list[Path]) -> None:
    """By trying, in the order of the validation scores."""
    averaged = average_runs(runs, "restricted")
    table = invbench.load_results(runs[0].parent).set_index("run_id")
    ordered = sorted(runs, key=lambda folder: table.loc[folder.name, "validation_accuracy"], reverse=True)
    validation = invbench.load_run(runs[0]).problem.splits["validation"]

    def score(folders: list[Path]) -> float:
        each = [weights_of(folder) for folder in folders]
        model = invbench.load_run(runs[0]).model
        model.load_state_dict({name: sum(weights[name] for weights in each) / len(each) for name in each[0]})
        with torch.no_grad():
            return float((model(validation.x).prediction.argmax(1) == validation.y).double().mean())

    members = ordered[:1]
    for folder in ordered[1:]:
        if score([*members, folder]) >= score(members):
            members.append(folder)
    assert list(averaged.members) == members
    assert runs[3] not in members
    assert averaged.metrics["validation_accuracy"] == pytest.approx(score(members))
    assert averaged.best is not None
    assert averaged.metrics["validation_accuracy"] >= averaged.best["validation_accuracy"]


def test_batch_norm_learns_from_the_mean(tmp_path: Path) -> None:
    folders = [trained(tmp_path, backbone__batch_norm=True, trainer__learning_rate=rate) for rate in RATES[:2]]
    averaged = average_runs(folders)
    x = invbench.load_run(folders[0]).problem.splits["train"].x
    flat, linear, norm = list(averaged.model.features)[:3]
    torch.testing.assert_close(norm.running_mean, linear(flat(x)).mean(0), rtol=0.05, atol=0.02)
    each = [weights_of(folder)["features.2.running_mean"] for folder in folders]
    assert not torch.allclose(norm.running_mean, sum(each) / 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"backbone__width": 4}, "backbone settings"),
        ({"dataset__validation_share": 0.3}, "dataset settings"),
    ],
)
def test_runs_that_did_not_begin_alike_are_refused(
    settings: dict[str, Any], what: str, runs: list[Path], tmp_path: Path
) -> None:
    other = trained(tmp_path, **settings)
    with pytest.raises(UserError, match=f"differ in {what}, so they did not begin at the same weights"):
        average_runs([runs[0], other])


@pytest.mark.parametrize("rule", ["uniform", "restricted"])
def test_means_are_rows_of_tables_and_can_be_restored(runs: list[Path], tmp_path: Path, rule: str) -> None:
    """One for each seed, by the command."""
    second = [trained(tmp_path / "runs", seed=1, trainer__learning_rate=rate) for rate in RATES[:3]]
    lonely = trained(tmp_path / "runs", seed=2)
    given, out = [*map(str, runs[:3]), str(tmp_path / "runs")], tmp_path / "averages"
    result = CliRunner().invoke(app, ["average", *given, "--rule", rule, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"network and seed: {lonely.name}" in result.output
    table = invbench.load_results(out).sort_values("seed")
    assert list(table["seed"]) == [0, 1]
    for path, members in zip(table["path"], (runs[:3], second), strict=True):
        record, averaged = RunFolder(Path(path)).load_record(), average_runs(members, rule)
        assert record is not None
        assert f"{record.spec.dataset} seed {record.spec.seed}: {len(averaged.members)} of 3 runs" in result.output
        assert record.engine["mean_of"] == [folder.name for folder in averaged.members]
        assert record.metrics == averaged.metrics
        assert "learning_rate" not in record.spec.trainer
        restored = weights_of(Path(path))
        for name, value in averaged.model.state_dict().items():
            assert torch.equal(restored[name], value)
    (row,) = invbench.table(table).to_dict("records")
    assert (row["method"], row["n"]) == ("erm+diwa", 2)
    assert row["mean"] == pytest.approx(table["test_accuracy"].mean())
    everything = invbench.load_results([tmp_path / "runs", out])
    assert {cell.method for cell in sweep_of_best(everything, None, "best_validation").cells} == {"erm"}
    with pytest.raises(UserError, match="there are only means of runs"):
        sweep_of_best(table, None, "best_validation")


def average(*folders: Path, out: Path, rule: str = "uniform") -> Any:
    return CliRunner().invoke(app, ["average", *map(str, folders), "--out", str(out), "--rule", rule])


def records_in(out: Path) -> list[Record]:
    return [record for folder in run_folders(out) if (record := folder.load_record())]


@pytest.mark.parametrize("rule", ["uniform", "restricted"])
def test_the_order_of_the_runs_does_not_matter(rule: str, tmp_path: Path) -> None:
    """Nor does which of them has the batches, or ties in validation accuracy."""
    settings = {"backbone.batch_norm": True, "backbone.name": "mlp", "trainer.epochs": None, "trainer.steps": 20}
    sizes = [
        {"trainer.batch_size": 8 * 2**number, "trainer.learning_rate": 0.01 + 0.01 * number} for number in range(3)
    ]
    runs = [tmp_path / invbench.run("erm", "spirals", settings=settings | size, out=tmp_path).run_id for size in sizes]
    for number, folders in enumerate((runs, runs[::-1])):
        assert average(*folders, out=tmp_path / f"out{number}", rule=rule).exit_code == 0
    (first,), (second,) = (records_in(tmp_path / f"out{number}") for number in range(2))
    assert first.spec == second.spec
    assert (first.metrics, first.engine) == (second.metrics, second.engine)


def test_means_of_other_runs_are_other_runs(runs: list[Path], tmp_path: Path) -> None:
    assert average(*runs[:2], out=tmp_path).exit_code == 0
    (path,) = tmp_path.iterdir()
    before = (path / "record.json").read_bytes()
    assert average(*runs[1::-1], out=tmp_path).exit_code == 0  # the same once more
    assert average(*runs[1:3], out=tmp_path).exit_code == 0
    assert len(records_in(tmp_path)) == 2
    assert (path / "record.json").read_bytes() == before
    assert len(invbench.table(invbench.load_results(tmp_path))) == 2
    left_out = CliRunner().invoke(app, ["average", *map(str, runs[:2]), str(tmp_path)])
    assert "2 of 4 runs are left out: not done, or means themselves" in left_out.output


def test_a_mean_of_runs_that_were_made_again_replaces_the_earlier_one(runs: list[Path], tmp_path: Path) -> None:
    members = [Path(shutil.copytree(folder, tmp_path / "runs" / folder.name)) for folder in runs[:2]]
    assert average(*members, out=tmp_path / "means").exit_code == 0
    (path,) = (tmp_path / "means").iterdir()
    before = (path / "record.json").read_bytes()
    shutil.copy(runs[2] / "checkpoint.safetensors", members[0])
    assert average(*members, out=tmp_path / "means").exit_code == 0
    assert (path / "record.previous.json").read_bytes() == before
    (record,) = records_in(tmp_path / "means")
    assert record.metrics == average_runs(members).metrics


def test_settings_of_the_network_are_no_settings_to_average_over(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 2}
    widths = [{"method.widths": {"rotation": width}} for width in (0.0, 3.0)]
    runs = [
        tmp_path / invbench.run("fixed_augmentation", "digits", settings=settings | width, out=tmp_path).run_id
        for width in widths
    ]
    with pytest.raises(UserError, match="the network of fixed_augmentation depends on its settings"):
        average_runs(runs)


def test_what_cannot_be_averaged_costs_no_other_mean(runs: list[Path], tmp_path: Path) -> None:
    """Runs that left an environment out, damaged checkpoints and records."""
    short: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 2}
    for held_out in (None, 0, 1):
        for rate in RATES[:2]:
            settings = short | {"trainer.held_out_environment": held_out, "trainer.learning_rate": rate}
            invbench.run("erm", "spirals", settings=settings, out=tmp_path)
    result = average(tmp_path, out=tmp_path / "means")
    assert result.exit_code == 0, result.output
    assert len(records_in(tmp_path / "means")) == 3
    damaged = [Path(shutil.copytree(folder, tmp_path / "damaged" / folder.name)) for folder in runs[:3]]
    (damaged[0] / "checkpoint.safetensors").write_bytes(b"half")
    (damaged[2] / "record.json").write_text("{")
    result = average(tmp_path, out=tmp_path / "means")
    assert result.exit_code == 0, result.output
    assert len(records_in(tmp_path / "means")) == 3
    assert "the checkpoint is damaged" in result.output
    assert f"left out: {damaged[2].resolve() / 'record.json'} is not JSON" in result.output.replace("\n", "")
    assert "the checkpoint is damaged" in str(average(tmp_path / "damaged", out=tmp_path / "means").exception)


def test_a_mean_of_idle_runs_is_said_to_be(tmp_path: Path) -> None:
    late: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 3, "method.anneal_steps": 9}
    for rate in RATES[:2]:
        invbench.run("vrex", "spirals", settings=late | {"trainer.learning_rate": rate}, out=tmp_path / "runs")
    assert average(tmp_path / "runs", out=tmp_path / "means").exit_code == 0
    members, (mean,) = records_in(tmp_path / "runs"), records_in(tmp_path / "means")
    assert mean.engine["inactive"] == members[0].engine["inactive"] != ""
    costs = [record.cost for record in members]
    assert mean.cost["wall_seconds"] == pytest.approx(sum(cost["wall_seconds"] for cost in costs))
    assert mean.cost["seconds_per_step"] == pytest.approx(sum(cost["seconds_per_step"] for cost in costs) / 2)


def test_nothing_to_average(runs: list[Path], tmp_path: Path) -> None:
    other = trained(tmp_path, seed=1)
    result = CliRunner().invoke(app, ["average", str(runs[0]), str(other)])
    assert "no two runs have one method, data, network and seed" in str(result.exception)


def test_without_validation_no_run_is_called_the_best(tmp_path: Path) -> None:
    """Which is the best in the test is not for choosing."""
    settings = SHORT | {"dataset.validation_share": 0}
    runs = [
        tmp_path
        / invbench.run("erm", "penguins", settings=settings | {"trainer.learning_rate": rate}, out=tmp_path).run_id
        for rate in RATES[:2]
    ]
    averaged = average_runs(runs)
    assert averaged.best is None
    assert set(averaged.members) == set(runs)
    result = CliRunner().invoke(app, ["average", *map(str, runs)])
    assert "no validation split to tell which run is the best" in result.output
    assert "best run" not in result.output
    with pytest.raises(UserError, match="rule restricted goes by the validation split"):
        average_runs(runs, "restricted")
    with pytest.raises(UserError, match="no rule 'restrict'; did you mean 'restricted'"):
        average_runs(runs, "restrict")


def test_a_run_counts_once(runs: list[Path]) -> None:
    with pytest.raises(UserError, match=f"run {runs[0].name} is given 2 times"):
        average_runs([runs[0], runs[1], runs[0]])
    result = CliRunner().invoke(app, ["average", str(runs[0]), str(runs[1]), str(runs[0])])
    assert "2 of 2 runs in the mean" in result.output


def test_a_folder_that_cannot_be_written(runs: list[Path], tmp_path: Path) -> None:
    """It is said ahead of the work."""
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        result = CliRunner().invoke(app, ["average", *map(str, runs[:2]), "--out", str(out)])
        assert isinstance(result.exception, UserError)
        assert "choose another folder with --out" in str(result.exception)
        assert "in the mean" not in result.output


@pytest.mark.parametrize("rule", ["uniform", "restricted"])
def test_networks_that_draw_and_have_buffers_of_their_own(tmp_path: Path, rule: Any) -> None:
    """Augerino's network; statistics of batch norm are those of one stream, whatever was drawn before."""
    settings = {"trainer.epochs": None, "trainer.steps": 4, "trainer.average": "mean"}
    runs = [
        tmp_path
        / invbench.run("augerino", "digits", settings=settings | {"trainer.learning_rate": rate}, out=tmp_path).run_id
        for rate in (1e-3, 1e-2)
    ]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(average_runs(runs, rule).metrics)
    assert results[0] == results[1]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["average", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "no run in" in str(result.exception)
