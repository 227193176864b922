"""What an edition says over all its problems: mean ranks, who is in the top three, cost, and whether a rule matters."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from invbench.choices import Select
from invbench.errors import UserError
from invbench.leaderboard.build import RULES, RULES_IN_WORDS
from invbench.leaderboard.edition import BASELINE
from invbench.leaderboard.methods import knowledge_in_words, without_oracles
from invbench.leaderboard.standings import (
    ADDED,
    ALONE,
    BETTER,
    SAME,
    SMALLEST,
    added_remark,
    scores,
    shown_name,
    standings,
    tuning_seconds,
)
from invbench.results.layout import Entry, Layout
from invbench.results.statistics import LEVEL, alike, critical_difference, friedman

TOP = 3
RESAMPLES = 2000
SHARE_OF_METHODS = 0.5
"""A problem counts in mean ranks where at least this share of all methods can be run on it."""
SAME_ORDER, OTHER_ORDER = 0.7, 0.4
"""Kendall's tau from which on an order is called the same, and below which another one."""
SHARED = "runs that can be trained together share their time, and those of some methods cannot"
"""What a reader of costs must know."""
Array = NDArray[np.float64]


class Ranking(NamedTuple):
    """Ranks of methods over problems."""

    table: pd.DataFrame
    """A row per method: mean_rank, low and high (95 % of resamples), top (probability of a place in the top three)."""
    ranks: pd.DataFrame
    """Rank of each method (column) in each family of problems (row); 1 is the best mean of fresh seeds."""
    critical_difference: float
    """Distance of mean ranks beyond which two methods differ at 5 % (Nemenyi)."""
    friedman: float
    """P-value of the hypothesis that all methods rank alike."""
    problems: list[str]
    """Names of the problems that are ranked."""


def ranking(rows: Mapping[str, pd.DataFrame], rule: Select, resamples: int = RESAMPLES) -> Ranking:
    """Rank the methods that have fresh runs on every common problem.

    A problem is common where at least half of the methods that are on two problems have fresh runs. Problems of a
    family count as one: the mean of a method's ranks on them is ranked again. Methods that are told the answer have no
    rank. Intervals and the probability of a place in the top three are those of a bootstrap over seeds, the same ones
    for all methods, and over families.

    Args:
        rows: by problem, as `build` returns them.

    Raises:
        UserError: fewer than two methods are on the same two problems.
    """
    common = _common_scores(rows, rule)
    families = [family_of(name, rows[name]) for name in common]
    order = _ranks_of_families(common, families)
    methods, samples = list(order), [table.to_numpy() for table in common.values()]
    means, among_top = _resampled(samples, pd.factorize(np.array(families), sort=True)[0], resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame(
        {"method": methods, "mean_rank": order.mean().to_numpy(), "low": low, "high": high, "top": among_top}
    ).sort_values(["mean_rank", "method"], ignore_index=True)
    difference = critical_difference(len(methods), len(order))
    return Ranking(table, order, difference, friedman(-order), list(common))


def _common_scores(rows: Mapping[str, pd.DataFrame], rule: Select) -> dict[str, pd.DataFrame]:
    """Return the scores (seeds, methods) of the methods that are ranked on each problem that counts; see `ranking`."""
    values = {
        name: scores(without_oracles(table), rule) for name, table in rows.items() if rule.value in set(table["stage"])
    }
    count = pd.Series([str(method) for table in values.values() for method in table]).value_counts()
    shared = set(count.index[count >= 2])
    enough = SHARE_OF_METHODS * len(shared)
    common = {name: table for name, table in values.items() if len(shared & set(table)) >= enough}
    methods = sorted(set.intersection(*(set(map(str, table)) for table in common.values()))) if common else []
    if len(methods) < 2 or len(common) < 2:
        raise UserError(f"no ranks by {rule.value}: that takes two methods on the same two problems")
    return {name: table[methods] for name, table in common.items()}


def _ranks_of_families(common: Mapping[str, pd.DataFrame], families: list[str]) -> pd.DataFrame:
    """Rank methods (columns) in each family of problems (row) by the means over seeds of scores (seeds, methods)."""
    methods = next(iter(common.values())).columns
    order = pd.DataFrame([_ranks(table.to_numpy().mean(0)) for table in common.values()], columns=methods)
    return order.groupby(families).mean().rank(axis=1)


def family_of(name: str, rows: pd.DataFrame) -> str:
    """Return the family of a problem, which is its own where the rows name none."""
    return str(rows["family"].iloc[0]) if "family" in rows else name


def _ranks(means: Array) -> Array:
    """Rank scores of which a high one is good; 1 is the best, equal ones share the mean of their ranks."""
    return np.asarray(alike(pd.Series(means)).rank(ascending=False), dtype=np.float64)


def _resampled(samples: list[Array], families: NDArray[np.intp], resamples: int) -> tuple[Array, Array]:
    """Bootstrap scores (seeds, methods) of each problem over seeds and families of problems.

    Args:
        samples: of each problem.
        families: number of each problem's family, from 0 on.
        resamples: how often.

    Returns:
        Mean ranks (resamples, methods), and the share of resamples in which each method is in the top three; methods
        that tie for a place share it.
    """
    rng = np.random.default_rng(0)
    ranks = np.empty((resamples, len(samples), samples[0].shape[1]))
    for p, sample in enumerate(samples):
        seeds = rng.integers(len(sample), size=(resamples, len(sample)))
        ranks[:, p] = pd.DataFrame(sample[seeds].mean(1)).rank(axis=1, ascending=False).to_numpy()
    count = int(families.max()) + 1
    of_families = [ranks[:, families == family].mean(1) for family in range(count)]
    ranked = np.stack([pd.DataFrame(means).rank(axis=1).to_numpy() for means in of_families], axis=1)
    drawn = rng.integers(count, size=(resamples, count))
    means = np.take_along_axis(ranked, drawn[:, :, None], axis=1).mean(1)
    places = pd.DataFrame(means)
    first, last = (places.rank(axis=1, method=method).to_numpy() for method in ("min", "max"))
    shares = np.clip((TOP + 1 - first) / (last - first + 1), 0, 1)
    return means, shares.mean(0)


def standings_of_all(rows: Mapping[str, pd.DataFrame], rule: Select) -> dict[str, pd.DataFrame]:
    """Return the standings of each problem on which something was selected by a rule.

    Raises:
        UserError: there is none.
    """
    tables = {name: standings(table, rule) for name, table in rows.items() if rule.value in set(table["stage"])}
    if not tables:
        raise UserError(f"nothing was selected by {rule.value} in this edition")
    return tables


def overall(
    rows: Mapping[str, pd.DataFrame], rule: Select, tables: Mapping[str, pd.DataFrame] | None = None
) -> pd.DataFrame:
    """Sum up an edition, a row per method.

    Columns: method, added (whether it is other than the edition's), knows, mean_rank, low, high, top (see `Ranking`;
    NaN for methods without a rank), problems (on which it has fresh runs by this rule), better, same, worse (on how
    many of them it is better than ERM, cannot be told from it, is worse or has failed), first (on how many it is the
    best of those that are not told the answer), cost (median over problems of the seconds of its tuning, divided by
    ERM's), optimistic_share (share of problems on which the selected settings scored more in validation than fresh
    seeds do).

    Args:
        rows: by problem, as `build` returns them.
        rule: of selection.
        tables: what `standings_of_all` returns of them; None computes it.

    Raises:
        UserError: nothing was selected by this rule.
    """
    tables = standings_of_all(rows, rule) if tables is None else tables
    each = pd.concat(tables, names=["problem"]).reset_index("problem")
    best = each.groupby("problem")["rank"].min()
    costs = pd.DataFrame({name: tuning_seconds(rows[name]) for name in tables})
    counts = [
        {
            "method": method,
            ADDED: bool(of_method[ADDED].any()),
            "knows": of_method["knows"].iloc[0],
            "problems": len(of_method),
            "better": int((of_method["verdict"] == BETTER).sum()),
            "same": int(of_method["verdict"].isin([SAME, ""]).sum()),
            "worse": int((~of_method["verdict"].isin([BETTER, SAME, ALONE, ""])).sum()),
            "first": int((of_method["rank"] == of_method["problem"].map(best)).sum()),
            "cost": float((costs.T[method] / costs.T[BASELINE]).median()) if BASELINE in costs.index else math.nan,
            "optimistic_share": float((of_method["optimism"].dropna() > 0).mean()),
        }
        for method, of_method in each.groupby("method")
    ]
    table = pd.DataFrame(counts)
    try:
        table = table.merge(ranking(rows, rule).table, on="method", how="left")
    except UserError:
        table = table.assign(mean_rank=math.nan, low=math.nan, high=math.nan, top=math.nan)
    first = ["method", ADDED, "knows", "mean_rank", "low", "high", "top"]
    return table.sort_values(["mean_rank", "method"], ignore_index=True)[
        [*first, *(name for name in table if name not in first)]
    ]


def agreement(rows: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Compare the order of methods by the first rule with that by each other rule, on the problems that both have.

    Returns:
        For each other rule: rule, problems, methods, tau (Kendall's, of mean ranks), top (how many of the first three
        are among the first three by both), and chance: the mean tau between the orders of two halves of the fresh seeds
        by the first rule, on the same problems. With less than half of the seeds in one, it understates what all give.
    """
    from scipy.stats import kendalltau

    results: list[dict[str, Any]] = []
    for rule in RULES[1:]:
        both = {name: table for name, table in rows.items() if {RULES[0].value, rule.value} <= set(table["stage"])}
        try:
            problems = set.intersection(*(set(_common_scores(both, one)) for one in (RULES[0], rule)))
            both = {name: both[name] for name in sorted(problems)}
            common = [_common_scores(both, one) for one in (RULES[0], rule)]
        except UserError:
            continue
        orders = [_ranks_of_families(table, [family_of(name, rows[name]) for name in table]).mean() for table in common]
        methods = sorted(set(orders[0].index) & set(orders[1].index))
        first, second = (order[methods] for order in orders)
        tau = float(kendalltau(first, second).statistic)
        top = len(set(first.nsmallest(TOP).index) & set(second.nsmallest(TOP).index))
        chance = _agreement_of_halves(common[0], [family_of(name, rows[name]) for name in common[0]])
        result = {"rule": rule, "problems": len(both), "methods": len(methods), "tau": tau, "top": top}
        results.append(result | {"chance": chance})
    return results


def _agreement_of_halves(common: Mapping[str, pd.DataFrame], families: list[str]) -> float:
    """Return the mean of Kendall's tau between the orders of two halves of the fresh seeds, over all such halves."""
    from scipy.stats import kendalltau

    seeds = sorted(set.intersection(*(set(table.index) for table in common.values())))
    taus = []
    for half in combinations(seeds, len(seeds) // 2):
        parts = (list(half), [seed for seed in seeds if seed not in half])
        orders = [
            _ranks_of_families({name: table.loc[part] for name, table in common.items()}, families).mean()
            for part in parts
        ]
        taus.append(float(kendalltau(*orders).statistic))
    return float(np.mean(taus)) if len(seeds) > 1 else math.nan


def sentence(rows: Mapping[str, pd.DataFrame]) -> str:
    """Say whether the order of methods survives another rule of selection, as `agreement` computes it."""
    parts = []
    for row in agreement(rows):
        answer = "yes" if row["tau"] >= SAME_ORDER else "no" if row["tau"] < OTHER_ORDER else "in part"
        if row["chance"] <= row["tau"] < SAME_ORDER:
            answer = "it cannot be told, for other seeds change it as much"
        rule, _ = RULES_IN_WORDS[row["rule"]]
        seeds = f", {row['chance']:.2f} between halves of the fresh seeds by one rule"
        parts.append(
            f"by {rule}, {answer} (Kendall's tau {row['tau']:.2f} of {row['methods']} methods on "
            f"{row['problems']} problems{'' if math.isnan(row['chance']) else seeds}; of the first {TOP} methods "
            f"{row['top']} {'is' if row['top'] == 1 else 'are'} the same)"
        )
    first = RULES_IN_WORDS[RULES[0]][0]
    return f"does the order of methods by {first} survive another rule? Computed: {'; '.join(parts)}" if parts else ""


def significance_in_words(ranked: Ranking) -> str:
    """Say how many methods can be told apart by their mean ranks."""
    distances = ranked.table["mean_rank"] - ranked.table["mean_rank"].min()
    if distances.max() < ranked.critical_difference:
        return f"no two of the {len(distances)} methods can be told apart by their mean ranks (Nemenyi, 5 %)"
    close = int((distances < ranked.critical_difference).sum()) - 1
    return (
        f"{close} of the other {len(distances) - 1} methods cannot be told from the first one by their mean ranks "
        "(Nemenyi, 5 %)"
    )


def laid_out(table: pd.DataFrame, rows: Mapping[str, pd.DataFrame], rule: Select) -> tuple[Layout, list[str]]:
    """Lay what `overall` returns out for people, with the remarks below it."""
    lines: list[tuple[list[str], list[Entry | None]]] = []
    for _, row in table.iterrows():
        has_rank = not math.isnan(row["mean_rank"])
        ranks = f"{row['mean_rank']:.1f} ({row['low']:.1f} to {row['high']:.1f})" if has_rank else ""
        verdicts = "" if row["method"] == BASELINE else f"{row['better']} / {row['same']} / {row['worse']}"
        top, cost = f"{row['top']:.0%}" if has_rank else "", f"{row['cost']:.{0 if row['cost'] >= 10 else 1}f}"
        cost = "" if math.isnan(row["cost"]) else cost
        place, knowledge = str(len(lines) + 1) if has_rank else "", knowledge_in_words(row["knows"])
        lines.append(([place, shown_name(row), ranks, top, verdicts, str(row["problems"]), cost, knowledge], []))
    names = ["place", "method", "mean rank", f"top {TOP}", "better / same / worse", "problems", "cost", "knows"]
    return Layout(names, [], lines), [*remarks(rows, rule), *added_remark(table), sentence(rows)]


def remarks(rows: Mapping[str, pd.DataFrame], rule: Select) -> list[str]:
    """Return the lines that a reader of `overall` needs."""
    lines = [
        f"settings are selected by {RULES_IN_WORDS[rule][0]} and run with fresh seeds; {len(rows)} problems",
        "better / same / worse than ERM: number of problems (paired t-test at 5 %, Holm-corrected over the methods)",
        f"same: also where the difference is below {SMALLEST:.0%} of ERM's value",
        f"cost: seconds of the whole tuning, as a multiple of ERM's, median over problems; {SHARED}",
        "knows: what a method is told beyond inputs and labels",
    ]
    try:
        ranked = ranking(rows, rule, resamples=1)
    except UserError as error:
        return [*lines, str(error)]
    families, methods = ranked.ranks.shape
    bootstrap = "95 % of a bootstrap over seeds and families"
    on = f"all of {len(ranked.problems)} problems in {families} families, which count alike"
    difference = f"{ranked.critical_difference:.1f} cannot be told apart (Nemenyi, 5 %)"
    return [
        *lines,
        f"mean rank: of the {methods} methods that can be run on {on}, with {bootstrap}",
        f"mean ranks closer than {difference}; all alike: p = {ranked.friedman:.2g} (Friedman)",
        f"top {TOP}: probability of a place among the first {TOP}, by the same bootstrap",
    ]
