"""A method from a file goes through the leaderboard: run, shown, carried out again, submitted, and checked."""

import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from invbench.choices import Rerun
from invbench.cli import app
from invbench.core.registry import IMPORT_VARIABLE, METHODS
from invbench.errors import RunFailed, UserError
from invbench.leaderboard import build as leaderboard_build
from invbench.leaderboard import edition as editions
from invbench.leaderboard import verify as verification
from invbench.leaderboard.added import without_old_rows
from invbench.leaderboard.build import RULES
from invbench.leaderboard.edition import Edition, read_edition
from invbench.leaderboard.rows import read_curves, read_rows
from invbench.leaderboard.submission import check_rows, check_submission, write_submission
from invbench.leaderboard.verify import EXACT, OTHER, agreeing_digits, config_of, flatters, sampled, verify
from invbench.runs.resolve import resolve
from invbench.training.build import load_problem

pytestmark = pytest.mark.slow  # the processes of two builds import torch again and again
WORST_CASE = '''
import torch
from invbench import LogUniform, Method, register_method, setting

@register_method("worst_case_of_tests")
class WorstCase(Method):
    """Minimise a soft maximum over environments of the risk."""
    requires = ("environments",)
    sharpness: float = setting(5.0, "per nat of risk", gt=0, search=LogUniform(0.1, 100), fusable=True)

    def risk(self, risks, env, state):
        return torch.logsumexp(self.sharpness * risks, dim=0) / self.sharpness, state
'''
MINE = "worst_case_of_tests"
ROOT = Path(__file__).parent.parent.parent


def tiny() -> Edition:
    small = {
        "trainer.steps": 4, "trainer.schedule": "constant", "trainer.batch_size": 8, "backbone.width": 4,
        "dataset.environments": 3, "dataset.examples": 32, "dataset.test_examples": 50,
    }  # fmt: skip
    problem = {"what": "two spirals", "dataset": "spirals", "set": small, "left_out": 3}
    others = editions.possible_methods("spirals", small)
    impossible = {method.partition("+")[0]: "for speed" for method in others if method not in ("erm", "vrex", MINE)}
    impossible |= {method: "for speed" for method in others if "+" in method}
    content = {
        "version": "test", "trials": 1, "seeds": "0-1", "fresh_seeds": "100-101",
        "problems": {"spirals": problem | {"impossible": impossible}},
    }  # fmt: skip
    return Edition.parse(content, source="the edition")


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["leaderboard", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Yield a folder with a built edition, a method that was run, and its submission; and the submission's folder."""
    folder = tmp_path_factory.mktemp("leaderboard")
    (folder / "mine.py").write_text(WORST_CASE)
    edition = tiny()
    with pytest.MonkeyPatch.context() as patch, METHODS.temporary():
        patch.setattr(editions, "read_edition", lambda name: edition)
        patch.setenv(IMPORT_VARIABLE, "")
        patch.chdir(folder)
        for command in (
            ("build", "--workers", 1, "--quiet"),
            ("run", "-m", "mine.py", "--workers", 1, "--quiet"),
            ("submit", "-m", "mine.py"),
        ):
            result = bench(*command)
            assert result.exit_code == 0, (command, result.output, result.exception)
        assert MINE in bench("show", "--add", f"results/leaderboard-mine/small/{MINE}").output
        yield folder, folder / "results" / "leaderboard" / "small" / "submissions" / MINE


def test_a_method_is_shown_in_its_place(world: tuple[Path, Path]) -> None:
    table = bench("show", "--problem", "spirals", "--format", "csv", "--add", world[1])
    assert {"erm", "vrex", MINE} == {line.split(",")[0] for line in table.stdout.splitlines()[1:]}
    assert "spirals" in bench("run", "-m", "mine.py", "--quiet").output  # all of it is there


def test_rows_are_carried_out_again(world: tuple[Path, Path]) -> None:
    result = bench("verify", "--sample", 12, "--format", "csv")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 13
    assert all("the same numbers" in line or "within the spread" in line for line in lines[1:])


def test_a_row_that_cannot_be_reproduced_is_named(world: tuple[Path, Path], tmp_path: Path) -> None:
    rows = pd.read_parquet(world[0] / "results" / "leaderboard" / "small" / "spirals.parquet")
    accuracies = [name for name in rows if re.fullmatch(r"(best_validation\.)?(test|held_out)_accuracy", name)]
    (tmp_path / "small").mkdir()
    rows.assign(**{name: rows[name] / 7 for name in accuracies}).to_parquet(tmp_path / "small" / "spirals.parquet")
    result = bench("verify", "--sample", 2, "--folder", tmp_path)
    assert isinstance(result.exception, RunFailed)
    assert "2 of 2 rows are not reproduced" in str(result.exception)


def test_a_sample_is_of_all_rows_and_the_same_for_the_same_seed(world: tuple[Path, Path]) -> None:
    table = pd.read_parquet(world[1] / "spirals.parquet")
    rows = {"spirals": table.assign(status=["failed", *["done"] * (len(table) - 1)])}
    assert len(sampled(rows, 1000)) == len(table)
    fresh = [int((sampled(rows, count)["stage"].isin(list(map(str, RULES)))).sum()) for count in (1, 2, 6, len(table))]
    assert fresh == [1, 1, 3, int(table["stage"].isin(list(map(str, RULES))).sum())]
    pd.testing.assert_frame_equal(sampled(rows, 5, seed=3), sampled(rows, 5, seed=3))
    row = table.iloc[0].copy()
    row["trainer.learning_rate"] = 0.5
    with pytest.raises(UserError, match="is none of this edition"):
        config_of(tiny(), row)


def test_a_submission_as_it_should_be(world: tuple[Path, Path]) -> None:
    _, folder = world
    assert sorted(path.name for path in folder.iterdir()) == ["spirals.parquet", "submission.yaml", f"{MINE}.py"]
    assert (folder / f"{MINE}.py").read_text() == WORST_CASE
    assert check_submission(tiny(), folder, {}) == []
    assert "is as edition test asks" in bench("check", folder).output


def test_rows_of_a_method_are_merged_into_the_edition(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    merge = importlib.import_module("merge_leaderboard_rows").merge
    made, folder = world[0] / "results" / "leaderboard-mine" / "small", tmp_path / "small"
    shutil.copytree(world[0] / "results" / "leaderboard" / "small", folder)
    before = read_rows(folder, ["spirals"], "test")["spirals"]
    for _ in range(2):
        merge(tiny(), [MINE], made, folder)
        merged = read_rows(folder, ["spirals"], "test")["spirals"]
        assert merged["method"].value_counts()[MINE] == len(read_rows(made / MINE, ["spirals"], "test")["spirals"])
        others = merged[merged["method"] != MINE].reset_index(drop=True)
        pd.testing.assert_frame_equal(others[list(before)], before)
        assert set(read_curves(folder, ["spirals"])["spirals"]["method"]) == {"erm", "vrex", MINE}
    lacking = tmp_path / "made" / MINE
    shutil.copytree(made / MINE, lacking, ignore=shutil.ignore_patterns("runs"))
    rows = pd.read_parquet(lacking / "spirals.parquet")
    rows.iloc[1:].to_parquet(lacking / "spirals.parquet")
    with pytest.raises(SystemExit, match=f"{MINE}: spirals: stage"):
        merge(tiny(), [MINE], lacking.parent, folder)


def tampered(world: tuple[Path, Path], tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path / "submission"
    shutil.copytree(world[1], folder)
    return folder, pd.read_parquet(folder / "spirals.parquet")


def test_what_is_wrong_with_a_submission_is_found(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)

    def complaints(changed: pd.DataFrame) -> str:
        changed.to_parquet(folder / "spirals.parquet")
        try:
            return "; ".join(check_submission(tiny(), folder, {}))
        except UserError as error:
            return str(error)

    search = rows["stage"] == "search"
    fresh = rows["stage"] == "best_validation"
    assert complaints(rows) == ""
    assert "stage search has 3 of 4 runs, and 0 others" in complaints(rows.drop(index=rows.index[search][0]))
    one_of_two = "stage best_validation has 1 of the 2 fresh runs of the settings that the rule selects, and 0 others"
    assert one_of_two in complaints(rows.drop(index=rows.index[fresh][0]))
    other = complaints(rows.assign(**{"trainer.learning_rate": 0.5}))
    assert "runs have other settings than the edition's, or than their identities say" in other
    score = "best_validation.validation_accuracy"
    worse = rows[score].where(~search, 1 - rows[score] + rows["trainer.learning_rate"])
    better = rows["trainer.learning_rate"] == rows.loc[fresh, "trainer.learning_rate"].iloc[0]
    selected_otherwise = complaints(rows.assign(**{score: worse.where(~(search & better), -1.0)}))
    assert "stage best_validation has 0 of the 2 fresh runs" in selected_otherwise
    assert "is no share" in complaints(rows.assign(test_accuracy=1.5))
    assert "rows of another method" in complaints(rows.assign(method="erm"))
    assert "there is no column run_id" in complaints(rows.drop(columns="run_id"))
    assert "test_accuracy holds other than numbers" in complaints(rows.assign(test_accuracy="high"))
    assert "seeds are no integers" in complaints(rows.assign(seed=rows["seed"] + 0.5))
    assert "status is 'DONE'" in complaints(rows.assign(status="DONE"))
    assert "cost.wall_seconds is negative or infinite" in complaints(rows.assign(**{"cost.wall_seconds": float("inf")}))
    assert "is not finite in runs that are done" in complaints(rows.assign(**{score: float("nan")}))
    assert "rows were made by other code" in complaints(rows.assign(code=["0", *rows["code"][1:]]))
    assert "there is no stage extra" in complaints(rows.assign(stage=rows["stage"].where(~fresh, "extra")))
    (folder / "spirals.parquet").unlink()
    assert "there are no rows for spirals" in "; ".join(check_submission(tiny(), folder, {}))


def test_a_submission_is_of_a_method_that_its_file_registers(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)
    content = yaml.safe_load((folder / "submission.yaml").read_text())

    def complaints(**changed: str) -> str:
        (folder / "submission.yaml").write_text(yaml.safe_dump(content | changed))
        return str(bench("check", folder).output)

    text = WORST_CASE.replace(MINE, "another_of_tests")
    digest = {"file_sha256": sha256(text.encode()).hexdigest()}
    for name, complaint in (
        ("erm", "erm comes with the suite; its rows are those of `bench leaderboard build`"),
        ("ghost", "the file that registers ghost is not there, or registers another method"),
    ):
        (folder / f"{name}.py").write_text(text)
        rows.assign(method=name).to_parquet(folder / "spirals.parquet")
        assert complaint in complaints(method=name, file=f"{name}.py", **digest)
    (tmp_path / "evil.py").write_text("raise SystemExit('it was imported')")
    assert "'../evil' is no name of a method" in complaints(method="../evil", file="../evil.py", **digest)
    assert complaints().count("rows of another method or problem") == 1
    (folder / "spirals.parquet").unlink()
    assert "there are no rows for spirals" in complaints()


def test_a_submission_is_of_the_data_of_the_edition(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)
    base = {"spirals": pd.read_parquet(world[0] / "results" / "leaderboard" / "small" / "spirals.parquet")}
    other = rows["data.fingerprint"].where(rows["seed"] != 100, "0" * 16)
    rows.assign(**{"data.fingerprint": other}).to_parquet(folder / "spirals.parquet")
    complaint = "spirals: the data of seeds 100 are not those of the edition's runs"
    assert check_submission(tiny(), folder, base) == [complaint]


def test_what_was_made_by_other_code_is_not_submitted(world: tuple[Path, Path], tmp_path: Path) -> None:
    rows = {"spirals": pd.read_parquet(world[1] / "spirals.parquet").assign(code="0123456789abcdef")}
    with pytest.raises(UserError, match=r"spirals: rows were made by other code; `bench leaderboard run --problem"):
        write_submission(tiny(), rows, MINE, {}, tmp_path)
    (tmp_path / "file").write_text("")
    result = bench("submit", "-m", "mine.py", "--out", tmp_path / "file")
    assert "cannot be written" in str(result.exception)


def test_submissions_are_shown_when_they_are_added(world: tuple[Path, Path]) -> None:
    """The edition stays what it is, and says that there are some."""
    result = bench("show", "--problem", "spirals")
    assert MINE not in result.stdout
    assert "1 submitted methods are not shown; `--add results/leaderboard/small/submissions` does" in result.stderr
    added = bench("show", "--problem", "spirals", "--add", world[1].parent)
    assert f"{MINE} (added)" in added.stdout
    assert "submitted methods" not in added.stderr
    assert isinstance(bench("show", "--add", world[0] / "nowhere").exception, UserError)


def test_a_submission_is_carried_out_again_with_the_file_that_it_has(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "of_another_name"
    shutil.copytree(world[1], folder)
    registered = METHODS._registered.pop(MINE)
    try:
        (folder / f"{MINE}.py").rename(folder / "elsewhere.py")
        result = bench("verify", "--sample", 2, "--add", folder)
        assert f"{MINE} is not registered: set INVBENCH_IMPORT" in str(result.exception)
        (folder / "elsewhere.py").rename(folder / f"{MINE}.py")
        result = bench("verify", "--sample", 2, "--add", folder, "--format", "csv")
        assert result.exit_code == 0, (result.output, result.exception)
        assert [line.split(",")[1] for line in result.stdout.splitlines()[1:]] == [MINE] * 2
    finally:
        METHODS._registered[MINE] = registered


def test_rows_of_some_methods_are_carried_out_again(world: tuple[Path, Path]) -> None:
    result = bench("verify", "--sample", 3, "--method", "vrex", "--format", "csv")
    assert {line.split(",")[1] for line in result.stdout.splitlines()[1:]} == {"vrex"}
    assert "no such rows of vrx; did you mean 'vrex'" in str(bench("verify", "--method", "vrx").exception)
    assert "no such rows of erm" in str(bench("verify", "--method", "erm", "--add", world[1]).exception)
    assert "all are compared with erm" in str(bench("run", "-m", "erm").exception)
    assert "selects by best_validation, leave_one_env_out, oracle" in str(bench("show", "--rule", "last").exception)


def test_one_row_in_twenty_may_be_another_number(world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding grows in a few long runs; the rows stay named in the table."""

    def verdicts(count: int) -> Callable[..., pd.DataFrame]:
        verdict = [OTHER] * count + ["the same numbers"] * (40 - count)
        columns = ["problem", "stage", "run_id", "number", "note"]
        return lambda *arguments: pd.DataFrame(
            dict.fromkeys(columns, "")
            | {"method": "vrex", "seed": 0, "row": 0.5, "again": 0.5, "digits": 1, "above": 0.0, "verdict": verdict}
        )

    monkeypatch.setattr(verification, "verify", verdicts(2))
    assert bench("verify").exit_code == 0
    monkeypatch.setattr(verification, "verify", verdicts(3))
    assert "3 of 40 rows are not reproduced: 3 of vrex" in str(bench("verify").exception)


def of(rows: dict[str, pd.DataFrame], method: str) -> dict[str, pd.DataFrame]:
    return {name: table[table["method"] == method] for name, table in rows.items()}


def test_rows_that_are_added_can_be_compared(world: tuple[Path, Path], tmp_path: Path) -> None:
    """Odd ones are refused; those of a method of the edition take its place; nothing else changes what is shown."""
    edition = pd.read_parquet(world[0] / "results" / "leaderboard" / "small" / "spirals.parquet")
    mine, folder = pd.read_parquet(world[1] / "spirals.parquet"), tmp_path / "odd"
    folder.mkdir()
    show = ("show", "--problem", "spirals", "--format", "csv")

    def added(rows: pd.DataFrame, *arguments: object) -> Result:
        rows.to_parquet(folder / "spirals.parquet")
        return bench(*(arguments or show), "--add", folder)

    for rows, complaint in (
        (mine.assign(method="../mine"), "'../mine' is no name of a method"),
        (mine.assign(problem="chain_fou"), "rows are of another problem"),
        (mine.assign(**{"data.metric": "validation_accuracy"}), "data.metric is not test_accuracy in all rows"),
        (mine.assign(method="erm"), "has rows of erm, which all are compared with"),
    ):
        assert complaint in str(added(rows).exception)
        assert isinstance(added(rows).exception, UserError)
    honest, without = (pd.read_csv(StringIO(text)) for text in (added(mine).stdout, bench(*show).stdout))
    pd.testing.assert_frame_equal(
        honest[honest["method"] != MINE].drop(columns="rank").reset_index(drop=True), without.drop(columns="rank")
    )
    odd = mine.assign(trial=0, added=False, **{"data.constant.test_accuracy": 99.0})
    assert added(odd).stdout == added(mine).stdout
    result = added(edition[edition["method"] == "vrex"])
    assert "vrex: rows of" in result.stderr
    assert "are shown in the place of the edition's" in result.stderr
    only_trials = added(mine[mine["stage"] == "search"])
    assert f"{MINE}: no fresh runs here by this rule" in only_trials.stderr
    (folder / "nope.parquet").write_bytes((folder / "spirals.parquet").read_bytes())
    assert "the edition has no such problem" in str(bench(*show, "--add", folder).exception)


def test_runs_are_carried_out_again_whatever_is_there(world: tuple[Path, Path], tmp_path: Path) -> None:
    rows = {"spirals": pd.read_parquet(world[1] / "spirals.parquet")}
    first = verify(tiny(), rows, 2, tmp_path, some=of(rows, MINE))
    for record in tmp_path.glob("*/record.json"):
        text = re.sub(r'"test_accuracy": [0-9.e-]+', '"test_accuracy": 0.123', record.read_text())
        assert "0.123" in text
        record.write_text(text)
    pd.testing.assert_frame_equal(verify(tiny(), rows, 2, tmp_path, some=of(rows, MINE)), first)


def test_rows_that_are_better_than_what_is_found_are_told(world: tuple[Path, Path], tmp_path: Path) -> None:
    """Each is within the spread of seeds, and all are better."""
    rows = pd.read_parquet(world[0] / "results" / "leaderboard" / "small" / "spirals.parquet")
    name = "best_validation.test_accuracy"
    is_fresh = rows["stage"] == "best_validation"
    of_erm = is_fresh & (rows["method"] == "erm")
    rows.loc[of_erm, name] = np.linspace(0.4, 0.6, int(of_erm.sum()))
    deviation = rows.loc[of_erm, name].std()
    forged = rows.assign(**{name: rows[name] + 0.9 * deviation * (is_fresh & (rows["method"] == "vrex"))})
    table = verify(tiny(), {"spirals": forged}, len(rows), tmp_path, some=of({"spirals": forged}, "vrex"))
    assert OTHER not in set(table["verdict"])
    assert flatters(table)
    assert not flatters(verify(tiny(), {"spirals": rows}, len(rows), tmp_path, some=of({"spirals": rows}, "vrex")))


def test_a_submission_is_judged_as_the_edition_is(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)
    base = {"spirals": pd.read_parquet(world[0] / "results" / "leaderboard" / "small" / "spirals.parquet")}
    assert check_submission(tiny(), folder, base) == []
    rows.assign(**{"data.metric": "validation_accuracy"}).to_parquet(folder / "spirals.parquet")
    assert check_submission(tiny(), folder, base) == ["spirals: data.metric is not test_accuracy in all rows"]


def test_fresh_runs_of_easier_data_are_no_runs_of_the_edition(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)
    easier = {"dataset.examples": 64}
    edition = tiny()
    for index in rows.index[rows["stage"] == "best_validation"]:
        settings = edition.settings_of(MINE, edition.problem("spirals")) | easier
        settings |= {
            name: value
            for name, value in rows.loc[index].items()
            if name.startswith(("method.", "trainer.l", "trainer.w"))
        }
        config = resolve(MINE, "spirals", int(rows.loc[index, "seed"]), settings, protocol="best_validation")
        rows.loc[index, "run_id"] = config.spec.run_id
    rows["dataset.examples"] = 32
    rows.loc[rows["stage"] == "best_validation", "dataset.examples"] = 64
    rows.to_parquet(folder / "spirals.parquet")
    complaints = "; ".join(check_submission(edition, folder, {}))
    assert "2 runs have other settings than the edition's" in complaints
    assert "stage best_validation has 0 of the 2 fresh runs" in complaints
    with pytest.raises(UserError, match="has settings that are those of no trial"):
        verify(edition, {"spirals": rows[rows["stage"] == "best_validation"]}, 1, tmp_path / "again")


def test_all_numbers_that_a_run_is_judged_by_are_verified(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)
    rows.loc[rows["stage"] == "best_validation", "best_validation.test_accuracy"] = 1.0
    rows.to_parquet(folder / "spirals.parquet")
    base = pd.read_parquet(world[0] / "results" / "leaderboard" / "small" / "spirals.parquet")
    together = pd.concat([base, rows[rows["stage"] == "best_validation"]], ignore_index=True)
    table = verify(tiny(), {"spirals": together}, len(together), tmp_path / "again")
    mine = table[table["method"] == MINE]
    assert set(mine["verdict"]) == {OTHER}
    assert set(mine["number"]) == {"best_validation.test_accuracy"}
    assert OTHER not in set(table.loc[table["method"] != MINE, "verdict"])


def test_a_method_is_counted_once(world: tuple[Path, Path]) -> None:
    mine = f"results/leaderboard-mine/small/{MINE}"
    show = ("show", "--problem", "spirals", "--format", "csv", "--add", mine)
    assert bench(*show, "--add", world[1]).stdout == bench(*show).stdout


def test_what_other_code_made_is_made_again(world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Rerun] = []
    build = leaderboard_build.build
    monkeypatch.setattr(leaderboard_build, "build", lambda *arguments: seen.append(arguments[-1]) or build(*arguments))
    assert bench("run", "-m", "mine.py", "--quiet").exit_code == 0
    assert seen == [Rerun.stale]


def test_rows_of_other_code_are_left_out(world: tuple[Path, Path]) -> None:
    path = world[0] / "results" / "leaderboard-mine" / "small" / MINE / "spirals.parquet"
    rows = read_rows(path.parent, ["spirals"], "test")
    assert len(without_old_rows(rows, tiny(), MINE)["spirals"]) == len(rows["spirals"])
    old = {"spirals": rows["spirals"].assign(code="0123456789abcdef")}
    assert without_old_rows(old, tiny(), MINE) == {}
    assert len(without_old_rows(old, tiny(), "vrex")["spirals"]) == len(rows["spirals"])


def test_an_error_of_a_method_ends_its_first_run_and_names_the_line(world: tuple[Path, Path]) -> None:
    name = "worst_case_with_an_error"
    text = WORST_CASE.replace(MINE, name).replace("return torch.logsumexp", "return torch.logsumexp_of_nothing")
    (world[0] / "wrong.py").write_text(text)
    result = bench("run", "-m", "wrong.py", "--workers", 1)
    line = 1 + text.splitlines().index(next(line for line in text.splitlines() if "of_nothing" in line))
    assert "AttributeError: module 'torch' has no attribute 'logsumexp_of_nothing'" in result.stderr
    assert f"(wrong.py, line {line})" in result.stderr
    assert len(list((world[0] / "results" / "leaderboard-mine" / "small" / name).rglob("record.json"))) == 1
    assert isinstance(result.exception, RunFailed)


DIVERGING = """
    def build(self, model, problem):
        if ALWAYS or round(float(problem.splits["train"].x.sum()), 3) in SUMS:
            torch.nn.init.constant_(next(model.parameters()), torch.nan)
        return model
"""


@pytest.mark.parametrize(
    ("name", "seeds", "stages"),
    [
        ("diverges_afresh", (100, 101), {"search", "left_out"}),
        ("diverges_in_the_search", (0, 1), {"left_out"}),
        ("diverges_always", (), set()),
    ],
)
def test_a_method_that_diverges_is_last(
    world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str, seeds: tuple[int, ...], stages: set[str]
) -> None:
    """In all fresh runs, or in all trials, or in all runs; the data tell it which one it is in."""
    configs = [resolve("erm", "spirals", seed, tiny().problems["spirals"].set) for seed in seeds]
    sums = [round(float(load_problem(config).splits["train"].x.sum()), 3) for config in configs]
    text = WORST_CASE.replace(MINE, name) + DIVERGING.replace("SUMS", str(sums)).replace("ALWAYS", str(not seeds))
    (world[0] / f"{name}.py").write_text(text)
    monkeypatch.setenv(IMPORT_VARIABLE, "")  # other tests' files register one method twice, which processes refuse
    result = bench("run", "-m", f"{name}.py", "--workers", 1, "--quiet")
    assert result.exit_code == 0, (result.output, result.exception)
    folder = Path("results", "leaderboard-mine", "small", name)
    rows = read_rows(folder, ["spirals"], "test")
    assert set(rows["spirals"].loc[rows["spirals"]["status"] == "done", "stage"]) == stages
    table = pd.read_csv(StringIO(bench("show", "--problem", "spirals", "--format", "csv", "--add", folder).stdout))
    assert table.set_index("method")["rank"].to_dict()[name] == 3
    assert not list(check_rows(tiny(), rows, name, read_rows(Path("results/leaderboard/small"), ["spirals"], "test")))


def test_a_problem_without_rows_is_said_before_it_is_run(world: tuple[Path, Path]) -> None:
    result = bench("run", "-m", "mine.py", "--quiet", "--folder", "elsewhere")
    assert "there are no rows of other methods on spirals in elsewhere" in result.stderr


def test_a_submission_says_which_edition_and_which_file(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = tampered(world, tmp_path)
    (folder / f"{MINE}.py").write_text(WORST_CASE + "# and something else\n")
    assert check_submission(tiny(), folder, {}) == [f"{MINE}.py is not the file of file_sha256"]
    content = yaml.safe_load((folder / "submission.yaml").read_text())
    (folder / "submission.yaml").write_text(yaml.safe_dump(content | {"file": "../../secret.py"}))
    complaint = "../../secret.py is no file of the folder that is named after the method"
    assert check_submission(tiny(), folder, {}) == [complaint]
    (tmp_path / "secret.py").write_text("raise SystemExit('it was imported')")
    assert complaint in bench("check", folder).output
    (folder / "submission.yaml").write_text(yaml.safe_dump(content | {"file": None, "file_sha256": None}))
    assert check_submission(tiny(), folder, {}) == [f"the file that registers {MINE} is not there"]
    (folder / "submission.yaml").write_text(yaml.safe_dump(content | {"edition": "2020.1"}))
    with pytest.raises(UserError, match=r"is of edition 2020.1, and this is test; they are not mixed"):
        check_submission(tiny(), folder, {})


def test_what_is_incomplete_is_not_submitted(world: tuple[Path, Path], tmp_path: Path) -> None:
    result = bench("submit", "-m", "mine.py", "--mine", tmp_path / "nothing", "--out", tmp_path)
    assert f"{MINE} cannot be submitted: there are no rows for spirals" in str(result.exception)
    result = bench("submit", "-m", "vrex", "--out", tmp_path)
    assert "vrex cannot be submitted: vrex comes with the suite" in str(result.exception)
    assert not any(tmp_path.iterdir())


def test_files_that_register_no_method_or_several(world: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("x = 1")
    result = bench("run", "-m", tmp_path / "none.py")
    assert "registers 0 methods (none); it must be one" in str(result.exception)
    (tmp_path / "broken.py").write_text("1 / 0")
    assert "does not load: ZeroDivisionError" in str(bench("run", "-m", tmp_path / "broken.py").exception)
    assert "is no Python file" in str(bench("run", "-m", tmp_path / "absent.py").exception)


def test_digits_that_agree() -> None:
    assert agreeing_digits(0.123456, 0.123456) == EXACT
    assert agreeing_digits(0.123456, 0.123457) == 5
    assert agreeing_digits(-1.0, 1.0) == 0
    assert agreeing_digits(float("nan"), 1.0) == 0


def test_every_submission_is_as_its_edition_asks() -> None:
    for folder in (ROOT / "results" / "leaderboard").glob("*/submissions/*"):
        result = bench("check", folder, "--edition", folder.parent.parent.name)
        assert result.exit_code == 0, result.output


def test_the_package_has_the_edition_small() -> None:
    assert read_edition("small").version
