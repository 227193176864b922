"""Sweeps: what a file says is run, all that is not done, and no more."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from cells import SMALL
from conftest import Bench

import invbench
from invbench.cli.sweep import seconds_of
from invbench.core.registry import METHODS
from invbench.core.settings import LogUniform
from invbench.errors import UserError
from invbench.results.load import load_results
from invbench.runs.commands import parse_seeds
from invbench.runs.config import sweep_names
from invbench.runs.resolve import RunConfig, resolve
from invbench.sweeps import execute as sweeping
from invbench.sweeps.definition import Sweep, Tier
from invbench.sweeps.engines.local import LocalResources
from invbench.sweeps.monitor import duration
from invbench.sweeps.search import Judge, OptunaSearch, _draw, optuna_trials


def written(path: Path, cells: str, seeds: str = "0-1") -> str:
    """Write a sweep file of quick runs and return its path."""
    values = SMALL["spirals"] | {"trainer.steps": 3}
    lines = "\n".join(f"  {name}: {json.dumps(value)}" for name, value in values.items())
    file = path / "mine.yaml"
    file.write_text(f"seeds: {seeds}\nset:\n{lines}\ncells:\n{cells}")
    return str(file)


def sweep(**values: Any) -> Sweep:
    return Sweep.parse(values, "sweep test")


def test_items_are_products() -> None:
    plan = sweep(
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
    runs = plan.runs()
    assert len(runs) == 2 * (4 + 2)
    assert [run.spec.seed for run in runs] == [0] * 6 + [1] * 6
    assert {run.trainer.steps for run in runs} == {7, 9}
    assert all(run.trainer.batch_size == 16 for run in runs)
    thresholds = [run.spec.method_settings["and_mask"]["threshold"] for run in runs if run.spec.method == "and_mask"]
    assert thresholds == [0.1, 0.2, 0.1, 0.2]
    tiny = plan.runs("tiny")
    assert {(run.spec.seed, run.trainer.steps) for run in tiny} == {(5, 1)}


def test_all_methods_that_a_dataset_allows() -> None:
    methods = {run.spec.method for run in sweep(cells=[{"method": "*", "dataset": "spirals"}]).runs()}
    assert {"erm", "and_mask", "irmv1"} <= methods
    assert not {"steerable", "augerino", "oracle"} & methods


def test_the_smoke_sweep_has_every_method() -> None:
    assert {run.spec.method.split("+")[-1] for run in Sweep.read("smoke").runs()} == set(METHODS.entries())


def drawn(settings: list[str], trials: int = 8, **more: Any) -> list[dict[str, Any]]:
    """Return the settings that a random search chose."""
    search = {"trials": trials, "settings": settings}
    runs = sweep(cells=[{"method": "and_mask", "dataset": "spirals", "random": search}], **more).runs()
    return [{name: run.spec.flat()[name] for name in settings} for run in runs]


def test_random_search_draws_from_each_setting_s_range() -> None:
    rate, threshold = "trainer.learning_rate", "method.threshold"
    draws = drawn([rate, threshold], trials=200)
    logs = [math.log10(one[rate]) for one in draws]
    assert -4.5 <= min(logs) < -4.4
    assert -1.6 < max(logs) <= -1.5, "the recipe's 0.01 lies well inside"
    assert scipy.stats.kstest(logs, "uniform", (-4.5, 3)).pvalue > 0.01
    assert scipy.stats.kstest([one[threshold] for one in draws], "uniform").pvalue > 0.01
    assert abs(scipy.stats.pearsonr(logs, [one[threshold] for one in draws])[0]) < 0.2
    assert {one["method.rule"] for one in drawn(["method.rule"], 30)} == {"mask", "geometric_mean"}


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"trainer.optimizer": "adam", "trainer.learning_rate": 1e-3}, -4.5, -2.5),
        ({"trainer.optimizer": "sgd", "trainer.learning_rate": 1e-3}, -4, 0),
        ({"trainer.optimizer": "adam", "trainer.learning_rate": 1e-6}, -6.5, -2.5),
    ],
)
def test_learning_rates_fit_the_optimiser(settings: dict[str, Any], low: float, high: float) -> None:
    rates = [one[RATE] for one in drawn([RATE], trials=100, set=settings)]
    assert low <= math.log10(min(rates)) < low + 0.2
    assert high - 0.2 < math.log10(max(rates)) <= high


@pytest.mark.parametrize("settings", [{"trainer.steps": 100}, {"trainer.steps": None, "trainer.epochs": 25}])
def test_annealing_ends_within_the_run(settings: dict[str, Any]) -> None:
    """Of 100 steps, said as such or as 25 epochs of 4 batches."""
    search = {"trials": 100, "settings": ["method.anneal_steps"]}
    for method, least in (("irmv1", 10), ("fishr", 60)):
        runs = sweep(cells=[{"method": method, "dataset": "spirals", "random": search, "set": settings}]).runs()
        steps = [run.spec.flat()["method.anneal_steps"] for run in runs]
        assert min(steps) >= 1
        assert max(steps) <= 100
        assert len(set(steps)) >= least


def test_a_sweep_may_give_ranges_of_its_own() -> None:
    """A list of values, for a setting without a range too; or bounds, in the place of the setting's own."""
    size, rate = "trainer.batch_size", "trainer.learning_rate"
    ranges = {size: [8, 16], rate: {"low": 1, "high": 10}}
    cell = {"method": "and_mask", "dataset": "spirals", "random": {"trials": 60, "ranges": ranges}}
    trials = [run.spec.flat() for run in sweep(cells=[cell]).runs()]
    assert {trial[size] for trial in trials} == {8, 16}
    assert all(1 <= trial[rate] <= 10 for trial in trials)
    assert len({trial["method.threshold"] for trial in trials}) > 50, "and all others from theirs"


def test_another_setting_or_trial_moves_no_other() -> None:
    rate, threshold = "trainer.learning_rate", "method.threshold"
    alone, both = drawn([rate]), drawn([threshold, rate])
    assert [one[rate] for one in alone] == [one[rate] for one in both]
    assert drawn([rate], 20)[:8] == alone
    assert drawn([rate], tiers={"tiny": {"trials": 2}}) == alone


def test_drawn_numbers_have_four_digits() -> None:
    trials = drawn(["trainer.learning_rate", "method.threshold"], 50)
    assert all(float(f"{value:.4g}") == value for trial in trials for value in trial.values())
    rates = [trial["trainer.learning_rate"] for trial in trials]
    assert 10**-4.5 <= min(rates) < max(rates) <= 10**-1.5, "within the range"
    whole = {_draw(LogUniform(1.6, 9.4), True, "steps", trial) for trial in range(100)}
    assert (min(whole), max(whole)) == (2, 9), "of whole numbers those in the range"


def test_by_default_all_of_method_and_trainer_are_searched() -> None:
    search = {"method": "and_mask", "dataset": "spirals", "random": {"trials": 2}}
    first, second = sweep(cells=[search]).runs()
    differing = {name for name, value in first.spec.flat().items() if second.spec.flat()[name] != value}
    assert {"trainer.learning_rate", "trainer.weight_decay", "method.threshold"} <= differing
    assert all(name.startswith(("method.", "trainer.")) for name in differing)
    assert len(sweep(cells=[search], tiers={"tiny": {"trials": 1}}).runs("tiny")) == 1


needs_optuna = pytest.mark.skipif(not find_spec("optuna"), reason="the extra optuna is not installed")
RATE = "trainer.learning_rate"
LED: dict[str, Any] = {
    "method": "and_mask",
    "dataset": "spirals",
    "optuna": {"trials": 12, "at_once": 2, "metric": "m", "direction": "minimize", "settings": [RATE]},
}


def search_runs(known: dict[str, float], **more: Any) -> list[RunConfig]:
    """Return the runs of a search that knows the results of these ids."""
    return sweep(cells=[LED], **more).runs(results=lambda run_id: {"m": known[run_id]} if run_id in known else None)


@needs_optuna
def test_results_lead_a_search() -> None:
    known: dict[str, float] = {}
    while left := [run for run in search_runs(known, seeds="0-2") if run.spec.run_id not in known]:
        assert len(left) == 2 * 3, "a round of two trials, three seeds each"
        known |= {run.spec.run_id: abs(math.log10(run.trainer.learning_rate) + 2) for run in left}
    assert len(known) == 12 * 3
    some = dict(list(known.items())[:6])
    assert [run.spec for run in search_runs(some)] == [run.spec for run in search_runs(known)[:4]], (
        "and continue where they were left"
    )


@needs_optuna
@pytest.mark.parametrize(("direction", "best"), [("minimize", -3.5), ("maximize", -1.5)])
def test_trials_get_better(direction: str, best: float) -> None:
    """From the tenth on they are not random any more."""
    search = OptunaSearch.model_validate(LED["optuna"] | {"trials": 40, "direction": direction})
    config = resolve("and_mask", "spirals")
    trials = optuna_trials(config, search, lambda trial: abs(math.log10(trial[RATE]) + 3.5))
    logs = [math.log10(trial[RATE]) for trial in trials]
    far = [abs(log - best) for log in logs]
    assert sum(far[-10:]) < 0.5 * sum(far[:10])


@needs_optuna
def test_a_search_goes_on_where_runs_failed_or_are_left_out() -> None:
    none: dict[str, float] = {}
    assert len(sweep(cells=[LED]).runs(results=lambda run_id: none)) == 12
    assert {run.spec.seed for run in search_runs({}, seeds="0-1", exclude=[{"seed": 1}])} == {0}
    first = search_runs({}, seeds="0-1", exclude=[{"seed": 1}])
    assert len(search_runs({run.spec.run_id: 1.0 for run in first}, seeds="0-1", exclude=[{"seed": 1}])) == 4


@needs_optuna
def test_a_search_that_is_carried_out(tmp_path: Path, bench: Bench) -> None:
    file = written(
        tmp_path,
        "  - {method: erm, dataset: spirals, optuna: "
        "{trials: 3, at_once: 2, metric: validation_loss, direction: minimize, settings: [trainer.learning_rate]}}",
    )
    command = ["sweep", file, "--workers", "1", "--memory-floor", "0", "--out", str(tmp_path / "out")]
    assert (
        "4 of 4 runs are left; nothing is known of what 4 of them take; their results lead to further trials"
        in (bench(*command, "--dry-run")[1])
    )
    status, _, said = bench(*command)
    assert status == 0, said
    assert "6 of 6 runs done" in said
    assert load_results(tmp_path / "out")[RATE].nunique() == 3
    assert "0 of 6 runs are left\n" in bench(*command, "--dry-run")[1]
    wrong = Path(file)
    wrong.write_text(wrong.read_text().replace("validation_loss", "validation_los"))
    assert "metric 'validation_los' is none of the runs'; did you mean 'validation_loss'" in bench(*command)[2]


def test_optuna_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'invbench\[optuna\]'"):
        search_runs({})


def test_rules_keep_and_leave_out() -> None:
    cells = [{"method": ["erm", "vrex", "irmv1"], "dataset": "spirals", "grid": {"trainer.steps": [1, 2]}}]

    def kept(**rules: Any) -> set[tuple[str, int | None, int]]:
        return {(r.spec.method, r.trainer.steps, r.spec.seed) for r in sweep(cells=cells, seeds="0-1", **rules).runs()}

    assert len(kept()) == 12
    assert kept(exclude=[{"method": "vrex"}, {"trainer.steps": 2}]) == {
        (m, 1, s) for m in ("erm", "irmv1") for s in (0, 1)
    }
    assert kept(include=[{"method": ["erm", "vrex"], "seed": 1}]) == {
        (m, n, 1) for m in ("erm", "vrex") for n in (1, 2)
    }
    assert kept(include=[{"method.anneal_steps": 500}], exclude=[{"seed": 0, "trainer.steps": 1}]) == {
        (m, n, s) for m in ("vrex", "irmv1") for n, s in ((1, 1), (2, 0), (2, 1))
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cells": []}, "cells"),
        ({"cells": [{"method": "erm"}]}, "dataset"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "sets": {}}, "did you mean 'set'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "tiers": {"full": {}}}, "'full' is the name"),
        ({"cells": [{"method": "ermm", "dataset": "spirals"}]}, "did you mean 'erm'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "seeds": "3-1"}, "write ranges|runs backwards"),
        ({"cells": [{"method": "erm", "dataset": "spirals", "random": {}}]}, "trials"),
        (
            {"cells": [{"method": "erm", "dataset": "spirals", "random": {"trials": 1, "settings": ["trainer.stps"]}}]},
            "search over 'trainer.stps', which has no search range",
        ),
        (
            {
                "cells": [
                    {"method": "erm", "dataset": "spirals", "random": {"trials": 1, "ranges": {"trainer.stps": [1]}}}
                ]
            },
            "search over 'trainer.stps', which is no setting",
        ),
        (
            {
                "cells": [
                    {
                        "method": "erm",
                        "dataset": "spirals",
                        "random": {"trials": 1, "ranges": {"trainer.steps": {"low": 9, "high": 1}}},
                    }
                ]
            },
            "low is 9, above high, 1",
        ),
        ({"cells": [LED | {"random": {"trials": 1}}]}, "give each a cell of its own"),
        ({"cells": [LED | {"optuna": LED["optuna"] | {"metric": "test_accuracy"}}]}, "would choose by the test set"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "exclude": [{"metod": "erm"}]}, "did you mean 'method'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "exclude": [{"method": "fsh"}]}, "did you mean 'fish'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "exclude": [{"dataset": "digts"}]}, "mean 'digits'"),
        ({"cells": [{"method": "erm", "dataset": "spirals"}], "exclude": [{"seed": 0}]}, "leave no run"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(**values).runs()


ONE: dict[str, Any] = {"method": "erm", "dataset": "spirals"}
THOUSAND = list(range(1, 1001))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cells": [ONE], "seeds": "0-1000000000"}, "seeds 0-1000000000: they are 1,000,000,001, and can be 100,000"),
        ({"cells": [ONE], "seeds": "0-4294967296"}, "write ranges and numbers up to 4294967295"),
        ({"cells": [ONE], "seeds": "9" * 5000}, "write ranges|runs backwards"),
        ({"cells": [ONE], "seeds": "٣"}, "write ranges|runs backwards"),
        ({"cells": [ONE], "seeds": "0-9,5-2"}, "write ranges|runs backwards"),
        ({"cells": [ONE], "seeds": "0-60000,0-60000"}, "they are 120,002"),
        ({"cells": [ONE | {"random": {"trials": 10**11}}]}, "trials' is 100000000000: .*less than or equal to 100000"),
        ({"cells": [ONE | {"random": {"trials": 50_000}}], "seeds": "0-2"}, "has 150,000 runs, and can have 100,000"),
        ({"cells": [ONE], "tiers": {"small": {"trials": 10**11}}}, "trials' is 100000000000"),
        ({"cells": [LED | {"optuna": LED["optuna"] | {"at_once": 10**11}}]}, "at_once' is 100000000000"),
        (
            {"cells": [ONE | {"grid": {"trainer.steps": THOUSAND, "trainer.batch_size": THOUSAND}}] * 3},
            "has 3,000,000 runs",
        ),
        ({"cells": [ONE | {"grid": {f"trainer.x{n}": THOUSAND for n in range(9)}}]}, "has more than 10.18 runs"),
        ({"cells": [{"method": ["erm"] * 10_000, "dataset": ["spirals"] * 10_000}]}, "has 100,000,000 runs"),
        ({"cells": [{"method": "*", "dataset": ["spirals"] * 100_000}]}, "runs, and can have 100,000"),
        ({"cells": [{"method": "*", "dataset": "spiral"}]}, "no dataset 'spiral'; did you mean 'spirals'"),
    ],
)
def test_sizes_are_known_before_anything_is_expanded(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(**values).runs()


def test_the_size_is_that_of_the_tier_and_of_all_that_can_be() -> None:
    cells = [
        {"method": ["erm", "vrex"], "dataset": ["spirals", "irm_regression"], "random": {"trials": 3}},
        {"method": ["*", "erm"], "dataset": "spirals", "grid": {"trainer.steps": [1, 2]}},
    ]
    plan = sweep(cells=cells, tiers={"tiny": {"trials": 1}})
    for tier in ("full", "tiny"):
        each = [len(list(one.cells({}, plan.tiers.get(tier, Tier()), judged_by_none))) for one in plan.cells]
        assert [one.size(plan.set, plan.tiers.get(tier, Tier())) for one in plan.cells] == each


def judged_by_none(*_: object) -> Judge:
    raise AssertionError("no search is led by results")


@pytest.mark.parametrize(
    "content", [b"cells: \xe9", b"\0", b"cells: [", b"[1]", b"", b"cells: &a [*a]", b"cells: []\ncells: []"]
)
def test_a_file_that_is_no_sweep(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match="sweep .*x.yaml"):
        Sweep.read(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("name", ["/dev/zero", ".", "x" * 300, "x/" * 3000, "/proc/self/mem", "\udcff"])
def test_what_is_no_file(name: str) -> None:
    with pytest.raises(UserError, match="no file|cannot be read"):
        Sweep.read(name)


def test_unknown_names() -> None:
    with pytest.raises(
        UserError, match="no sweep 'irm_regresion', and no file of that name; did you mean 'irm_regression'"
    ):
        Sweep.read("irm_regresion")
    with pytest.raises(UserError, match="no tier 'smal'; did you mean 'small'"):
        Sweep.read("irm_regression").runs("smal")


def test_a_file_of_nearly_that_name_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text("cells: []")
    with pytest.raises(UserError, match=f"did you mean '{tmp_path}/study.yaml'"):
        Sweep.read(str(tmp_path / "study.yml"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no sweep 'study', and no file of that name; did you mean 'study.yaml'"):
        Sweep.read("study")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("methods: [erm]\ndataset: spirals", "^sweep x.yaml: 'methods' belongs into a cell, as in `cells: "),
        ("cells: [{metod: erm}]", "^sweep x.yaml: no setting 'cells.0.metod'; did you mean 'method'"),
        ("seeds: 0", "^sweep x.yaml: setting 'cells' is missing$"),
        ("cells: []", "^sweep x.yaml: setting 'cells' is []: tuple should have at least 1 item"),
        ("{cells: [{method: erm, dataset: pivot}], seeds: 1.5}", "'seeds' is 1.5: input should be a valid string, or "),
        ("{cells: [{method: erm, dataset: pivot}], fuse: 0}", "^sweep x.yaml: setting 'fuse' is 0: it is auto, off"),
        ("{cells: [{method: erm, dataset: pivot}], tiers: {full: {}}}", "^sweep x.yaml: 'full' is the name of the who"),
    ],
)
def test_a_message_names_the_file_once(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UserError, match=message.replace("[]:", r"\[\]:")):
        Sweep.read("x.yaml")


@pytest.mark.parametrize("seeds", ["0-2", [0, 1, 2], "0,1-2"])
def test_seeds(seeds: Any) -> None:
    assert parse_seeds(seeds) == [0, 1, 2]
    with pytest.raises(UserError, match="seeds 1,4-0: 4-0 runs backwards; write 0-4"):
        parse_seeds("1,4-0")


@pytest.mark.parametrize("name", sweep_names())
def test_every_sweep_of_the_package_resolves(name: str) -> None:
    plan = Sweep.read(name)
    assert {"small"} <= set(plan.tiers)
    full, small = plan.runs(), plan.runs("small")
    assert len({run.spec.run_id for run in full}) == len(full)
    assert len({run.spec.run_id for run in small}) == len(small) <= len(full)


def test_the_command_carries_it_out_and_continues(tmp_path: Path, bench: Bench) -> None:
    file = written(tmp_path, "  - method: [erm, vrex]\n    dataset: spirals\n")
    out = tmp_path / "out"
    status, output, _ = bench("sweep", file, "--out", str(out), "--dry-run")
    assert status == 0
    assert output.count("to do") == 4
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


def test_a_changed_file_extends_the_folder_and_says_how(tmp_path: Path, bench: Bench) -> None:
    out = str(tmp_path / "out")
    bench("sweep", written(tmp_path, "  - method: erm\n    dataset: spirals\n", "0"), "--out", out, "--workers", "1")
    changed = written(tmp_path, "  - method: vrex\n    dataset: spirals\n", "0")
    status, _, said = bench("sweep", changed, "--out", out, "--workers", "1")
    assert status == 0
    assert "differs from the one" in said
    assert "-- method: erm" in said
    assert "+- method: vrex" in said
    assert "1 runs in" in said
    assert "not part of the sweep as it is now (1 done); they stay there" in said
    assert sorted(load_results(out)["method"]) == ["erm", "vrex"]


def test_rerun_all_begins_anew_and_keeps_what_was(tmp_path: Path, bench: Bench) -> None:
    file, out = written(tmp_path, "  - method: erm\n    dataset: spirals\n", "0"), tmp_path / "out"
    bench("sweep", file, "--out", str(out), "--workers", "1")
    (record,) = out.glob("*/record.json")
    first = json.loads(record.read_text())
    bench("sweep", file, "--out", str(out), "--workers", "1", "--rerun", "all")
    second = json.loads(record.read_text())
    assert second["metrics"] == first["metrics"]
    assert "continuing" not in (record.parent / "log.txt").read_text()
    assert json.loads((record.parent / "record.previous.json").read_text()) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rerun", "fialed"], "did you mean 'failed'"),
        (["--timeout", "soon"], "write a time such as 90s"),
        (["--gpus", "0"], "no GPU is visible"),
        (["--jobs-per-gpu", "4"], "no GPU is visible"),
        (["--gpus", "0", "--workers", "1"], "give one of them"),
        (["--device", "cpu", "--jobs-per-gpu", "4"], "give one of them"),
        (["--gpus", "9" * 5000], "no GPU is visible"),
        (["--gpus", "²"], "no GPU is visible"),
        (["--fuse", "9" * 5000], "a number of runs from 1 to 999999999"),
        (["--fuse", "²"], "a number of runs from 1"),
        (["--timeout", "9" * 300 + "d"], "at most 366d"),
        (["--timeout", "٣s"], "write a time such as 90s"),
        (["--workers", "1000000000"], "4096"),
        (["--threads", "99999999999999999999"], "4096"),
        (["--jobs-per-gpu", "1000000000"], "4096"),
        (["--memory-floor", "nan"], "--memory-floor"),
        (["--memory-floor", "inf"], "--memory-floor"),
        (["--engine", "slurm", "--gpus-per-run", "inf"], "--gpus-per-run"),
        (["--engine", "slurm", "--gpus-per-run", "nan"], "--gpus-per-run"),
        (["--engine", "slurm", "--minutes", "99999999999999999999"], "527040"),
    ],
)
def test_mistakes_in_the_request(
    arguments: list[str], message: str, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = written(tmp_path, "  - method: erm\n    dataset: spirals\n")
    status, _, said = bench("sweep", file, "--out", str(tmp_path / "out"), *arguments)
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "resources",
    [
        LocalResources(workers=10**9),
        LocalResources(workers=0),
        LocalResources(threads=10**20),
        LocalResources(threads=0),
        LocalResources(jobs_per_gpu=10**9),
    ],
)
def test_processes_are_bounded(resources: LocalResources) -> None:
    with pytest.raises(UserError, match="there can be 1 to 4096 (workers|threads|jobs_per_gpu), not"):
        resources.slots()


def test_times() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "1.5 min", "2h", "1d")] == [90, 90, 90, 7200, 86400]
    assert [duration(seconds) for seconds in (7, 200, 7500)] == ["7 s", "3 min 20 s", "2 h 05 min"]


@pytest.mark.parametrize("fuse", [8, "8"])
def test_numbers_may_be_numbers_in_python(fuse: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[sweeping.Request] = []
    monkeypatch.setattr(sweeping, "carry_out_sweep", lambda request, engine: requests.append(request))
    invbench.sweep("smoke", tier="small", out=tmp_path, workers=1, fuse=fuse)
    assert requests[0].fuse == 8
    with pytest.raises(UserError, match="--gpus 0: "):
        invbench.sweep("smoke", out=tmp_path, gpus=0)
