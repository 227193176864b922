"""The leaderboard over all problems: ranks, the top three, costs and the order under other rules, by hand."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from invbench.choices import Select
from invbench.errors import UserError
from invbench.leaderboard.overall import agreement, laid_out, overall, ranking, sentence
from invbench.leaderboard.standings import finished_trials, search_deviation, standings
from invbench.leaderboard.standings import laid_out as laid_out_standings

BEST, ORACLE = Select.best_validation, Select.oracle

TOLD = ("irmv1", "vrex", "of_a_stranger")


def rows_of(
    name: str, scores: dict[str, list[float]], higher: bool = True, stages: tuple[str, ...] = (BEST,)
) -> pd.DataFrame:
    """Return rows of methods with these scores of fresh seeds by each rule, and three trials of the search."""
    rows = []
    metric = "accuracy" if higher else "mean_squared_error"
    for number, (method, values) in enumerate(scores.items()):
        common = {
            "problem": name, "method": method, "status": "done", "data.metric": f"test_{metric}",
            "knows": "environments" if method in TOLD else "",
            "data.primary": metric, "data.higher_is_better": higher, "best_validation.step": 5.0,
            "cost.wall_seconds": 1.0 + number,
        }  # fmt: skip
        for seed in range(3):
            trial = {
                "stage": "search",
                "seed": seed,
                f"best_validation.validation_{metric}": 0.9,
                "trainer.learning_rate": 0.1,
            }
            rows.append(common | trial)
        for stage in stages:
            sign = -1 if stage == ORACLE else 1  # the oracle's order is the reverse
            for seed, value in enumerate(values, start=100):
                best = {f"best_validation.test_{metric}": sign * value, f"best_validation.validation_{metric}": 0.8}
                fresh = {
                    "stage": str(stage),
                    "seed": seed,
                    f"test_{metric}": sign * value,
                    "trainer.learning_rate": 0.1,
                }
                rows.append(common | fresh | best)
    return pd.DataFrame(rows)


def edition_rows(stages: tuple[str, ...] = (BEST,)) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    tables = {}
    for p in range(6):
        scores = {
            m: list(0.5 + 0.05 * k + rng.normal(0, 0.04, 5)) for k, m in enumerate(["erm", "vrex", "irmv1", "coral"])
        }
        if p % 2:
            tables[f"p{p}"] = rows_of(f"p{p}", {m: [-v for v in values] for m, values in scores.items()}, False, stages)
        else:
            tables[f"p{p}"] = rows_of(f"p{p}", scores, True, stages)
    tables["few"] = rows_of("few", {"erm": [0.5] * 5}, stages=stages)
    return tables


def means(rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return oriented means of the fresh seeds on the six problems that all methods have."""
    return pd.DataFrame({
        name: {
            method: (1 if runs["data.higher_is_better"].iloc[0] else -1)
            * runs.loc[runs["stage"] == BEST, "best_validation." + runs["data.metric"].iloc[0]].mean()
            for method, runs in table.groupby("method")
        }
        for name, table in rows.items() if name != "few"
    })  # fmt: skip


def test_ranks_are_those_of_scipy_on_problems_that_most_methods_have() -> None:
    rows = edition_rows()
    result = ranking(rows, BEST)
    expected = means(rows).apply(lambda column: scipy.stats.rankdata(-column))
    pd.testing.assert_frame_equal(result.ranks.T.sort_index(), expected.sort_index(), check_names=False)
    statistic = scipy.stats.friedmanchisquare(*expected.to_numpy())
    assert result.friedman == pytest.approx(statistic.pvalue)
    assert result.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 6)), rel=1e-3)  # Demšar's table 5
    assert result.table["mean_rank"].is_monotonic_increasing


def test_the_bootstrap_agrees_with_a_slow_one() -> None:
    rows = edition_rows()
    result = ranking(rows, BEST, resamples=4000).table.set_index("method")
    rng, counts, ranks = np.random.default_rng(1), dict.fromkeys(result.index, 0.0), []
    fresh = {
        name: {
            method: (1 if runs["data.higher_is_better"].iloc[0] else -1)
            * runs.loc[runs["stage"] == BEST, "best_validation." + runs["data.metric"].iloc[0]].to_numpy()
            for method, runs in table.groupby("method")
        }
        for name, table in rows.items() if name != "few"
    }  # fmt: skip
    methods = sorted(counts)
    for _ in range(1500):
        drawn = []
        for name in rng.choice(list(fresh), len(fresh)):
            seeds = rng.integers(5, size=5)
            drawn.append(scipy.stats.rankdata([-fresh[name][method][seeds].mean() for method in methods]))
        ranks.append(np.mean(drawn, 0))
        for method, place in zip(methods, scipy.stats.rankdata(ranks[-1], "ordinal"), strict=True):
            counts[method] += place <= 3
    for number, method in enumerate(methods):
        assert result.loc[method, "top"] == pytest.approx(counts[method] / 1500, abs=0.05)
        low, high = np.quantile(np.array(ranks)[:, number], [0.025, 0.975])
        assert result.loc[method, "low"] == pytest.approx(low, abs=0.25)
        assert result.loc[method, "high"] == pytest.approx(high, abs=0.25)
    assert result["top"].sum() == pytest.approx(3)


def test_problems_of_a_family_count_as_one() -> None:
    order = ["erm", "vrex", "irmv1"]
    values = {method: [1.0 - 0.1 * place, 0.95 - 0.1 * place] for place, method in enumerate(order)}
    other = {method: [0.1 + 0.1 * place, 0.15 + 0.1 * place] for place, method in enumerate(order)}
    tables = {name: rows_of(name, values).assign(family="alike") for name in "abc"} | {"d": rows_of("d", other)}
    result = ranking(tables, BEST)
    assert result.ranks.to_dict("list") == {"erm": [1, 3], "irmv1": [3, 1], "vrex": [2, 2]}
    assert result.table["mean_rank"].tolist() == [2.0, 2.0, 2.0]
    assert result.problems == ["a", "b", "c", "d"]


def test_a_method_that_fails_is_last_and_costs_the_others_nothing() -> None:
    tables = edition_rows()
    failed = {}
    for name, table in tables.items():
        best = (table["method"] == "coral") & (table["stage"] == BEST) & (table["seed"] == 100)
        failed[name] = table.assign(status=table["status"].mask(best, "failed"))
    before, after = (standings(rows["p0"], BEST).set_index("method") for rows in (tables, failed))
    assert after.loc["coral", "verdict"] == "failed in 1 of 5 runs"
    assert after.loc["coral", "rank"] == 4
    others = ["erm", "vrex", "irmv1"]
    pd.testing.assert_frame_equal(before.loc[others, ["mean", "half_width"]], after.loc[others, ["mean", "half_width"]])
    result = ranking(failed, BEST)
    assert set(result.ranks["coral"]) == {4.0}
    without = {name: table[table["method"] != "coral"] for name, table in tables.items()}
    pd.testing.assert_frame_equal(result.ranks[others], ranking(without, BEST).ranks[others], check_dtype=False)


def test_a_number_that_is_not_finite_is_a_failure() -> None:
    table = rows_of("p", {"erm": [0.5, 0.6, 0.7], "vrex": [0.6, 0.7, math.inf]})
    row = standings(table, BEST).set_index("method").loc["vrex"]
    assert (row["n"], row["rank"], row["verdict"]) == (2, 2, "failed in 1 of 3 runs")
    assert row["mean"] == pytest.approx(0.65)


def test_runs_whose_penalty_had_not_acted_are_counted() -> None:
    table = rows_of("p", {"erm": [0.5, 0.6], "coral": [0.5, 0.6]})
    table["inactive"] = table["method"].map({"coral": "why"})
    ranked = standings(table, BEST)
    assert dict(zip(ranked["method"], ranked["inactive"], strict=True)) == {"erm": 0, "coral": 2}
    assert "inactive: fresh runs whose penalty" in "".join(laid_out_standings("p", ranked)[1])


def test_methods_that_tie_share_their_places() -> None:
    rows = {name: rows_of(name, {method: [0.5, 0.6] for method in ("erm", "vrex", "irmv1", "coral")}) for name in "ab"}
    assert ranking(rows, BEST).table["top"].tolist() == pytest.approx([0.75] * 4)


def test_an_edition_is_summed_up() -> None:
    rows = edition_rows()
    table = overall(rows, BEST).set_index("method")
    verdicts = pd.concat([standings(table, BEST) for table in rows.values()])
    for method, counts in verdicts.groupby("method")["verdict"]:
        assert table.loc[method, "better"] == (counts == "better than ERM").sum()
        assert table.loc[method, "worse"] == (counts == "worse than ERM").sum()
    assert table.loc["erm", "problems"] == 7
    assert table.loc["irmv1", "cost"] == pytest.approx(3.0)
    assert table.loc["irmv1", "knows"] == "environments"
    assert table.loc["irmv1", "optimistic_share"] in (0.0, 1.0, 0.5)
    layout, remarks = laid_out(overall(rows, BEST), rows, BEST)
    assert len(layout.rows) == 4
    assert any("Nemenyi" in remark for remark in remarks)


def test_the_order_under_another_rule_is_compared() -> None:
    (row,) = agreement(edition_rows((BEST, ORACLE)))
    assert (row["rule"], row["problems"], row["methods"], row["tau"]) == ("oracle", 6, 4, pytest.approx(-1.0))
    words = sentence(edition_rows((BEST, ORACLE)))
    assert "by test data, no (Kendall's tau -1.00 of 4 methods on 6 problems, 0.99 between halves" in words
    assert "of the fresh seeds by one rule; of the first 3 methods 2 are the same)" in words
    assert sentence(edition_rows()) == ""


def test_the_agreement_of_halves_is_that_of_all_pairs_of_halves() -> None:
    rows = {name: table for name, table in edition_rows((BEST, ORACLE)).items() if name != "few"}
    taus = []
    for half in combinations(range(100, 105), 2):
        orders = []
        for chosen in (set(half), set(range(100, 105)) - set(half)):
            fresh = {
                name: table[(table["stage"] != "search") & table["seed"].isin(chosen)] for name, table in rows.items()
            }
            orders.append(means(fresh).rank(ascending=False).mean(axis=1))
        taus.append(scipy.stats.kendalltau(*orders).statistic)
    assert agreement(rows)[0]["chance"] == pytest.approx(np.mean(taus))


def test_an_order_that_differs_as_from_seed_to_seed_does_not_count_as_another() -> None:
    rng = np.random.default_rng(0)
    names = ["erm", "vrex", "irmv1", "coral", "mmd", "iga"]
    tables = {}
    for p in range(4):
        first, second = (
            {name: list(rng.normal(0.5 + 0.01 * k, 0.05, 5)) for k, name in enumerate(names)} for _ in "ab"
        )
        by_oracle = rows_of(f"p{p}", {name: [-v for v in values] for name, values in second.items()}, stages=(ORACLE,))
        tables[f"p{p}"] = pd.concat([rows_of(f"p{p}", first), by_oracle[by_oracle["stage"] == ORACLE]])
    (row,) = agreement(tables)
    assert row["chance"] <= row["tau"] < 0.7
    assert "by test data, it cannot be told, for other seeds change it as much" in sentence(tables)


def test_ranks_need_two_methods_and_two_problems() -> None:
    with pytest.raises(UserError, match="two methods on the same two problems"):
        ranking({"few": rows_of("few", {"erm": [0.5] * 5})}, BEST)
    table = overall({"few": rows_of("few", {"erm": [0.5] * 5})}, BEST)
    assert table["mean_rank"].isna().all()
    with pytest.raises(UserError, match="nothing was selected by oracle"):
        overall(edition_rows(), ORACLE)


def test_the_deviation_that_comes_from_searching_is_that_of_searches_drawn_again() -> None:
    rng = np.random.default_rng(0)
    trials = [(rate, rng.normal(0.8, 0.02), rng.normal(0.6, 0.1)) for rate in (0.1, 0.2, 0.3, 0.4, 0.5)]
    rows = pd.concat([rows_of("p", {"erm": [0.5, 0.6]})] + [
        pd.DataFrame([{
            "problem": "p", "method": "erm", "status": "done", "stage": "search", "seed": seed,
            "data.primary": "accuracy", "data.metric": "test_accuracy", "data.higher_is_better": True,
            "trainer.learning_rate": rate,
            "best_validation.validation_accuracy": validation, "best_validation.test_accuracy": test,
        } for seed in range(3)]) for rate, validation, test in trials
    ])  # fmt: skip
    rows = rows[(rows["stage"] != "search") | rows["best_validation.test_accuracy"].notna()]
    drawn = []
    for _ in range(20_000):
        again = [trials[i] for i in rng.integers(5, size=5)]
        drawn.append(max(again, key=lambda trial: trial[1])[2])
    assert search_deviation(finished_trials(rows)["erm"], higher_is_better=True) == pytest.approx(
        np.std(drawn), rel=0.03
    )


def test_equally_good_trials_are_selected_alike() -> None:
    """Half of the trials tie for the best score in validation."""
    rows = rows_of("p", {"erm": [0.5, 0.6]})
    search = rows[rows["stage"] == "search"]
    tests = [0.2, 0.4, 0.6, 0.8, 0.5, 0.5]
    trials = [
        search.assign(**{
            "trainer.learning_rate": 0.1 * k, "best_validation.test_accuracy": test,
            "best_validation.validation_accuracy": 0.9 + (1e-14 * k if k < 4 else -0.1),
        }) for k, test in enumerate(tests)
    ]  # fmt: skip
    rows = pd.concat([rows[rows["stage"] != "search"].assign(**{"trainer.learning_rate": 0.0}), *trials])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(20_000):
        again = rng.integers(6, size=6)
        best = [k for k in again if k < 4] or list(again)
        drawn.append(tests[rng.choice(best)])
    assert search_deviation(finished_trials(rows)["erm"], higher_is_better=True) == pytest.approx(
        np.std(drawn), rel=0.03
    )
    assert standings(rows, BEST)["tied"].tolist() == [4]
    assert standings(rows_of("p", {"erm": [0.5, 0.6]}), BEST)["tied"].tolist() == [0]


def test_a_method_of_which_every_trial_fails_is_last() -> None:
    rows = {name: table for name, table in edition_rows().items() if name != "few"}
    whole = ranking(rows, BEST)
    failing = rows["p0"][rows["p0"]["method"] == "coral"]
    rows["p0"] = pd.concat([
        rows["p0"][rows["p0"]["method"] != "coral"], failing[failing["stage"] == "search"].assign(status="failed")
    ])  # fmt: skip
    table = standings(rows["p0"], BEST).set_index("method")
    assert table.loc["coral", "rank"] == 4
    assert table.loc["coral", "verdict"] == "failed in 5 of 5 runs"
    assert "nan" not in str(laid_out_standings("p0", table.reset_index())[0].rows)
    assert set(ranking(rows, BEST).table["method"]) == set(whole.table["method"])
    assert ranking(rows, BEST).ranks.loc["p0", "coral"] == 4
    assert overall(rows, BEST).set_index("method").loc["coral", "worse"] >= 1


def test_a_method_that_is_told_the_answer_has_no_rank_and_is_never_first() -> None:
    rows = edition_rows()
    tables = {
        name: table.assign(knows=table["method"].map({"coral": "oracle"}).fillna("")) for name, table in rows.items()
    }
    assert "coral" in set(ranking(rows, BEST).table["method"])
    assert "coral" not in set(ranking(tables, BEST).table["method"])
    table = overall(tables, BEST).set_index("method")
    assert table.loc["coral", "first"] == 0
    assert math.isnan(table.loc["coral", "mean_rank"])
    assert "the answer" in str(laid_out(table.reset_index(), tables, BEST)[0].rows)
    ranks = standings(tables["p0"], BEST).set_index("method")["rank"]
    assert math.isnan(ranks["coral"])
    assert sorted(ranks.drop("coral")) == sorted(pd.Series(range(1, len(ranks))).tolist())
    best = {
        name: standings(one, BEST).set_index("method")["rank"].drop("coral", errors="ignore").idxmin()
        for name, one in tables.items()
    }
    assert table["first"].to_dict() == {m: sum(b == m for b in best.values()) for m in table.index}


def test_methods_that_are_not_registered_are_shown() -> None:
    rows = {name: rows_of(name, {"erm": [0.5, 0.6], "of_a_stranger": [0.6, 0.7]}) for name in "ab"}
    table = overall(rows, BEST).set_index("method")
    assert table.loc["of_a_stranger", "knows"] == "environments"
