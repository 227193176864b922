"""A method from a file goes through the leaderboard: run, shown, carried out again, submitted, and checked."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from invbench.cli import app
from invbench.core.registry import IMPORT_VARIABLE, METHODS
from invbench.errors import RunFailed, UserError
from invbench.leaderboard import edition as editions
from invbench.leaderboard.edition import Edition, read_edition
from invbench.leaderboard.submission import check_submission
from invbench.leaderboard.verify import EXACT, agreeing_digits, config_of, sampled

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
    table = bench("show", "--problem", "spirals", "--format", "csv")
    assert {"erm", "vrex", MINE} == {line.split(",")[0] for line in table.stdout.splitlines()[1:]}
    assert "spirals" in bench("run", "-m", "mine.py", "--quiet").output  # all of it is there


def test_rows_are_carried_out_again(world: tuple[Path, Path]) -> None:
    result = bench("verify", "--sample", 12, "--format", "csv")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 13
    assert all("the same numbers" in line or "within the spread" in line for line in lines[1:])


def test_a_row_that_cannot_be_reproduced_is_named(world: tuple[Path, Path]) -> None:
    path = world[0] / "results" / "leaderboard" / "small" / "spirals.parquet"
    before = path.read_bytes()
    rows = pd.read_parquet(path)
    rows.assign(test_accuracy=rows["test_accuracy"] / 7).to_parquet(path)
    result = bench("verify", "--sample", 2)
    path.write_bytes(before)
    assert isinstance(result.exception, RunFailed)
    assert "2 of 2 rows are not reproduced" in str(result.exception)


def test_a_sample_is_of_finished_rows_and_the_same_for_the_same_seed(world: tuple[Path, Path]) -> None:
    table = pd.read_parquet(world[1] / "spirals.parquet")
    rows = {"spirals": table.assign(status=["failed", *["done"] * (len(table) - 1)])}
    chosen = sampled(rows, 1000)
    assert len(chosen) == len(table) - 1
    pd.testing.assert_frame_equal(sampled(rows, 5, seed=3), sampled(rows, 5, seed=3))
    row = table.iloc[0].copy()
    row["trainer.learning_rate"] = 0.5
    with pytest.raises(UserError, match="is none of this edition"):
        config_of(tiny(), row)


def test_a_submission_as_it_should_be(world: tuple[Path, Path]) -> None:
    _, folder = world
    assert sorted(path.name for path in folder.iterdir()) == ["spirals.parquet", "submission.yaml", f"{MINE}.py"]
    assert (folder / f"{MINE}.py").read_text() == WORST_CASE
    assert check_submission(tiny(), folder) == []
    assert "is as edition test asks" in bench("check", folder).output


def tampered(world: tuple[Path, Path], tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path / "submission"
    shutil.copytree(world[1], folder)
    return folder, pd.read_parquet(folder / "spirals.parquet")


def test_what_is_wrong_with_a_submission_is_found(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, rows = tampered(world, tmp_path)

    def complaints(changed: pd.DataFrame) -> str:
        changed.to_parquet(folder / "spirals.parquet")
        return "; ".join(check_submission(tiny(), folder))

    search = rows["stage"] == "search"
    fresh = rows["stage"] == "best_validation"
    assert complaints(rows) == ""
    assert "stage search has 3 of 4 runs, and 0 others" in complaints(rows.drop(index=rows.index[search][0]))
    assert "have seeds [100], not 100-101" in complaints(rows.drop(index=rows.index[fresh][0]))
    assert "runs have other settings than their identities say" in complaints(
        rows.assign(**{"trainer.learning_rate": 0.5})
    )
    score = "best_validation.validation_accuracy"
    worse = rows[score].where(~search, 1 - rows[score] + rows["trainer.learning_rate"])
    better = rows["trainer.learning_rate"] == rows.loc[fresh, "trainer.learning_rate"].iloc[0]
    assert "other settings than it selects" in complaints(rows.assign(**{score: worse.where(~(search & better), -1.0)}))
    assert "is no share" in complaints(rows.assign(test_accuracy=1.5))
    assert "rows of another method" in complaints(rows.assign(method="erm"))
    (folder / "spirals.parquet").unlink()
    assert "there are no rows for spirals" in "; ".join(check_submission(tiny(), folder))


def test_a_submission_says_which_edition_and_which_file(world: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = tampered(world, tmp_path)
    (folder / f"{MINE}.py").write_text(WORST_CASE + "# and something else\n")
    assert check_submission(tiny(), folder) == [f"{MINE}.py is not the file of file_sha256"]
    content = yaml.safe_load((folder / "submission.yaml").read_text())
    (folder / "submission.yaml").write_text(yaml.safe_dump(content | {"file": "../../secret.py"}))
    assert check_submission(tiny(), folder) == ["../../secret.py is no file of the folder"]
    (folder / "submission.yaml").write_text(yaml.safe_dump(content | {"edition": "2020.1"}))
    with pytest.raises(UserError, match=r"is of edition 2020.1, and this is test; they are not mixed"):
        check_submission(tiny(), folder)


def test_what_is_incomplete_is_not_submitted(world: tuple[Path, Path], tmp_path: Path) -> None:
    result = bench("submit", "-m", "vrex", "--out", tmp_path)
    assert "vrex cannot be submitted: there are no rows for spirals" in str(result.exception)
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
