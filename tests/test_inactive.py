"""A penalty that cannot act is said to be none: in the log, in the record."""

from pathlib import Path
from typing import Any

import pytest
from cells import small_settings

from invbench.records import RunFolder
from invbench.runner import Options, run_cell
from invbench.spec import resolve

REPEATED = "method.{} is {}, and the run has 4 steps, so the penalty never has its weight"


@pytest.mark.parametrize(
    ("method", "dataset", "settings", "reason"),
    [
        ("irmv1", "spirals", {"method__anneal_steps": 4}, REPEATED.format("anneal_steps", 4)),
        ("irmv1", "spirals", {"method__anneal_steps": 3}, ""),
        ("irmv1", "spirals", {"method__anneal_steps": 9, "method__weight": 1.0}, ""),
        ("vrex+and_mask", "spirals", {"method__vrex__anneal_steps": 5}, REPEATED.format("vrex.anneal_steps", 5)),
        ("ib_irm", "spirals", {"method__anneal_steps": 0, "method__bottleneck_anneal_steps": 4}, ""),
        ("ib_irm", "spirals", {"method__anneal_steps": 9, "method__bottleneck_anneal_steps": 9},
         REPEATED.format("anneal_steps", 9)),
        ("irm_games", "spirals", {}, ""),
        ("mutual_information", "mi_toy", {"method__pretrain_steps": 4}, REPEATED.format("pretrain_steps", 4)),
        ("mutual_information", "mi_toy", {"method__pretrain_steps": 0}, ""),
        ("vrex", "spirals", {"method__weight": 0.0, "method__anneal_steps": 0},
         "the penalty was 0 in each of the 2 steps that were measured"),
        ("coral", "irm_regression", {},
         "the penalty does not depend on what is trained, so the run is the same without it"),
        ("coral", "spirals", {}, ""),
        ("iga", "irm_regression", {}, ""),
        ("erm", "spirals", {}, ""),
        ("and_mask", "spirals", {}, ""),
        ("coral", "digits", {"dataset__environments": "rotation_bins"}, ""),
    ],
)  # fmt: skip
def test_penalties(method: str, dataset: str, settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    small = small_settings(method.partition("+")[0], dataset)
    cell = resolve(method, dataset, 0, small | {"trainer.steps": 4, "trainer.evaluate_every": 2} | given)
    record = run_cell(cell, Options(out=tmp_path))
    assert record.engine.get("inactive", "") == reason
    log = RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8")
    late = method == "ib_irm"  # whose terms are each said, and which is inactive where neither acts
    assert log.count("warning: ") == (bool(reason) + late if late else bool(reason))
    assert reason in log
