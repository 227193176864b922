"""Tables of all sorts as problems: csv and parquet files, against pandas and scikit-learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from cells import small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

import invbench
from invbench.core.data import Problem
from invbench.core.task import BinaryClassification, Classification, Regression
from invbench.datasets import _columns
from invbench.datasets.table import Table
from invbench.errors import UserError
from invbench.runs.resolve import resolve
from invbench.seeding import stream
from invbench.testing.dataset_checks import DATASET_CHECKS

SEED = stream(0, "data")
COUNT = 90


def frame_of(count: int = COUNT) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": rng.normal(5, 3, count),
            "age": rng.integers(0, 40, count),
            "soil": rng.choice(["clay", "sand", "silt"], count),
            "organic": rng.random(count) < 0.5,
            "region": rng.choice(["east", "north", "west"], count),
            "harvest": rng.normal(size=count),
            "good": rng.choice(["no", "yes"], count),
            "_row": np.arange(count),
        }
    )
    frame.loc[[4, 17, 60], "size"] = np.nan
    frame.loc[[5, 40], "soil"] = None
    frame["part"] = np.where(np.arange(count) % 3 == 0, "test", "train")
    return frame


@pytest.fixture
def frame() -> pd.DataFrame:
    return frame_of()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Problem]:
    """Return a function that writes a table and loads it."""

    def loaded(frame: pd.DataFrame, suffix: str = "parquet", **given: Any) -> Problem:
        path = write(frame, tmp_path / f"farms.{suffix}")
        return Table(path=str(path), **({"target": "good", "missing": "mean"} | given)).load(SEED)

    return loaded


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return path


def whole(problem: Problem) -> torch.Tensor:
    return torch.cat([split.x for split in problem.splits.values()])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("missing", ["mean", "zero", "indicator"])
@pytest.mark.parametrize("standardised", [True, False])
def test_features_are_those_of_scikit_learn(
    frame: pd.DataFrame, load: Callable[..., Problem], suffix: str, missing: str, standardised: bool
) -> None:
    problem = load(frame, suffix, split="part", missing=missing, standardise=standardised, exclude=("region", "harv*"))
    train = frame["part"] == "train"
    columns = [frame[["size", "age"]], pd.get_dummies(frame["soil"], dtype=float)]
    columns[1][frame["soil"].isna()] = np.nan
    columns.append(pd.get_dummies(frame["organic"], dtype=float))
    features = pd.concat(columns, axis=1).to_numpy(float)
    imputer = SimpleImputer(strategy="constant" if missing == "zero" else "mean", fill_value=0.0)
    expected = imputer.fit(features[train]).transform(features)
    if missing == "indicator":
        expected = np.hstack([expected, frame[["size", "soil"]].isna().to_numpy(float)])
    if standardised:
        expected = StandardScaler().fit(expected[train]).transform(expected)
    np.testing.assert_allclose(problem.splits["train"].x, expected[train], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(problem.splits["test"].x, expected[~train], rtol=1e-5, atol=1e-6)
    assert problem.splits["test"].y.tolist() == (frame["good"][~train] == "yes").astype(float).tolist()
    assert problem.classes == ("no", "yes")
    assert problem.facts == {"rows": COUNT, "missing_values": 5}
    assert problem.variant == "full"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_batches_leave_no_trace(
    frame: pd.DataFrame, load: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Nor do row groups, or texts that first occur late."""
    frame = pd.concat([frame.assign(soil="clay"), frame], ignore_index=True)
    given = {"environment": "region", "nuisance": ("harvest",), "examples": 150}
    expected = load(frame, suffix, **given).fingerprint
    monkeypatch.setattr(_columns, "BATCH", 7)
    monkeypatch.setattr(_columns, "BLOCK", 300)
    assert load(frame, suffix, **given).fingerprint == expected


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=5).map("t{}".format)
CONTENT = {
    "a": st.floats(-1e30, 1e30) | st.just(float("nan")),
    "b": st.integers(-(2**62), 2**62),
    "c": TEXTS | st.none(),
    "d": st.booleans(),
    "e": TEXTS,
}


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(*CONTENT.values()), min_size=12, max_size=30))
def test_the_format_does_not_matter(rows: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory) -> None:
    frame = pd.DataFrame(rows, columns=list(CONTENT)).assign(y=np.arange(len(rows)) % 3, f=0.5)
    frame.loc[0, "a"], frame.loc[0, "c"] = 0.0, "t"  # a column without any value is refused
    paths = [write(frame, tmp_path_factory.mktemp("t") / f"t.{suffix}") for suffix in ("csv", "parquet")]
    given_ = {
        "target": "y",
        "missing": "zero",
        "standardise": False,
        "split": "split",
        "attribute": "d",
        "environment": "e",
    }
    for path in paths:
        write(frame.assign(split=np.where(np.arange(len(rows)) < 6, "train", "test")), path)
    first, second = (Table(path=str(path), **given_).load(SEED) for path in paths)
    assert first.fingerprint == second.fingerprint
    assert first.provenance == second.provenance
    assert torch.isfinite(whole(first)).all()


def test_environments_that_are_tested_are_not_trained_on(frame: pd.DataFrame, load: Callable[..., Problem]) -> None:
    problem = load(frame, environment="region", test_environments=("east",), features=("age",), standardise=False)
    assert problem.environment_names == ("north", "west", "east")
    assert problem.provenance["environment_names"] == ["north", "west", "east"]
    counts = frame["region"].value_counts()
    inside = {name: round(0.2 * counts[name]) for name in ("north", "west")}
    sizes = {
        name: split.env.bincount(minlength=3).tolist()
        for name, split in problem.splits.items()
        if split.env is not None
    }
    assert sizes == {
        "train": [counts["north"] - inside["north"], counts["west"] - inside["west"], 0],
        "test_in": [inside["north"], inside["west"], 0],
        "test": [0, 0, counts["east"]],
    }  # fmt: skip
    expected = frame["age"][frame["region"] == "east"]
    assert problem.splits["test"].x[:, 0].tolist() == expected.tolist()


def test_a_share_of_each_environment_is_tested(frame: pd.DataFrame, load: Callable[..., Problem]) -> None:
    problem = load(frame.assign(region=frame["age"] // 20 + 2007), environment="region", test_share=0.5)
    assert problem.environment_names == ("2007", "2008")
    assert set(problem.splits) == {"train", "test"}
    train, test = problem.splits["train"].env, problem.splits["test"].env
    assert train is not None
    assert test is not None
    assert (train.bincount() - test.bincount()).abs().max() <= 1
    tested = load(frame.assign(region=frame["age"] // 20 + 2007), environment="region", test_environments=(2008,))
    assert tested.environment_names == ("2007", "2008")


@pytest.mark.parametrize(
    ("target", "given", "task", "classes"),
    [
        (lambda f: f["harvest"], {}, Regression, ()),
        (lambda f: f["age"] % 4, {}, Classification, ("0", "1", "2", "3")),
        (lambda f: f["age"] % 4 / 1.0, {"task": "classification"}, Classification, ("0", "1", "2", "3")),
        (lambda f: f["age"], {"task": "regression"}, Regression, ()),
        (lambda f: f["organic"], {}, BinaryClassification, ("False", "True")),
        (lambda f: f["region"].astype("category"), {}, Classification, ("east", "north", "west")),
    ],
)
def test_tasks(
    frame: pd.DataFrame, load: Callable[..., Problem], target: Any, given: dict[str, Any], task: type, classes: Any
) -> None:
    problem = load(frame.assign(good=target(frame)), split="part", **given)
    assert isinstance(problem.task, task)
    assert problem.classes == classes
    train = frame["part"] == "train"
    y = target(frame)[train]
    if isinstance(problem.task, Regression):
        assert (problem.task.mean, problem.task.std) == pytest.approx((y.mean(), y.std(ddof=0)))
    else:
        y = y.astype(str if y.dtype != float else int).astype(str).map(classes.index)
    np.testing.assert_allclose(problem.splits["train"].y, y, rtol=1e-6)


def test_many_whole_numbers_are_real_numbers(load: Callable[..., Problem]) -> None:
    frame = frame_of(1100)
    problem = load(frame.assign(good=frame["_row"]), nuisance=("_row",))
    assert isinstance(problem.task, Regression)
    nuisance = problem.splits["test"].nuisance
    assert nuisance is not None
    assert nuisance.dtype == torch.float32
    with pytest.raises(
        UserError, match="dataset.task=classification: column good has more than 1,000 different values"
    ):
        load(frame.assign(good=frame["_row"]), task="classification")


def test_nuisances(frame: pd.DataFrame, load: Callable[..., Problem]) -> None:
    """They are no features; of the columns size, age, soil (3 texts), organic (2), region (3) and harvest."""
    frame["age"] = (frame["age"] % 3).astype(float)
    numbers = frame.apply(lambda column: column if column.name == "harvest" else column.astype("category").cat.codes)
    cases: list[tuple[dict[str, Any], Any, int]] = [
        ({"attribute": "region"}, numbers["region"], 8),
        ({"attribute": "age"}, numbers["age"], 10),
        ({"attribute": "region", "nuisance": ("harvest",)}, frame["harvest"], 7),
        ({"nuisance": ("age", "harvest")}, frame[["age", "harvest"]], 9),
        ({"nuisance": ("organic", "region")}, numbers[["organic", "region"]], 6),
    ]
    for given_, expected, width in cases:
        problem = load(frame, split="part", **given_)
        nuisance = problem.splits["test"].nuisance
        assert nuisance is not None
        assert nuisance.is_floating_point() == ("harvest" in given_.get("nuisance", ()))
        np.testing.assert_allclose(nuisance, expected[frame["part"] == "test"], rtol=1e-6)
        assert problem.input_shape == (width,)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("weight", ["age", "size"])
def test_weights_are_no_features_and_change_nothing_else(
    frame: pd.DataFrame, load: Callable[..., Problem], suffix: str, weight: str
) -> None:
    frame["size"] = np.arange(COUNT) + 0.5
    given = {"split": "part", "features": ("soil", "harvest")}
    problem, plain = load(frame, suffix, weight=weight, **given), load(frame, suffix, **given)
    for name, split in problem.splits.items():
        assert split.weights is not None
        assert split.weights.tolist() == frame[weight][frame["part"] == name].tolist()
        assert torch.equal(split.inputs(), plain.splits[name].inputs()), "means and deviations count every row once"
    every = load(frame, suffix, split="part", weight="age")
    assert every.input_shape[0] == load(frame, suffix, split="part").input_shape[0] - 1


def test_what_is_constant_in_training_is_zero(frame: pd.DataFrame, load: Callable[..., Problem]) -> None:
    """Though the mean of 0.1 is not 0.1 in 32 bits, and though it varies elsewhere."""
    frame = frame.assign(age=np.where(frame["part"] == "train", 0.1, 7.0))
    assert load(frame, split="part", features=("age",)).splits["train"].x.abs().max() == 0
    assert load(frame, split="part", features=("age",)).splits["test"].x.abs().max() == 0


def test_a_part_of_the_rows(frame: pd.DataFrame, load: Callable[..., Problem]) -> None:
    problem = load(frame, examples=40, features=("_row",), standardise=False)
    assert problem.variant == "partial"
    assert problem.facts["rows"] == COUNT
    rows = whole(problem)[:, 0].tolist()
    assert len(set(rows)) == 40
    assert load(frame, "csv", examples=40, features=("_row",), standardise=False).fingerprint == problem.fingerprint
    with pytest.raises(UserError, match="dataset.examples is 91, but there are only 90"):
        load(frame, examples=91)


def lists(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(age=[[1, 2]] * len(frame))


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (None, {"target": "god"}, r"dataset.target: the table .* has no column 'god'; did you mean 'good'\?"),
        (None, {"environment": "regions"}, "dataset.environment: .* no column 'regions'; did you mean 'region'"),
        (None, {"features": ("siz",)}, "dataset.features: no column is 'siz'; did you mean 'size'"),
        (None, {"features": ("good",)}, "dataset.features: column 'good' has another role"),
        (None, {"exclude": ("x*",)}, r"dataset.exclude: no column is 'x\*'"),
        (None, {"exclude": ("*",)}, "has no features: its columns are size, age"),
        (
            None,
            {"missing": "error"},
            "column size misses values in 3 of its rows, the first in row 5; set dataset.missing",
        ),
        (lambda f: f.assign(size=np.nan), {}, "column size has no value in any row; leave it out"),
        (
            lambda f: f.assign(size=np.where(f.part == "train", np.nan, 1)),
            {"split": "part"},
            "no value in the training",
        ),
        (lambda f: f.assign(size=np.where(f.index == 7, np.inf, 1)), {}, "column size has an infinite value in row 8"),
        (lambda f: f.assign(size=1e31), {}, "column size has values beyond 1e\\+30; divide it"),
        (
            lambda f: f.assign(soil=f["_row"].astype(str) + "x").pipe(more),
            {},
            "more than 100 different texts",
        ),
        (
            lambda f: f.assign(size=np.where(f.part == "train", f._row * 1e-30, 1e10)),
            {"split": "part"},
            "column size has a value .* training deviations from the training mean; leave it out",
        ),
        (lambda f: f.assign(size=pd.Timestamp("2007-03-01")), {}, "column size holds dates; write what matters"),
        (lambda f: f.assign(good=pd.Timestamp("2007-03-01")), {}, "dataset.target: column good holds dates"),
        (
            lambda f: f.assign(good=f.good.where(f.index != 9)),
            {},
            "dataset.target: column good has no value in row 10;",
        ),
        (lambda f: f.assign(region=f.region.where(f.index != 0)), {"environment": "region"}, "no value in row 1;"),
        (None, {"environment": "harvest"}, "dataset.environment: column harvest has real numbers, such as "),
        (None, {"target": "harvest", "task": "classification"}, "dataset.task=classification: column harvest has real"),
        (None, {"task": "regression"}, "column good holds no numbers, which dataset.task=regression needs"),
        (lambda f: f.assign(good="yes"), {}, "column good has the class yes only"),
        (lambda f: f.assign(good=f.part), {"split": "part"}, "no training example has the class test"),
        (lambda f: f.assign(harvest=1.0), {"target": "harvest"}, "column harvest is the same number in all training"),
        (lambda f: f.assign(part="Test"), {"split": "part"}, "dataset.split: column part has 'Test'; use lower-case"),
        (lambda f: f.assign(part="test"), {"split": "part"}, "split names test; it must name train and test"),
        (None, {"environment": "region", "test_environments": ("eas",)}, "no environment 'eas'; did you mean 'east'"),
        (None, {"environment": "region", "test_environments": ("east", "north", "west")}, "leave one to train on"),
        (
            None,
            {"nuisance": ("harvest", "region")},
            "column region holds categories, and others of dataset.nuisance real",
        ),
        (None, {"weight": "ages"}, "dataset.weight: the table .* has no column 'ages'; did you mean 'age'"),
        (None, {"weight": "soil"}, "dataset.weight: column soil holds no numbers"),
        (None, {"weight": "organic"}, "dataset.weight: column organic holds no numbers"),
        (None, {"weight": "size"}, "dataset.weight: column size has no value in row 5; remove the row or fill it in"),
        (None, {"weight": "harvest"}, "column harvest has the negative value -.*; a weight is 0 or more"),
        (lambda f: f.assign(age=f.age - 1), {"weight": "age"}, "column age has the negative value -1; a weight is 0"),
        (
            lambda f: f.assign(size=np.where(f.index == 7, np.inf, 1.5)),
            {"weight": "size"},
            "column size has an infinite value in row 8",
        ),
        (lambda f: f.assign(size=1e-40), {"weight": "size"}, "column size has the value 1e-40; a weight is 0, or from"),
        (
            lambda f: f.assign(age=(f.part == "test").astype(int)),
            {"weight": "age", "split": "part"},
            "column age is 0 in all training examples; one at least needs a weight above 0",
        ),
        (
            lambda f: f.assign(age=(f.region != "north").astype(int)),
            {"weight": "age", "environment": "region"},
            "column age is 0 in all training examples of environment north; one at least",
        ),
        (None, {"weight": "age", "features": ("age",)}, "dataset.features: column 'age' has another role"),
        (lambda f: f.rename(columns={"age": ""}), {}, "has a column without a name"),
        (lambda f: f.head(0), {}, "the table .* has no rows"),
        (
            lambda f: f.head(1),
            {"missing": "zero", "features": ("age",)},
            "1 examples leave nothing to train or to test on",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_does_not_fit(
    frame: pd.DataFrame, load: Callable[..., Problem], suffix: str, change: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(frame if change is None else change(frame), suffix, **given)
    assert "\n" not in str(error.value)


def more(frame: pd.DataFrame) -> pd.DataFrame:
    """Append rows with other soils."""
    return pd.concat([frame, frame.assign(soil=frame["soil"] + "y")], ignore_index=True)


def test_files_that_are_none(frame: pd.DataFrame, tmp_path: Path) -> None:
    texts = {
        "empty.csv": "", "longer.csv": "a,y\n1,2\n1,2,3\n", "twice.csv": "a,a,y\n1,2,3\n",
        "semicolons.csv": "a;y\n1;2\n", "broken.parquet": "nothing", "odd.txt": "a,y\n1,2\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes(b"a,y\n\xe9,2\n")
    parquet.write_table(pa.table([[1], [2], [3]], names=["a", "a", "y"]), tmp_path / "twice.parquet")
    parquet.write_table(pa.table({"a": [[1]], "y": [2]}), tmp_path / "list.parquet")
    for name, message in (
        ("empty.csv", "cannot be read: Empty CSV file"),
        ("longer.csv", "cannot be read: CSV parse error: Row #3: Expected 2 columns, got 3"),
        ("latin.csv", "cannot be read: "),
        ("twice.csv", "several columns named a; give each a name of its own"),
        ("twice.parquet", "several columns named a; give each a name of its own"),
        ("semicolons.csv", "is it separated by ';'"),
        ("list.parquet", r"column a holds list<.*>, no numbers or texts; leave it out: dataset.exclude=\[a\]"),
        ("broken.parquet", "cannot be read"),
        ("odd.txt", "dataset.path is .*odd.txt; it must end in .parquet or .csv"),
        ("nowhere.csv", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            Table(path=str(tmp_path / name), target="y").load(SEED)


def test_what_a_csv_file_means(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b,c,d,part,y\n 1,1,TRUE,"x, y",train,0\n2 ,2.5,false,z,train,1\nNA,,true,z,test,1\n')
    problem = Table(path=str(path), target="y", split="part", missing="zero", standardise=False).load(SEED)
    assert problem.splits["train"].x.tolist() == [[1, 1, 0, 1, 1, 0], [2, 2.5, 1, 0, 0, 1]]
    assert problem.splits["test"].x.tolist() == [[0, 0, 0, 1, 0, 1]]


def test_more_values_than_are_read(
    frame: pd.DataFrame, load: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of parquet before anything is read; of csv, which has a byte for each, before room is made for them."""
    for module in ("_columns", "table"):
        monkeypatch.setattr(f"invbench.datasets.{module}.MAX_VALUES", 3 * COUNT - 1)
    with pytest.raises(UserError, match="cannot be read: its 90 rows have more than 269 values"):
        load(frame, features=("size", "age"))
    with pytest.raises(UserError, match="has more than 269 values; use fewer rows by dataset.examples"):
        load(frame, "csv", features=("size", "age"))
    assert load(frame, "csv", features=("size", "age"), examples=80).facts["rows"] == COUNT


def test_long_texts_that_a_dictionary_repeats_stay_short(tmp_path: Path) -> None:
    """100,000 rows of a text of a megabyte are 100 gigabytes, and a file of a megabyte."""
    rng = np.random.default_rng(0)
    text = pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, 2, 100_000)), pa.array(["a" * 2**20, "b"]))
    table = pa.table({"a": text, "y": rng.integers(0, 2, 100_000)})
    parquet.write_table(table, tmp_path / "t.parquet", store_schema=False)
    problem = Table(path=str(tmp_path / "t.parquet"), target="y").load(SEED)
    assert problem.input_shape == (2,)


GIVEN: list[dict[str, Any]] = [
    {"dataset__target": "good", "dataset__task": "classification", "dataset__attribute": "region"},
    {"dataset__target": "harvest", "dataset__task": "regression", "dataset__environment": "region"},
    {"dataset__target": "harvest", "dataset__task": "regression", "dataset__weight": "age"},
]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("check", DATASET_CHECKS, ids=lambda check: check.__name__)
def test_a_table_keeps_the_contract(frame: pd.DataFrame, tmp_path: Path, check: Any, given: dict[str, Any]) -> None:
    path = write(frame, tmp_path / "farms.csv")
    quick = {name.replace(".", "__"): value for name, value in Table.small.items()}
    check(small_config("erm", "table", dataset__path=str(path), dataset__missing="mean", **(quick | given)))


def test_methods_get_what_they_require(frame: pd.DataFrame, tmp_path: Path) -> None:
    given = {"dataset.path": str(write(frame, tmp_path / "farms.csv")), "dataset.target": "good"}
    assert resolve("rsc", "table", 0, given).dataset.task == "classification"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="method irmv1 needs environments; say where dataset table has them"):
        resolve("irmv1", "table", 0, given)
    with pytest.raises(UserError, match="setting 'dataset.path' is missing"):
        resolve("erm", "table", 0)
    with pytest.raises(UserError, match="test_environments needs environment, the column that has them"):
        resolve("erm", "table", 0, given | {"dataset.test_environments": ["a"]})
    with pytest.raises(UserError, match="split says which rows are tested; leave out test_environments and test_share"):
        resolve("erm", "table", 0, given | {"dataset.split": "part", "dataset.test_share": 0.3})


def test_a_run(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["good"] = np.where(frame["age"] > 20, "yes", "no")
    path = write(frame, tmp_path / "farms.csv")
    given = {
        "dataset.path": str(path), "dataset.target": "good", "dataset.missing": "mean", "dataset.environment": "region",
        "dataset.test_environments": ["east"], "trainer.batch_size": 16, "trainer.learning_rate": 0.01,
    }  # fmt: skip
    record = invbench.run("vrex", "table", settings=given, out=tmp_path / "runs", device="cpu")
    assert record.metrics["test_accuracy"] > 0.8
    assert record.data["environment_names"] == ["north", "west", "east"]
    assert "test_in_accuracy_worst" in record.metrics


@pytest.mark.parametrize("column", ["time", "target"])
def test_numbers_that_32_bits_cannot_tell_apart_are_refused(column: str, tmp_path: Path) -> None:
    """A file of 32-bit numbers would have the same value in all rows, and no word about it."""
    frame = pd.DataFrame({"time": np.linspace(0, 40, 50), "target": np.linspace(-1, 1, 50)})
    frame[column] += 1.7e9
    frame.to_parquet(tmp_path / "table.parquet")
    settings = {"dataset.path": str(tmp_path / "table.parquet"), "dataset.target": "target"}
    message = f"column {column} has values near 1.7e.09 that differ by .* subtract their mean"
    with pytest.raises(UserError, match=message):
        invbench.load_problem("table", settings=settings)


def test_a_method_that_needs_environments_says_how_to_name_them(tmp_path: Path) -> None:
    settings = {"dataset.path": str(tmp_path / "none.csv"), "dataset.target": "target"}
    with pytest.raises(UserError, match="needs environments; say where dataset table has them: dataset.environment="):
        invbench.run("irmv1", "table", settings=settings, out=tmp_path)
