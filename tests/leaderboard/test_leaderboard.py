"""The leaderboard: an edition says what is run, each rule selects, and standings are what one computes by hand."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from typer.testing import CliRunner

from invbench.analysis.shift import measure_shift
from invbench.choices import Format, Select
from invbench.cli import app
from invbench.errors import UserError
from invbench.leaderboard import build as leaderboard_build
from invbench.leaderboard.build import RULES, STAGES, build, curves, judged, selected
from invbench.leaderboard.edition import HELD_OUT, Edition, edition_names, read_edition
from invbench.leaderboard.methods import knows
from invbench.leaderboard.rows import read_curves, read_rows, write_rows
from invbench.leaderboard.standings import BETTER, SAME, WORSE, constant_score, laid_out, metric_of_rows, standings
from invbench.results.formats import written
from invbench.runs.commands import parse_seeds
from invbench.runs.resolve import resolve
from invbench.sweeps.engines.local import LocalEngine, LocalResources
from invbench.training.build import loaded

ROWS = Path(__file__).parent.parent.parent / "results" / "leaderboard" / "small"
SMALL: dict[str, Any] = {
    "trainer.steps": 4, "trainer.schedule": "constant", "trainer.batch_size": 8, "backbone.width": 4,
    "dataset.environments": 3, "dataset.examples": 32, "dataset.test_examples": 50,
}  # fmt: skip


def edition(**problem: Any) -> Edition:
    problem = {"what": "two spirals", "dataset": "spirals", "set": SMALL, "left_out": 3} | problem
    content = {
        "version": "test", "trials": 2, "seeds": "0-1", "fresh_seeds": "100-101", "problems": {"spirals": problem},
        "ranges": {"trainer.learning_rate": {"low": 1e-3, "high": 1e-2}},
    }  # fmt: skip
    return Edition.parse(content, source="the edition")


def test_every_method_is_searched_alike() -> None:
    runs = edition().search("spirals").runs()
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run.spec.method, set()).add(run.spec.flat()["trainer.learning_rate"])
    assert {"erm", "irmv1", "vrex", "and_mask"} <= set(rates)
    assert len(set(map(frozenset, rates.values()))) == 1, "the recipe's and the same two of the search"
    assert len(rates["erm"]) == 3
    assert {run.spec.seed for run in runs} == {0, 1}
    assert {run.spec.flat()["trainer.steps"] for run in runs} == {4}


def test_a_setting_of_one_method_is_not_searched() -> None:
    fixed = {"trainer.learning_rate": 0.5, "method.weight": 3.0}
    runs = edition(set_of={"vrex": fixed}).search("spirals", "vrex").runs()
    for name, value in fixed.items():
        assert {run.spec.flat()[name] for run in runs} == {value}


def test_environments_are_left_out_by_the_first_seed() -> None:
    sweep = edition().left_out_search("spirals", "erm")
    assert sweep is not None
    runs = [run.spec for run in sweep.runs()]
    assert sorted(run.flat()[HELD_OUT] for run in runs) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {run.seed for run in runs} == {0}
    assert edition(left_out=0).left_out_search("spirals") is None


def test_what_is_impossible_is_not_run() -> None:
    methods = {run.spec.method for run in edition(impossible={"fish": "it takes too long"}).search("spirals").runs()}
    assert "fish" not in methods
    with pytest.raises(UserError, match="no problem 'spiral'; did you mean 'spirals'"):
        edition().search("spiral")
    with pytest.raises(UserError, match="no edition 'smal' of the leaderboard; did you mean 'small'"):
        read_edition("smal")


def test_what_came_later_can_be_run_by_name_only() -> None:
    later = edition().model_copy(update={"without": ("vrex",)})
    assert "vrex" not in {run.spec.method for run in later.search("spirals").runs()}
    assert "vrex" in later.admitted("spirals")
    assert {run.spec.method for run in later.search("spirals", "vrex").runs()} == {"vrex"}


def test_what_a_method_is_told() -> None:
    knowledge = {name: knows(name) for name in ("erm", "vrex", "mtl", "vrex+mtl", "oracle")}
    with_inputs = "environments, test inputs"
    assert knowledge == {
        "erm": "",
        "vrex": "environments",
        "mtl": with_inputs,
        "vrex+mtl": with_inputs,
        "oracle": "oracle",
    }


@pytest.mark.parametrize("name", edition_names())
def test_the_editions_of_the_package_can_be_run(name: str) -> None:
    chosen = read_edition(name)
    for problem in chosen.problems:
        assert len(chosen.search(problem, "erm").runs()) == 3 * (chosen.trials + 1)
        chosen.left_out_search(problem, "erm")


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    """Yield an engine with one process, which carries out several sweeps."""
    with LocalEngine(LocalResources(workers=1).slots()).kept_warm() as engine:
        yield engine


@pytest.mark.slow
def test_a_problem_is_built_once(tmp_path: Path, engine: LocalEngine) -> None:
    later = edition().model_copy(update={"without": ("irmv1",)})  # irmv1 came after it
    for method in ("erm", "irmv1"):
        rows = build(later, "spirals", tmp_path, engine, method, quiet=True)
    counts = rows.groupby(["method", "stage"]).size()
    for method in ("erm", "irmv1"):
        assert counts[method].to_dict() == dict(zip(STAGES, (6, 9, 2, 2, 2), strict=True))
    assert set(rows["status"]) == {"done"}
    best = rows[(rows["stage"] == "search") & (rows["method"] == "erm")].groupby("trainer.learning_rate")
    means = best["best_validation.validation_accuracy"].mean()
    chosen = rows[(rows["stage"] == "best_validation") & (rows["method"] == "erm")]["trainer.learning_rate"]
    assert means[chosen.iloc[0]] == means.max()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    again = build(later, "spirals", tmp_path, engine, "irmv1", quiet=True)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    pd.testing.assert_frame_equal(again, rows)
    drawn = {method: curves(part, tmp_path) for method, part in rows.groupby("method")}
    assert {method: set(curve["method"]) for method, curve in drawn.items()} == {"erm": {"erm"}, "irmv1": {"irmv1"}}
    write_rows(rows, tmp_path / "rows" / "spirals.parquet")
    read = read_rows(tmp_path / "rows", ["spirals", "other"], "test")
    assert list(read) == ["spirals"]
    for rule in RULES:
        text = written(*laid_out("spirals", standings(read["spirals"], rule)), Format.text)
        assert "spirals: test_accuracy" in text
        assert "irmv1" in text


def test_a_method_that_cannot_be_selected_stops_the_build_if_it_has_finished_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*arguments: object) -> None:
        raise UserError("no such setting")

    monkeypatch.setattr(leaderboard_build, "sweep_of_best", cannot)
    trials = pd.DataFrame({"method": ["erm", "erm", "vrex"], "status": ["failed", "done", "failed"]})
    lines: list[str] = []
    with pytest.raises(UserError, match="no such setting"):
        selected(edition(), trials, Select.best_validation, lines.append)
    with pytest.raises(UserError, match="nothing is selected by leave_one_env_out"):
        selected(edition(), trials, Select.leave_one_env_out, lines.append)
    assert [line.partition(":")[0] for line in lines] == ["erm", "vrex"]


def made_up(**scores: list[float]) -> pd.DataFrame:
    """Return rows of methods with these scores of fresh seeds; each had 0.9 in validation, and has 0.8."""
    rows = []
    for method, values in scores.items():
        common = {
            "problem": "p", "method": method, "knows": "", "status": "done", "data.metric": "test_accuracy",
            "data.primary": "accuracy", "data.higher_is_better": True, "trainer.learning_rate": 0.1,
            "best_validation.step": 5.0, "cost.wall_seconds": 2.0, "edition": "test", "code": "0",
            "data.fingerprint": "f",
        }  # fmt: skip
        for seed in range(3):
            rows.append(common | {"stage": "search", "seed": seed, "best_validation.validation_accuracy": 0.9})
        for seed, value in enumerate(values, start=100):
            at_best = {"best_validation.test_accuracy": value, "best_validation.validation_accuracy": 0.8}
            rows.append(common | {"stage": "best_validation", "seed": seed, "test_accuracy": 0.0} | at_best)
    return pd.DataFrame(rows).assign(run_id=[f"{number:016x}" for number in range(len(rows))])


def test_dependence_is_taken_off_at_the_last_step() -> None:
    facts = {"data.metric": "test_accuracy", "data.primary": "accuracy", "best_validation.test_accuracy": 0.9}
    dependence = {"validation_distance_correlation": 0.4, "test_distance_correlation": 0.3}
    done = facts | dependence | {"validation_accuracy": 0.8, "test_accuracy": 0.7, "train_accuracy": 1.0}
    runs = pd.DataFrame([done, {"status": "failed"}]).assign(**{"trainer.steps": 40})
    derived = judged(runs, "distance_correlation")
    assert derived["test_accuracy_minus_half_distance_correlation"][0] == pytest.approx(0.55)
    assert derived["best_validation.test_accuracy_minus_half_distance_correlation"][0] == pytest.approx(0.55)
    assert derived["validation_accuracy_minus_half_distance_correlation"][0] == pytest.approx(0.6)
    assert derived["best_validation.step"][0] == 40
    assert derived["data.metric"][0] == "test_accuracy_minus_half_distance_correlation"
    assert derived["data.primary"].isna().tolist() == [False, True]
    assert judged(runs, None) is runs
    renamed = {f"{split}_distance_correlation": f"{split}_distance_correlation_0" for split in ("validation", "test")}
    several = runs.rename(columns=renamed).assign(
        test_distance_correlation_1=0.5, validation_distance_correlation_1=0.4
    )
    assert judged(several, "distance_correlation")["test_accuracy_minus_half_distance_correlation"][0] == pytest.approx(
        0.5
    )
    with pytest.raises(UserError, match="runs have no metric test_energy_distance to take off test_accuracy"):
        judged(runs, "energy_distance")


def test_a_method_that_ignores_the_nuisance_does_not_win() -> None:
    rows = made_up(erm=[0.9, 0.91, 0.92], adversary=[0.8, 0.81, 0.82]).drop(columns=["best_validation.test_accuracy"])
    ignores = rows["method"] == "erm"
    dependence = ignores.map({True: 0.5, False: 0.1})
    accuracy = ignores.map({True: 0.9, False: 0.8})
    metrics = {
        f"{split}_{name}": values
        for split in ("validation", "test")
        for name, values in (("accuracy", accuracy), ("distance_correlation", dependence))
    }
    steps = {"trainer.steps": 40}
    table = standings(judged(rows.assign(**metrics, **steps), "distance_correlation"), Select.best_validation)
    assert list(table["method"]) == ["adversary", "erm"]
    assert list(table["mean"]) == pytest.approx([0.75, 0.65])
    assert list(table["performance"]) == pytest.approx([0.8, 0.9])
    text = written(*laid_out("p", table), Format.text)
    assert "performance: before the dependence is taken off" in text


def test_standings_agree_with_a_calculation_by_hand() -> None:
    rng = np.random.default_rng(0)
    erm = rng.normal(0.5, 0.02, 5)
    scores = {
        "erm": erm, "irmv1": erm + 0.2 + rng.normal(0, 0.01, 5), "vrex": erm - 0.1 + rng.normal(0, 0.01, 5),
        "coral": erm + rng.normal(0, 0.05, 5),
    }  # fmt: skip
    table = standings(made_up(**{name: list(values) for name, values in scores.items()}), Select.best_validation)
    table = table.set_index("method")
    assert table["rank"].to_dict() == {
        name: 1 + sum(other.mean() > values.mean() for other in scores.values()) for name, values in scores.items()
    }
    raw = {name: scipy.stats.ttest_rel(values, erm).pvalue for name, values in scores.items() if name != "erm"}
    worst = 0.0
    for place, name in enumerate(sorted(raw, key=raw.__getitem__)):
        worst = max(worst, min(1.0, (len(raw) - place) * raw[name]))
        assert table.loc[name, "p_value"] == pytest.approx(worst)
    for name, values in scores.items():
        low, high = scipy.stats.t.interval(0.95, 4, values.mean(), scipy.stats.sem(values))
        assert table.loc[name, "half_width"] == pytest.approx((high - low) / 2)
        assert table.loc[name, "difference"] == pytest.approx((values - erm).mean())
        assert table.loc[name, "optimism"] == pytest.approx(0.1)
    assert table["verdict"].to_dict() == {"erm": "", "irmv1": BETTER, "vrex": WORSE, "coral": SAME}


def test_a_difference_that_does_not_matter_is_none() -> None:
    erm = [0.50, 0.52, 0.54, 0.56]
    for share, verdict in ((0.009, SAME), (0.011, BETTER), (-0.009, SAME), (-0.011, WORSE)):
        other = [value + share * 0.53 + noise for value, noise in zip(erm, (1e-5, -1e-5, 2e-5, -2e-5), strict=True)]
        table = standings(made_up(erm=erm, irmv1=other), Select.best_validation).set_index("method")
        assert table.loc["irmv1", "p_value"] < 1e-5
        assert table.loc["irmv1", "verdict"] == verdict


def test_methods_that_are_added_change_no_verdict_of_the_edition() -> None:
    rng = np.random.default_rng(0)
    values = {f"of_edition_{k}": list(0.5 + 0.02 * k + 0.02 * rng.normal(size=5)) for k in range(6)}
    rows = made_up(erm=[0.50, 0.51, 0.49, 0.50, 0.52], **values).assign(added=False)
    strangers = {f"stranger_{k}": [0.9 + 0.001 * k, 0.91, 0.9, 0.92, 0.9] for k in range(3)}
    added = made_up(**strangers).assign(added=True)
    alone = standings(rows, Select.best_validation).set_index("method")
    together = standings(pd.concat([rows, added], ignore_index=True), Select.best_validation).set_index("method")
    columns = ["p_value", "verdict", "mean", "difference", "added"]
    pd.testing.assert_frame_equal(together.loc[alone.index, columns], alone[columns])
    assert together["added"].sum() == 3
    raw = [scipy.stats.ttest_rel(values[name], [0.50, 0.51, 0.49, 0.50, 0.52]).pvalue for name in values]
    for name, numbers in strangers.items():
        p_value = scipy.stats.ttest_rel(numbers, [0.50, 0.51, 0.49, 0.50, 0.52]).pvalue
        rank = sum(other < p_value for other in raw)
        largest = max([p_value * (7 - rank), *(p * (7 - i) for i, p in enumerate(sorted(raw)) if p < p_value)])
        assert together.loc[name, "p_value"] == pytest.approx(min(1, largest))
        assert together.loc[name, "verdict"] == BETTER
    layout, remarks = laid_out("p", together.reset_index())
    assert {head[1] for head, _ in layout.rows} >= {"stranger_0 (added)", "erm"}
    assert "added: not of the edition; its rows are shown as they are given" in remarks


def test_what_a_constant_prediction_scores_is_said() -> None:
    rows = made_up(erm=[0.5, 0.6], irmv1=[0.7, 0.8])
    assert "constant" not in "".join(laid_out("p", standings(rows, Select.best_validation))[1])
    known = rows.assign(**{"data.constant.test_accuracy": [0.25 if row == "search" else 0.5 for row in rows["stage"]]})
    assert "a constant prediction scores 0.5" in laid_out("p", standings(known, Select.best_validation))[1]
    name = "test_accuracy_minus_half_distance_correlation"
    judged_rows = known.assign(**{"data.metric": name, f"best_validation.{name}": 0.4, name: 0.4})
    assert constant_score(judged_rows, Select.best_validation) == 0.5, "a constant depends on nothing"


def test_numbers_are_rounded_by_their_uncertainty() -> None:
    layout, _ = laid_out("p", standings(made_up(erm=[0.51, 0.47, 0.59], irmv1=[0.5, 0.5, 0.5]), Select.best_validation))
    assert [head[2] for head, _ in layout.rows] == ["0.52 ± 0.15 (3)", "0.500 ± 0.000 (3)"]


def test_standings_are_shown_in_all_formats(tmp_path: Path) -> None:
    rows = made_up(erm=[0.5, 0.6], irmv1=[0.7, 0.9]).assign(edition=read_edition("small").version)
    write_rows(rows, tmp_path / "small" / "spirals.parquet")
    command = ["leaderboard", "show", "--folder", str(tmp_path), "--problem", "spirals"]
    for form in Format:
        shown = CliRunner().invoke(app, [*command, "--format", form.value])
        assert shown.exit_code == 0, shown.output
        assert "irmv1" in shown.output
    shown = CliRunner().invoke(app, [*command, "--format", "csv"])
    table = pd.read_csv(io.StringIO(shown.stdout))
    assert table[["method", "mean"]].values.tolist() == [["irmv1", pytest.approx(0.8)], ["erm", pytest.approx(0.55)]]
    summary = CliRunner().invoke(app, [*command[:-2], "--format", "csv"])
    assert pd.read_csv(io.StringIO(summary.stdout))["better"].tolist() == [0, 0]


def test_a_rule_by_which_nothing_was_selected_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="p: nothing was selected by oracle in this edition"):
        standings(made_up(erm=[0.5, 0.6]), Select.oracle)
    shown = CliRunner().invoke(app, ["leaderboard", "show", "--folder", str(tmp_path)])
    assert "there are no rows in" in str(shown.exception)


def test_rows_of_another_edition_are_refused(tmp_path: Path) -> None:
    write_rows(made_up(erm=[0.5, 0.6]).assign(edition="2020.1"), tmp_path / "spirals.parquet")
    with pytest.raises(UserError, match="is of edition 2020.1, not 2026.1; editions are not mixed"):
        read_rows(tmp_path, ["spirals"], "2026.1")
    (tmp_path / "spirals.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path, ["spirals"], "2026.1")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"run_id": None}, "run_id holds other than texts"),
        ({"method": 3}, "method holds other than texts"),
        ({"knows": None}, "knows holds other than texts"),
        ({"edition": [["test"]] * 5}, "edition holds other than texts"),
        ({"seed": 0.5}, "seeds are no integers"),
        ({"seed": "0"}, "seed holds other than numbers"),
        ({"status": "DONE"}, "status is 'DONE', not done or failed"),
        ({"best_validation.step": float("nan")}, "do not all say which step was best in validation"),
        ({"data.metric": None}, "do not all say by which metric"),
        ({"run_id": "0" * 16}, "1 runs are there more than once"),
    ],
)
def test_rows_that_nothing_can_be_done_with_are_refused(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    write_rows(made_up(erm=[0.5, 0.6]).assign(**change), tmp_path / "spirals.parquet")
    with pytest.raises(UserError, match=complaint):
        read_rows(tmp_path, ["spirals"], "test")


def test_rows_of_which_none_is_done_are_one_line() -> None:
    with pytest.raises(UserError, match="p: no run is done, so nothing can be compared"):
        metric_of_rows(made_up(erm=[0.5, 0.6]).assign(status="failed"))


def test_rows_that_grow_when_they_are_read_are_refused(tmp_path: Path) -> None:
    rows = pd.concat([made_up(erm=[0.5, 0.6])] * 16_000, ignore_index=True)
    write_rows(rows.assign(note="long" * 2000), tmp_path / "spirals.parquet")
    assert (tmp_path / "spirals.parquet").stat().st_size < 2**20
    with pytest.raises(UserError, match=r"bytes or more; rows of a problem have at most"):
        read_rows(tmp_path, ["spirals"], "test")


def test_curves_that_are_none_are_refused(tmp_path: Path) -> None:
    assert read_curves(tmp_path, ["spirals"]) == {}
    write_rows(made_up(erm=[0.5, 0.6]), tmp_path / "spirals.curves.parquet")
    with pytest.raises(UserError, match="holds no learning curves: there is no column step, validation, test"):
        read_curves(tmp_path, ["spirals"])
    (tmp_path / "spirals.curves.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_curves(tmp_path, ["spirals"])
    point = {"method": "erm", "seed": 100, "step": 5, "validation": 0.5, "test": 0.5}
    write_rows(pd.DataFrame([point, point]), tmp_path / "spirals.curves.parquet")
    with pytest.raises(UserError, match="has 1 points more than once"):
        read_curves(tmp_path, ["spirals"])


@pytest.mark.slow
@pytest.mark.parametrize("problem", read_edition("small").problems)
def test_every_run_of_an_edition_is_understood(problem: str) -> None:
    edition = read_edition("small")
    left_out = edition.left_out_search(problem)
    runs = {"search": edition.search(problem).runs(), "left_out": left_out.runs() if left_out is not None else []}
    methods = {run.spec.method for run in runs["search"]}
    assert "erm" in methods
    assert {run.spec.method for run in runs["left_out"]} <= methods
    for rows in read_rows(ROWS, [problem], edition.version).values():
        for stage, of_stage in runs.items():
            expected = {run.spec.run_id for run in of_stage}
            assert set(rows.loc[rows["stage"] == stage, "run_id"]) == expected, "the rows are of another form of it"
        for rule in (Select.best_validation, Select.oracle):
            seeds = rows[rows["stage"] == rule.value].groupby("method")["seed"].apply(sorted)
            expected = parse_seeds(edition.fresh_seeds)
            assert seeds.to_dict() == dict.fromkeys(methods, expected), "a cell is missing"
        half = edition.problem(problem).minus_half
        assert half is None or metric_of_rows(rows)[0].endswith(f"_minus_half_{half}")
        assert set(rows["family"]) == {edition.problem(problem).family or problem}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colored_digits", "digits_corrupted"])
def test_the_shift_of_a_problem_is_what_it_says(name: str) -> None:
    edition = read_edition("small")
    problem = edition.problem(name)
    config = resolve("erm", problem.dataset, assignments=edition.settings_of("erm", problem))
    measured = measure_shift(loaded(config))
    assert (measured.diversity, measured.correlation) == pytest.approx(problem.shift, abs=0.1)
