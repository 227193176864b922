"""Runs that begin from another run: found, made once, resumed, refused; and what each of them begins with."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Bench
from torch import Tensor

import invbench
from invbench.components.clusters import clusters
from invbench.core.method import Outputs
from invbench.core.registry import METHODS
from invbench.core.stages import FirstStage
from invbench.errors import UserError
from invbench.methods.eiil import least_invariant
from invbench.methods.erm import ERM
from invbench.methods.jtt import JTT
from invbench.runs.folder import FIRST_STAGES, RunFolder
from invbench.runs.resolve import resolve
from invbench.sweeps.execute import first_stages
from invbench.training.build import load_problem
from invbench.training.restored import load_run

SHORT: dict[str, Any] = {"trainer.steps": 20, "backbone.width": 8, "trainer.batch_size": 16}
DATA = "grouped_digits"
STAGES = {
    "jtt": {},
    "crt": {},
    "dfr": {},
    "afr": {},
    "spare": {},
    "irmv1+eiil": {"method.eiil.steps": 50},
    "group_dro+george": {},
}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in ("dfr", "irmv1+eiil") else [pytest.mark.slow]) for name in STAGES]
)
def test_a_run_of_two_stages_is_made_resumed_and_restored(method: str, tmp_path: Path) -> None:
    settings = SHORT | STAGES[method]
    record = invbench.run(method, DATA, settings=settings, out=tmp_path)
    first = resolve(method, DATA, 0, settings).first_stage
    assert record.engine["first_stage"]["run_id"] == first.spec.run_id
    record_of_first = RunFolder(tmp_path / FIRST_STAGES / first.spec.run_id).read_record()
    assert record_of_first is not None and record_of_first.status == "done"
    restored = load_run(tmp_path / record.run_id)
    accuracy = record.metrics["test_accuracy"]
    split = restored.problem.splits["test"]
    with torch.no_grad():
        prediction = restored.model(split.x)
    prediction = prediction.prediction if isinstance(prediction, Outputs) else prediction
    assert (prediction.argmax(1) == split.y).double().mean().item() == pytest.approx(accuracy)


def test_the_first_stage_is_trained_once(tmp_path: Path) -> None:
    for method in ("crt", "jtt", "spare"):
        invbench.run(method, DATA, settings=SHORT | {"method.first_share": 0.5}, out=tmp_path)
    assert len(list((tmp_path / FIRST_STAGES).glob("*/record.json"))) == 1
    assert set(invbench.load_results(tmp_path)["method"]) == {"crt", "jtt", "spare"}, "no table counts it"
    assert set(invbench.load_results(tmp_path / FIRST_STAGES)["method"]) == {"erm"}


def test_settings_of_the_first_stage() -> None:
    settings = SHORT | {"method.first_share": 0.25, "method.first_settings": {"trainer.learning_rate": 0.5}}
    config = resolve("jtt", DATA, 3, settings)
    first = config.first_stage
    assert (first.spec.method, first.spec.seed, first.trainer.steps, first.trainer.learning_rate) == ("erm", 3, 5, 0.5)
    assert first.spec.dataset_settings == config.spec.dataset_settings
    assert first.spec.backbone_settings == config.spec.backbone_settings


def test_a_given_run_is_begun_from(tmp_path: Path) -> None:
    first = invbench.run("vrex", DATA, settings=SHORT | {"dataset.environment_from": "group"}, out=tmp_path / "given")
    same = {"dataset.environment_from": "group", "method.from_run": str(tmp_path / "given" / first.run_id)}
    record = invbench.run("crt", DATA, settings=SHORT | same, out=tmp_path)
    assert record.engine["first_stage"]["run_id"] == first.run_id
    with pytest.raises(UserError, match=r"has other data than crt/grouped_digits seed 1, which begins from it"):
        invbench.run("crt", DATA, seed=1, settings=SHORT | same, out=tmp_path)
    for nowhere in (tmp_path / "nowhere", tmp_path / "given" / first.run_id / "record.json"):
        with pytest.raises(UserError, match="which is no folder: method.from_run names it"):
            invbench.run("crt", DATA, settings=SHORT | {"method.from_run": str(nowhere)}, out=tmp_path)
    wider = SHORT | same | {"backbone.width": 9}
    with pytest.raises(UserError, match="network of vrex/grouped_digits seed 0 is another one"):
        invbench.run("crt", DATA, settings=wider, out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crt", "jtt", "irmv1+eiil"])
def test_a_killed_second_stage_ends_as_one_that_was_not(method: str, tmp_path: Path) -> None:
    """A real process, killed in its second stage; its record is that of a run that nobody stopped."""
    settings = SHORT | STAGES[method] | {"trainer.steps": 1000, "trainer.evaluate_every": 500}
    config = resolve(method, DATA, 0, settings)
    folder = tmp_path / config.spec.run_id
    given = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    command = [sys.executable, "-c", "from invbench.cli.entry import main; main()", "run", "-m", method, "-d", DATA]
    process = subprocess.Popen([*command, "--out", str(tmp_path), "--checkpoint-seconds", "0", "-q", *given])
    while process.poll() is None and not (folder / "checkpoint.safetensors").exists():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "record.json").exists(), "it was killed too late"
    resumed = invbench.run(method, DATA, settings=settings, out=tmp_path)
    assert "continuing at step" in (folder / "log.txt").read_text()
    whole = invbench.run(method, DATA, settings=settings, out=tmp_path / "whole")
    assert resumed.metrics == whole.metrics


def test_without_copies_just_train_twice_is_training_once(tmp_path: Path) -> None:
    plain = invbench.run("erm", DATA, settings=SHORT, out=tmp_path)
    twice = invbench.run("jtt", DATA, settings=SHORT | {"method.upweight": 1}, out=tmp_path)
    assert twice.metrics == plain.metrics


def test_a_head_that_is_all_of_the_network_and_sees_all_examples_is_trained_as_once(tmp_path: Path) -> None:
    settings = {"trainer.steps": 20, "trainer.batch_size": 16, "backbone.name": "linear"}
    plain = invbench.run("erm", DATA, settings=settings, out=tmp_path)
    assert invbench.run("crt", DATA, settings=settings, out=tmp_path).metrics == plain.metrics


def test_the_error_set_is_copied() -> None:
    problem = load_problem(DATA)
    train = problem.splits["train"]
    prediction = torch.nn.functional.one_hot(train.y, 2).double()
    prediction[:7] = prediction[:7].flip(1)
    first = FirstStage(problem, torch.nn.Identity(), lambda split: Outputs(prediction))
    second = JTT(upweight=5).begin(first, problem, np.random.default_rng(0))
    assert second.examples is not None
    assert len(second.examples) == len(train) + 4 * 7
    assert second.facts["error_set"] == 7
    assert torch.equal(second.examples.inputs()[:5], train.inputs()[:1].expand(5, -1, -1, -1))


@pytest.mark.parametrize("method", ["crt", "dfr", "afr"])
def test_only_the_head_is_trained(method: str, tmp_path: Path) -> None:
    record = invbench.run(method, DATA, settings=SHORT | STAGES[method], out=tmp_path)
    second = load_run(tmp_path / record.run_id).model
    first = load_run(tmp_path / FIRST_STAGES / record.engine["first_stage"]["run_id"]).model
    body: dict[str, Tensor] = {k.replace(".module.", "."): v for k, v in second.state_dict().items() if "head" not in k}
    for name, value in first.state_dict().items():
        if "head" not in name:
            assert torch.equal(body[name], value), "the body is as it was"
    assert record.engine["parameters"] == sum(p.numel() for p in second.head.parameters())  # type: ignore[union-attr]


def test_what_compares_environments_is_refused_ahead_of_a_first_stage_that_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dfr trains on examples without environments, so vrex has none to compare"):
        invbench.run("dfr+vrex", DATA, settings=SHORT, out=tmp_path)
    with pytest.raises(UserError, match="so adversary has none to compare"):
        invbench.run("dfr+adversary", "corrupted_digits", settings=SHORT, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_dfr_is_trained_on_balanced_examples_that_selection_does_not_see(tmp_path: Path) -> None:
    record = invbench.run("dfr", DATA, settings=SHORT, out=tmp_path)
    problem = load_run(tmp_path / record.run_id).problem
    examples, validation = problem.examples, problem.splits["validation"]
    assert examples is not None and examples.attribute is not None
    assert len(set(torch.bincount(2 * examples.y + examples.attribute).tolist())) == 1
    rows = [{x.numpy().tobytes() for x in split.inputs()} for split in (examples, validation)]
    assert not rows[0] & rows[1]
    assert len(validation) == 150


@pytest.mark.parametrize("method", ["jtt", "dfr", "afr"])
def test_metrics_are_those_of_the_data_not_of_the_second_stage(method: str, tmp_path: Path) -> None:
    """Shares of groups in training, and the metrics of the training split."""
    record = invbench.run(method, DATA, settings=SHORT, out=tmp_path)
    problem = load_problem(resolve(method, DATA, 0, SHORT))
    shares = np.array(problem.group_counts["train"]) / len(problem.splits["train"])
    accuracies = [record.metrics[f"test_accuracy_group{group}"] for group in range(4)]
    assert record.metrics["test_accuracy_group_weighted"] == pytest.approx(shares @ accuracies)
    right = record.metrics["train_accuracy"] * len(problem.splits["train"])
    assert right == pytest.approx(round(right)), "a share of the training split"


def test_batches_are_as_large_as_what_a_first_stage_leaves(tmp_path: Path) -> None:
    large = SHORT | {"trainer.batch_size": 200}
    record = invbench.run("dfr", DATA, settings=large, out=tmp_path)
    assert record.engine["first_stage"]["examples"] < 200
    with pytest.raises(UserError, match="trainer.batch_size is 2000"):
        invbench.run("jtt", DATA, settings=SHORT | {"trainer.batch_size": 2000}, out=tmp_path)


def test_eiil_finds_the_signs_of_the_slopes() -> None:
    """The two environments that differ most are those of examples with slopes of one sign."""
    g = torch.randn(200, dtype=torch.float64)
    logits = least_invariant(g, torch.randn(200, dtype=torch.float64), 4000, 1e-2)
    inside = logits > 0
    assert torch.equal(inside, g > 0) or torch.equal(inside, g < 0)
    w = logits.sigmoid()
    assert (w * g).mean() ** 2 + ((1 - w) * g).mean() ** 2 > 0.9 * (
        g.clamp(min=0).mean() ** 2 + g.clamp(max=0).mean() ** 2
    )


def test_eiils_gradient_is_that_of_its_objective() -> None:
    torch.manual_seed(0)
    g, first = torch.randn(50), torch.randn(50, dtype=torch.float64)
    logits = first.clone().requires_grad_()
    adam = torch.optim.Adam([logits], 1e-2)
    for _ in range(200):
        adam.zero_grad()
        w = logits.sigmoid()
        (-((w * g).mean() ** 2 + ((1 - w) * g).mean() ** 2) / 2).backward()
        adam.step()
    torch.testing.assert_close(least_invariant(g, first, 200, 1e-2), logits.detach(), rtol=1e-10, atol=1e-10)


def test_groups_are_inferred_on_the_command_line(bench: Bench, tmp_path: Path) -> None:
    given = ["--set", "trainer.steps=5", "--set", "trainer.batch_size=null", "--set", "method.eiil.steps=20"]
    status, _, err = bench(
        "run", "-m", "irmv1", "--infer-groups", "eiil", "-d", DATA, "-q", "--out", str(tmp_path), *given
    )
    assert status == 0, err
    runs = invbench.load_results(tmp_path)
    assert set(runs["method"]) == {"irmv1+eiil"}


def test_what_the_first_stage_needs_is_said() -> None:
    with pytest.raises(UserError, match="method afr needs second_stage.*; set dataset.second_stage_share=0.2"):
        resolve("afr", DATA, 0, {"dataset.second_stage_share": 0.0})
    with pytest.raises(UserError, match="jtt and crt both replace the first stage"):
        resolve("jtt+crt", DATA)


def test_a_first_stage_that_is_another_one_now(tmp_path: Path) -> None:
    first = invbench.run("erm", DATA, settings=SHORT, out=tmp_path / "given")
    folder = tmp_path / "given" / first.run_id
    settings = SHORT | {"method.from_run": str(folder)}
    second = invbench.run("crt", DATA, settings=settings, out=tmp_path)
    other = invbench.run("erm", DATA, settings=SHORT | {"trainer.learning_rate": 0.1}, out=tmp_path / "other")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "other" / other.run_id, folder)
    with pytest.raises(UserError, match="is not the one that it began from; run it again"):
        load_run(tmp_path / second.run_id)
    again = invbench.run("crt", DATA, settings=settings, out=tmp_path)
    assert again.engine["first_stage"]["run_id"] == other.run_id
    assert again.metrics != second.metrics


def test_a_first_stage_that_is_gone_is_made_again(tmp_path: Path) -> None:
    record = invbench.run("jtt", DATA, settings=SHORT, out=tmp_path)
    shutil.rmtree(tmp_path / FIRST_STAGES)
    with pytest.raises(UserError, match="which is no folder: repeat the command that made the run"):
        load_run(tmp_path / record.run_id)
    assert invbench.run("jtt", DATA, settings=SHORT, out=tmp_path).finished == record.finished, "it was done"
    load_run(tmp_path / record.run_id)


def test_a_first_stage_that_was_made_anew_and_differs_makes_the_second_anew(tmp_path: Path) -> None:
    """As by other code of a third party's method; the file of the second stage's method is the same."""
    record = invbench.run("jtt", DATA, settings=SHORT, out=tmp_path)
    first = RunFolder(tmp_path / FIRST_STAGES / record.engine["first_stage"]["run_id"])
    other = invbench.run("erm", DATA, settings=SHORT | {"trainer.learning_rate": 0.1}, out=tmp_path / "other")
    shutil.copy(tmp_path / "other" / other.run_id / "checkpoint.safetensors", first.checkpoint)
    first.record.write_text(first.record.read_text().replace(first.load_record().finished, other.finished))
    again = invbench.run("jtt", DATA, settings=SHORT, out=tmp_path)
    assert again.engine["first_stage"]["weights_sha256"] != record.engine["first_stage"]["weights_sha256"]
    load_run(tmp_path / record.run_id)


def test_the_code_of_the_first_stage_belongs_to_a_run(tmp_path: Path) -> None:
    with METHODS.temporary():
        METHODS.register("another_erm")(type("AnotherERM", (ERM,), {"__module__": "elsewhere"}))
        config = resolve("crt", DATA, 0, SHORT | {"method.first_method": "jtt"})
        assert [cls.__name__ for cls in config.classes].count("ERM") == 1, "of the first stage's first stage"
        config = resolve("crt", DATA, 0, SHORT | {"method.first_method": "another_erm"})
        assert "AnotherERM" in [cls.__name__ for cls in config.classes]


def test_first_stages_of_first_stages_are_counted_and_shared(tmp_path: Path) -> None:
    settings = SHORT | {"method.first_method": "jtt"}
    config = resolve("crt", DATA, 0, settings)
    assert [one.spec.method for one in first_stages([config], tmp_path)] == ["jtt", "erm"]
    invbench.run("crt", DATA, settings=settings, out=tmp_path)
    assert first_stages([config], tmp_path) == []
    assert {RunFolder(path).load_record().spec.method for path in (tmp_path / FIRST_STAGES).iterdir()} == {"jtt", "erm"}
    for path in (tmp_path / FIRST_STAGES).glob("*/checkpoint.safetensors"):
        path.unlink()
    assert len(first_stages([config], tmp_path)) == 2


def test_both_stages_have_the_same_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method.first_settings cannot change dataset.label_noise"):
        invbench.run(
            "jtt", DATA, settings=SHORT | {"method.first_settings": {"dataset.label_noise": 0.1}}, out=tmp_path
        )
    with pytest.raises(UserError, match="leaves none for one side"):
        invbench.run("dfr", DATA, settings=SHORT | {"method.share": 0.001}, out=tmp_path)
    with pytest.raises(UserError, match="too small to set an example aside"):
        invbench.run("afr", DATA, settings=SHORT | {"dataset.second_stage_share": 1e-4}, out=tmp_path)


def test_a_first_stage_whose_weights_are_damaged_or_gone_is_made_again(tmp_path: Path) -> None:
    first = tmp_path / FIRST_STAGES / resolve("jtt", DATA, 0, SHORT).first_stage.spec.run_id / "checkpoint.safetensors"
    record = invbench.run("jtt", DATA, settings=SHORT, out=tmp_path)
    whole = first.read_bytes()
    for content in (whole[:100], None):
        first.unlink()
        if content is not None:
            first.write_bytes(content)
        other = invbench.run("jtt", DATA, settings=SHORT | {"method.upweight": 3}, out=tmp_path)
        assert other.status == "done"
        shutil.rmtree(tmp_path / other.run_id)
        first.write_bytes(whole[:100])
        assert invbench.run("jtt", DATA, settings=SHORT, out=tmp_path).metrics == record.metrics
        load_run(tmp_path / record.run_id)


def test_a_first_stage_may_bring_its_own_network() -> None:
    config = resolve("jtt", DATA, 0, SHORT | {"method.first_method": "steerable"}).first_stage
    assert config.spec.method == "steerable"


@pytest.mark.parametrize("method", ["dfr", "afr"])
def test_a_body_is_kept_through_several_stages(method: str, tmp_path: Path) -> None:
    record = invbench.run(method, DATA, settings=SHORT | {"method.first_method": "crt"}, out=tmp_path)
    body = load_run(tmp_path / record.run_id).model.features.module.state_dict()  # type: ignore[union-attr, operator]
    runs = [folder for folder in (tmp_path / FIRST_STAGES).rglob("*") if (folder / "record.json").exists()]
    assert len(runs) == 2, "ERM, and what trained its head again"
    for folder in runs:
        first = load_run(folder).model.features
        theirs = first.module if hasattr(first, "module") else first
        for name, value in theirs.state_dict().items():  # type: ignore[union-attr, operator]
            assert torch.equal(body[name], value)


def test_clusters_of_points_with_an_outlier() -> None:
    points = np.random.default_rng(0).normal(size=(5000, 3))
    points[17] = 1e4
    for seed in range(3):
        numbers, silhouette = clusters(points, 3, seed)
        assert len(numbers) == 5000
        assert -1 <= silhouette <= 1
    assert clusters(np.arange(100.0)[:, None] * 1e-200, 4, 0)[1] == 0
    with pytest.raises(UserError, match="are not finite"):
        clusters(np.full((5, 2), np.nan), 3, 0)


def test_arrays_become_groups_that_are_fitted() -> None:
    rng = np.random.default_rng(0)
    y, a = rng.integers(0, 2, (2, 200))
    x = np.stack([y, a], 1) + rng.normal(0, 0.1, (200, 2))
    few: dict[str, Any] = {"trainer.steps": 300, "trainer.batch_size": None, "trainer.learning_rate": 0.01}
    groups = few | {"dataset.environment_from": "group"}
    predictor = invbench.fit("group_dro", x, y, attribute=a, settings=groups)
    assert (predictor.predict(x) == y.astype(str)).mean() > 0.95
    with pytest.raises(UserError, match="'dataset.environment_from': 'group'} makes them of the attribute"):
        invbench.fit("group_dro", x, y, attribute=a, settings=few)
