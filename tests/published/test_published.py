"""Published numbers: that each claim can be run, and that verdicts are what they say."""

from typing import Any

import pandas as pd
import pytest
from cells import small_settings
from conftest import Bench

from invbench.errors import UserError
from invbench.published.claims import Claim, Number, Source, claims_of, sources
from invbench.published.verdicts import against_published, sweep_of, verdicts
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training.runner import run_one

CLAIMS = {name: claim for source in sources().values() for name, claim in source.claims.items()}
PROBLEMS = {
    (claim.dataset, str(claim.set.get("dataset.example"))): (name, claim)
    for name, claim in CLAIMS.items()
    if claim.method != "icp" and claim.dataset != "images"  # whose files a test of groups makes
}


def test_names_are_unique() -> None:
    assert len(CLAIMS) == sum(len(source.claims) for source in sources().values())
    assert not set(CLAIMS) & set(sources())


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_can_be_run(name: str) -> None:
    configs = sweep_of(CLAIMS[name]).runs()
    assert {config.spec.dataset for config in configs} == {CLAIMS[name].dataset}


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("name", "claim"), PROBLEMS.values(), ids=[name for name, _ in PROBLEMS.values()])
def test_the_metrics_of_claims_exist(name: str, claim: Claim, tmp_path: Any) -> None:
    """On each problem, a small run has what its claims are about."""
    needed = [other for other in CLAIMS.values() if other.dataset == claim.dataset]
    same = [other for other in needed if other.set.get("dataset.example") == claim.set.get("dataset.example")]
    example = {key: value for key, value in claim.set.items() if key == "dataset.example"}
    for method in {other.method for other in same} - {"icp", "steerable"}:
        settings = {"trainer.steps": 12} | small_settings(method, claim.dataset) | example
        record = run_one(resolve(method, claim.dataset, 0, settings), Options(out=tmp_path))
        metrics = {number.metric for other in same if other.method == method for number in other.numbers}
        assert metrics <= set(record.metrics)


def rows_of(claim: Claim, **columns: object) -> pd.DataFrame:
    """Return the results of all runs of a claim, as `load_results` does."""
    rows = []
    for config in sweep_of(claim).runs():
        spec = config.spec
        names = {name: getattr(spec, name) for name in ("method", "dataset", "backbone", "seed", "protocol")}
        rows.append(names | spec.flat() | {"run_id": spec.run_id, "status": "done", "cost.wall_seconds": 2.0})
    return pd.DataFrame(rows).assign(**{"cost.seconds_per_step": 0.1} | columns)


CLAIM = Claim(
    what="a claim", method="erm", dataset="spirals", seeds="0-3",
    numbers=(
        Number(metric="test_accuracy", value=0.5, spread=0.1, tolerance=0.02),
        Number(metric="test_loss", statistic="median", range=(1.0, 2.0)),
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def only_this(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    claim = getattr(request, "param", CLAIM)
    sources = {"source": Source(source="somebody", claims={"claim": claim})}
    monkeypatch.setattr("invbench.published.verdicts.sources", lambda: sources)


def verdicts_of(results: pd.DataFrame) -> list[str]:
    return against_published(results)["verdict"].tolist()


def test_reproduced_or_not() -> None:
    results = rows_of(CLAIM, test_accuracy=[0.5, 0.51, 0.52, 0.53], test_loss=[1.5, 1.7, 9.0, 0.1])
    verdicts_table = against_published(results)
    assert verdicts_table["verdict"].tolist() == ["reproduced", "reproduced"]
    assert verdicts_table["ours"].tolist() == [pytest.approx(0.515), pytest.approx(1.6)]
    assert verdicts_table["published"].tolist() == ["0.5 ± 0.1", "1 to 2"]
    assert verdicts_table["seconds"].tolist() == [2.0, 2.0]
    assert verdicts_of(results.assign(test_accuracy=0.53, test_loss=2.1)) == ["not reproduced", "not reproduced"]


def test_not_yet_run() -> None:
    assert verdicts_of(pd.DataFrame()) == ["not yet run", "not yet run"]
    some = rows_of(CLAIM, test_accuracy=0.5, test_loss=1.5).iloc[:3]
    verdicts_table = against_published(some)
    assert verdicts_table["verdict"].tolist() == ["not yet run", "not yet run"]
    assert verdicts_table["n"].tolist() == [3, 3]
    failed = rows_of(CLAIM, test_accuracy=0.5, test_loss=1.5, status=["done", "done", "done", "failed"])
    assert verdicts_of(failed) == ["not yet run", "not yet run"]


def test_what_is_watched_does_not_matter_and_other_settings_do() -> None:
    results = rows_of(CLAIM, test_accuracy=0.5, test_loss=1.5)
    assert verdicts_of(results.assign(**{"trainer.evaluate_every": 7.0})) == ["reproduced", "reproduced"]
    more = results.assign(**{"trainer.evaluate_every": 7.0}, run_id=["a", "b", "c", "d"])
    assert verdicts_of(pd.concat([results.iloc[:3], more.iloc[2:]])) == ["reproduced", "reproduced"]
    verdicts_table = against_published(results.assign(**{"trainer.learning_rate": 0.5}))
    assert verdicts_table["verdict"].tolist() == ["different protocol"] * 2
    assert verdicts_table["why"].iloc[0] == "trainer.learning_rate 0.5 instead of 0.01"
    verdicts_table = against_published(results.assign(seed=[10, 11, 12, 13]))
    assert verdicts_table["why"].tolist() == ["other seeds"] * 2
    assert verdicts_of(results.assign(**{"data.variant": "partial"})) == ["different protocol"] * 2
    assert verdicts_of(results.assign(protocol="oracle")) == ["different protocol"] * 2


def test_numbers_of_a_larger_table_are_numbers() -> None:
    """Beside runs of something else columns have gaps, and whole numbers become others."""
    others = pd.DataFrame([{"method": "icp", "dataset": "chain_sem", "status": "done", "run_id": "x", "seed": 0}])
    results = pd.concat([rows_of(CLAIM, test_accuracy=0.5, test_loss=1.5), others], ignore_index=True)
    assert results["trainer.steps"].dtype != int
    assert verdicts_of(results) == ["reproduced", "reproduced"]


@pytest.mark.parametrize("only_this", [CLAIM.model_copy(update={"verified": False})], indirect=True)
def test_what_nobody_verified_is_shown_and_not_judged() -> None:
    assert verdicts_of(rows_of(CLAIM, test_accuracy=0.5, test_loss=7.0)) == ["recalled", "recalled"]


SELECTED = CLAIM.model_copy(
    update={"grid": {"trainer.learning_rate": (0.1, 0.2)}, "select": "oracle", "numbers": CLAIM.numbers[:1]}
)


@pytest.mark.parametrize("only_this", [SELECTED], indirect=True)
def test_settings_that_are_selected() -> None:
    results = rows_of(SELECTED, test_accuracy=0.4)
    results.loc[results["trainer.learning_rate"] == 0.2, "test_accuracy"] = 0.5
    assert verdicts_of(results) == ["reproduced"]
    assert verdicts_of(results.iloc[1:]) == ["not yet run"], "one of the settings lacks a seed"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ({"metric": "a"}, "give either a value or a range"),
        ({"metric": "a", "value": 1.0, "range": [0.0, 1.0], "tolerance": 1.0}, "give either a value or a range"),
        ({"metric": "a", "value": 1.0}, "a value needs a tolerance"),
    ],
)
def test_a_number_says_what_is_near_enough(number: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Number.parse(number, "number")


def test_names_are_looked_up() -> None:
    assert set(claims_of("pivot_with_game")) == {"pivot_with_game"}
    assert "erm_spirals" in claims_of("and_mask")
    with pytest.raises(UserError, match="did you mean 'erm_spirals'"):
        claims_of("erm_spiral")


def test_the_table_for_people() -> None:
    layout, remarks = verdicts(against_published(rows_of(CLAIM, test_accuracy=0.5, test_loss=1.5)))
    assert layout.rows[0][0] == ["claim", "test_accuracy", "0.5 ± 0.1", "0.500 ± 0.000", "4/4", "reproduced"]
    assert remarks[0].startswith("2 reproduced")
    layout, remarks = verdicts(against_published(pd.DataFrame()))
    assert (layout.rows, remarks[0].startswith("2 not yet run")) == ([], True)


@pytest.mark.slow
def test_a_claim_is_put_to_the_test(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invbench.published.verdicts.sources", sources)
    status, out, _ = bench("reproduce", "erm_regression_all", "--workers", "1", "--out", "published")
    assert status == 0
    assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["reproduced", "reproduced"]
    status, out, _ = bench("table", "published", "--vs-published", "--format", "csv")
    assert sum(line.startswith("erm_regression_all") and ",reproduced," in line for line in out.splitlines()) == 2
    status, out, _ = bench("reproduce", "erm_regression_all", "--out", "published", "--dry-run")
    assert "0 of 1 runs are left" in out
