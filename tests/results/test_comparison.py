"""What changed between two lots of runs, against independent calculations."""

import json
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats
from cells import small_config

import invbench
from invbench.errors import UserError
from invbench.results.comparison import compare, laid_out, remarks
from invbench.results.formats import Format, written
from invbench.results.load import load_made_by
from invbench.runs.options import Options
from invbench.training.runner import run_one


def lot(values: dict[str, list[float]], **columns: object) -> pd.DataFrame:
    """Return finished runs by method, seeds from 0."""
    rows = [
        {
            "run_id": f"{method}{seed}{columns}", "status": "done", "method": method, "dataset": "spirals",
            "backbone": "mlp", "protocol": "last", "seed": seed, "data.metric": "test_accuracy", "test_accuracy": value,
            "data.fingerprint": f"f{seed}", "cost.seconds_per_step": 0.1,
        }
        for method, scores in values.items()
        for seed, value in enumerate(scores)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


BEFORE = {"a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, 0.7], "c": [0.5, 0.6, 0.7], "d": [0.5], "e": [0.3, 0.4]}
AFTER = {"a": [0.5, 0.6, 0.7], "b": [0.61, 0.7, 0.8], "c": [0.6, 0.5, 0.72], "d": [0.6], "e": [0.2, 0.301]}


def test_verdicts() -> None:
    comparison = compare(lot(BEFORE), lot(AFTER)).set_index("method")
    assert comparison["verdict"].to_dict() == {
        "a": "the same numbers", "b": "better", "c": "within noise", "d": "cannot be told from one seed", "e": "worse",
    }  # fmt: skip
    assert comparison["difference"]["b"] == pytest.approx(0.31 / 3)
    raw = scipy.stats.ttest_rel(AFTER["b"], BEFORE["b"])
    assert comparison["p_value"]["b"] == pytest.approx(4 * raw.pvalue), "Holm, of four tests"
    low, high = raw.confidence_interval(0.95)
    assert comparison["half_width"]["b"] == pytest.approx((high - low) / 2)


def test_which_way_is_better_is_known_by_the_metric() -> None:
    before, after = (
        lot(values).rename(columns={"test_accuracy": "test_loss"}).assign(**{"data.metric": "test_loss"})
        for values in ({"b": BEFORE["b"]}, {"b": AFTER["b"]})
    )
    assert compare(before, after)["verdict"].tolist() == ["worse"]
    odd = compare(before.rename(columns={"test_loss": "odd"}), after.rename(columns={"test_loss": "odd"}), "odd")
    assert odd["verdict"].tolist() == ["changed"]


def test_runs_are_paired_by_settings_and_seed() -> None:
    before = pd.concat([lot({"a": [0.1, 0.2]}, **{"trainer.steps": steps}) for steps in (1, 2)], ignore_index=True)
    after = lot({"a": [0.3, 0.2, 0.9]}, **{"trainer.steps": 2, "trainer.new": False})
    comparison = compare(before, after)
    assert (comparison["n"].tolist(), comparison["difference"].tolist()) == ([2], [pytest.approx(0.1)])
    lines = remarks(before, after, comparison)
    assert "2 runs only in the first" in lines
    assert "1 runs only in the second" in lines
    assert "only the second knows the settings trainer.new" in lines


def test_failures_are_told() -> None:
    before, after = lot(BEFORE), lot(AFTER)
    after.loc[0, "status"] = "failed"
    comparison = compare(before, after)
    assert "1 runs done in the first and not in the second" in remarks(before, after, comparison)
    assert comparison.set_index("method")["n"]["a"] == 2


def test_other_data_are_told() -> None:
    comparison = compare(lot(BEFORE), lot(AFTER, **{"data.fingerprint": "other"}))
    assert set(comparison["verdict"]) == {"other data"}


def test_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="no finished run in common"):
        compare(lot({"a": [0.1]}), lot({"b": [0.1]}))
    with pytest.raises(UserError, match="none of the runs that both have has the metric 'what'"):
        compare(lot({"a": [0.1]}), lot({"a": [0.1]}), "what")
    with pytest.raises(UserError, match="the second of the two has no finished run"):
        compare(lot({"a": [0.1]}), lot({"a": [0.1]}, status="failed"))


def test_it_is_written() -> None:
    comparison = compare(lot(BEFORE), lot(AFTER))
    text = written(laid_out(comparison), remarks(lot(BEFORE), lot(AFTER), comparison), Format.text)
    assert "+0.103 ± 0.014" in text
    assert "1.00" in text


def test_what_two_codes_made_in_one_folder(tmp_path: Path) -> None:
    """A run that is repeated with other code keeps the record before."""
    config = small_config("erm", "spirals")
    record = run_one(config, Options(out=tmp_path))
    path = tmp_path / record.run_id / "record.json"
    older = json.loads(path.read_text())
    older["code"] |= {"sources": "0123456789abcdef", "git_commit": "fedcba9876543210"}
    older["metrics"]["test_accuracy"] += 0.5
    path.write_text(json.dumps(older))
    run_one(config, Options(out=tmp_path))
    before, by_commit = load_made_by(tmp_path, "0123456"), load_made_by(tmp_path, "fedcba9")
    pd.testing.assert_frame_equal(before, by_commit)
    comparison = compare(before, load_made_by(tmp_path, str(record.code["sources"])))
    assert comparison["difference"].tolist() == [pytest.approx(-0.5)]
    pd.testing.assert_series_equal(
        load_made_by(tmp_path, str(record.code["sources"])).iloc[0][["test_accuracy", "seed"]],
        invbench.load_results(tmp_path).iloc[0][["test_accuracy", "seed"]],
    )
