"""A method that cannot act is said to be idle: in the log, in the record."""

from pathlib import Path
from typing import Any

import pytest
from cells import run_until, small_settings

import invbench
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.runs.spec import LATE_STARTS
from invbench.system.provenance import sources_hash
from invbench.training.build import load_problem
from invbench.training.runner import run_one

LATE = "method.{} is {}, and the run has 4 steps, so method.{} never takes effect"
MEAN = "method.{}average_from is {}, and the run has 4 steps, so the mean of the weights never takes effect"
BEFORE = "; the penalty has method.{} ({}) throughout"


@pytest.mark.parametrize(
    ("method", "dataset", "settings", "reason"),
    [
        ("irmv1", "spirals", {"method__anneal_steps": 4},
         LATE.format("anneal_steps", 4, "weight") + BEFORE.format("weight_before", 1.0)),
        ("vrex", "spirals", {"method__anneal_steps": 9, "method__weight_before": 2.0, "method__weight": 0.0},
         LATE.format("anneal_steps", 9, "weight") + BEFORE.format("weight_before", 2.0)),
        ("vrex", "spirals", {"method__anneal_steps": 4, "method__weight_before": 0.0},
         LATE.format("anneal_steps", 4, "weight")),
        ("irmv1", "spirals", {"method__anneal_steps": 3}, ""),
        ("vrex", "spirals", {"method__anneal_steps": 3, "method__weight_before": 0.0}, ""),
        ("vrex", "spirals", {"method__anneal_steps": 1, "method__weight_before": 2.0, "method__weight": 0.0}, ""),
        ("irmv1", "spirals", {"method__anneal_steps": 9, "method__weight": 1.0}, ""),
        ("vrex+and_mask", "spirals", {"method__vrex__anneal_steps": 5},
         LATE.format("vrex.anneal_steps", 5, "vrex.weight") + BEFORE.format("vrex.weight_before", 1.0)),
        ("ib_irm", "spirals", {"method__anneal_steps": 0, "method__bottleneck_anneal_steps": 4}, ""),
        ("ib_irm", "spirals", {"method__anneal_steps": 9, "method__bottleneck_anneal_steps": 9},
         LATE.format("anneal_steps", 9, "weight") + BEFORE.format("weight_before", 1.0)),
        ("irm_games", "spirals", {}, ""),
        ("mutual_information", "mi_toy", {"method__pretrain_steps": 4},
         LATE.format("pretrain_steps", 4, "weight")),
        ("mutual_information", "mi_toy", {"method__pretrain_steps": 0}, ""),
        ("vrex", "spirals", {"method__weight": 0.0, "method__anneal_steps": 0},
         "the penalty was 0 in each of the 2 steps that were measured"),
        ("coral", "irm_regression", {},
         "the penalty does not depend on what is trained, so it moves nothing"),
        ("coral", "spirals", {}, ""),
        ("irmv1+coral", "irm_regression", {"method__irmv1__anneal_steps": 0},
         "the penalty of coral does not depend on what is trained, so it moves nothing"),
        ("sd+vrex", "spirals", {"method__sd__weight": 0.0, "method__vrex__anneal_steps": 9},
         LATE.format("vrex.anneal_steps", 9, "vrex.weight") + BEFORE.format("vrex.weight_before", 1.0)),
        ("iga", "irm_regression", {}, ""),
        ("erm", "spirals", {}, ""),
        ("and_mask", "spirals", {}, ""),
        ("coral", "digits", {"dataset__environments": "rotation_bins"}, ""),
        ("eqrm", "spirals", {"method__burn_in": 4}, LATE.format("burn_in", 4, "quantile")),
        ("eqrm", "spirals", {"method__burn_in": 3}, ""),
        ("eqrm+vrex", "spirals", {"method__eqrm__burn_in": 4, "method__vrex__anneal_steps": 0},
         LATE.format("eqrm.burn_in", 4, "eqrm.quantile")),
        ("trm", "spirals", {"method__warm_up": 4, "method__follow_weight": 0.0},
         LATE.format("warm_up", 4, "inner_steps")),
        ("trm", "spirals", {"method__warm_up": 3}, ""),
        ("ermpp", "spirals", {"method__head_steps": 0, "method__average_from": 4}, MEAN.format("", 4)),
        ("ermpp", "spirals", {"method__head_steps": 9, "method__average_from": 3}, ""),
        ("vrex+ermpp", "spirals", {"method__ermpp__head_steps": 0, "method__ermpp__average_from": 3,
                                   "method__vrex__anneal_steps": 9, "method__vrex__weight_before": 0.0},
         LATE.format("vrex.anneal_steps", 9, "vrex.weight")),
        ("eqrm+and_mask", "spirals", {"method__eqrm__burn_in": 4}, LATE.format("eqrm.burn_in", 4, "eqrm.quantile")),
        ("gga", "spirals", {"method__first_step": 4, "method__last_step": 9},
         LATE.format("first_step", 4, "candidates")),
        ("miro", "irm_regression", {}, "the penalty does not depend on what is trained, so it moves nothing"),
        ("miro", "spirals", {}, ""),
        # The evidence is computed in training only, and its method has no weight.
        ("marginal_likelihood+vrex", "colored_digits", {"method__vrex__anneal_steps": 0}, ""),
    ],
)  # fmt: skip
def test_penalties(method: str, dataset: str, settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    small = small_settings(method.partition("+")[0], dataset)
    config = resolve(method, dataset, 0, small | {"trainer.steps": 4, "trainer.evaluate_every": 2} | given)
    record = run_one(config, Options(out=tmp_path))
    assert record.engine.get("inactive", "") == reason
    log = RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8")
    late = method == "ib_irm"  # whose terms are each said, and which is inactive where neither acts
    assert log.count("warning: ") == (bool(reason) + late if late else bool(reason))
    assert reason in log


def test_a_part_whose_penalty_acts_is_not_inactive_beside_one_that_starts_late(tmp_path: Path) -> None:
    late = {"method.vrex.anneal_steps": 9, "method.vrex.weight_before": 0.0}
    small = small_settings("erm", "spirals") | {"trainer.steps": 4}
    record = run_one(resolve("vrex+coral", "spirals", 0, small | late), Options(out=tmp_path))
    assert record.engine.get("inactive", "") == ""
    log = RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8")
    assert "so method.vrex.weight never takes effect\n" in log


def test_each_term_that_starts_late_is_said(tmp_path: Path) -> None:
    """Also beside one whose two weights are the same, which acts."""
    late = {"method.weight": 1.0, "method.anneal_steps": 9, "method.bottleneck_anneal_steps": 9}
    small = small_settings("ib_irm", "spirals") | {"trainer.steps": 1}
    record = run_one(resolve("ib_irm", "spirals", 0, small | late), Options(out=tmp_path))
    assert record.engine.get("inactive", "") == ""
    log = RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8")
    assert "9, and the run has 1 step, so method.bottleneck_weight never takes effect" in log
    assert "method.weight never" not in log


def test_what_was_measured_before_a_run_was_resumed_counts(tmp_path: Path) -> None:
    small = small_settings("vrex", "spirals") | {"trainer.steps": 4, "trainer.evaluate_every": 2}
    config = resolve("vrex", "spirals", 0, small | {"method.weight": 0.0, "method.anneal_steps": 0})
    folder = RunFolder(tmp_path / config.spec.run_id)
    folder.path.mkdir()
    run_until(config, folder, 2, origin=f"{sources_hash(*config.classes)}-{load_problem(config).fingerprint}")
    record = run_one(config, Options(out=tmp_path))
    assert record.engine["inactive"] == "the penalty was 0 in each of the 2 steps that were measured"
    assert "continuing at step 2/4" in RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "dataset", "settings", "setting"),
    [
        ("irmv1", "spirals", {"anneal_steps": 5}, "anneal_steps"),
        ("mutual_information", "mi_toy", {"pretrain_steps": 5}, "pretrain_steps"),
        ("ib_irm", "spirals", {"anneal_steps": 0, "weight": 0.0, "bottleneck_anneal_steps": 5},
         "bottleneck_anneal_steps"),
    ],
)  # fmt: skip
def test_the_best_step_in_validation_may_come_before_the_penalty_acts(
    method: str, dataset: str, settings: dict[str, Any], setting: str, tmp_path: Path
) -> None:
    given = small_settings(method, dataset) | {"trainer.steps": 6, "trainer.evaluate_every": 1}
    config = resolve(method, dataset, 0, given | {f"method.{name}": value for name, value in settings.items()})
    record = run_one(config, Options(out=tmp_path))
    assert record.best_validation is not None
    (why,) = invbench.table(invbench.load_results(tmp_path), select="best_validation")["inactive"]
    weight = LATE_STARTS[setting][0]
    early = (
        f"the best step in validation comes before method.{setting} is over, so method.{weight} had not taken effect"
    )
    assert why == (early if record.best_validation.step <= 5 else "")
