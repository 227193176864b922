"""Sweeps: what a file says is run, all that is not done, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest
from cells import SMALL
from conftest import Bench

from invbench.configuration import sweep_names
from invbench.errors import UserError
from invbench.results import load_results
from invbench.sweep_file import Sweep, parse_seeds


def written(path: Path, cells: str, seeds: str = "0-1") -> str:
    """A file of quick runs."""
    values = SMALL["spirals"] | {"trainer.steps": 3}
    lines = "\n".join(f"  {name}: {json.dumps(value)}" for name, value in values.items())
    file = path / "mine.yaml"
    file.write_text(f"seeds: {seeds}\nset:\n{lines}\ncells:\n{cells}")
    return str(file)


def sweep(**values: Any) -> Sweep:
    return Sweep.parse(values, "sweep test")


def test_items_are_products() -> None:
    found = sweep(
        seeds="0-1",
        set={"trainer.steps": 7, "trainer.batch_size": 16},
        cells=[
            {"method": ["erm", "vrex"], "dataset": ["spirals", "digits"], "set": {"trainer.steps": 9}},
            {
                "method": "and_mask",
                "dataset": "spirals",
                "grid": {"method.threshold": [0.1, 0.2], "method.strict": [True]},
            },
        ],
        tiers={"tiny": {"seeds": [5], "set": {"trainer.steps": 1}}},
    )
    runs = found.runs()
    assert len(runs) == 2 * (4 + 2)
    assert [run.spec.seed for run in runs] == [0] * 6 + [1] * 6
    assert {run.trainer.steps for run in runs} == {7, 9}
    assert all(run.trainer.batch_size == 16 for run in runs)
    thresholds = [run.spec.method_settings["and_mask"]["threshold"] for run in runs if run.spec.method == "and_mask"]
    assert thresholds == [0.1, 0.2, 0.1, 0.2]
    tiny = found.runs("tiny")
    assert {(run.spec.seed, run.trainer.steps) for run in tiny} == {(5, 1)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cells": []}, "cells"),
        ({"cells": [{"method": "erm"}]}, "dataset"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "sets": {}}, "did you mean 'set'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "tiers": {"full": {}}}, "'full' is the name"),
        ({"cells": [{"method": "ermm", "dataset": "spirals"}]}, "did you mean 'erm'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "seeds": "3-1"}, "write ranges"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(**values).runs()


def test_unknown_names() -> None:
    with pytest.raises(
        UserError, match="no sweep 'irm_regresion', and no file of that name; did you mean 'irm_regression'"
    ):
        Sweep.read("irm_regresion")
    with pytest.raises(UserError, match="no tier 'smal'; did you mean 'small'"):
        Sweep.read("irm_regression").runs("smal")


@pytest.mark.parametrize("seeds", ["0-2", [0, 1, 2], "0,1-2"])
def test_seeds(seeds: Any) -> None:
    assert parse_seeds(seeds) == [0, 1, 2]


@pytest.mark.parametrize("name", sweep_names())
def test_every_sweep_of_the_package_resolves(name: str) -> None:
    found = Sweep.read(name)
    assert {"small"} <= set(found.tiers)
    whole, small = found.runs(), found.runs("small")
    assert len({run.spec.run_id for run in whole}) == len(whole)
    assert len({run.spec.run_id for run in small}) == len(small) <= len(whole)


def test_the_command_carries_it_out_and_continues(tmp_path: Path, bench: Bench) -> None:
    file = written(tmp_path, "  - method: [erm, vrex]\n    dataset: spirals\n")
    out = tmp_path / "out"
    status, shown, _ = bench("sweep", file, "--out", str(out), "--dry-run")
    assert status == 0
    assert shown.count("to do") == 4
    assert not out.exists()
    status, _, said = bench("sweep", file, "--out", str(out))
    assert status == 0
    assert "4 of 4 runs done" in said
    assert list(load_results(out)["status"]) == ["done"] * 4
    assert bench("sweep", file, "--out", str(out), "--dry-run")[1].count("done") == 4
    before = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    bench("sweep", file, "--out", str(out))
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, bench: Bench) -> None:
    cells = (
        "  - method: erm\n    dataset: spirals\n    set: {trainer.learning_rate: 1.0e+30, trainer.optimizer: sgd}\n"
        "  - method: erm\n    dataset: spirals\n"
    )
    file = written(tmp_path, cells, seeds="0")
    status, _, said = bench("sweep", file, "--out", str(tmp_path / "out"))
    assert status == 1
    assert "1 of 2 runs done, 1 failed (--rerun failed)" in said
    assert "1 of 2 runs are not done" in said
