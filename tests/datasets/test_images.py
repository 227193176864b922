"""Pictures of one's own: every layout is read, splits hold what they say, and bad input is one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import CLASSES, ENVIRONMENTS, write_tree
from PIL import Image

import invbench
from invbench.core.data import Problem, Split
from invbench.core.image_file import ImageFile
from invbench.core.pixels import IMAGENET
from invbench.datafiles import picture_cache
from invbench.datasets import _pictures, images
from invbench.errors import UserError
from invbench.testing import check_dataset

SMALL: dict[str, Any] = {"dataset.image_size": 8, "trainer.batch_size": 4, "backbone.width": 4}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pictures")


def load(tree: Path, seed: int = 0, **settings: Any) -> Problem:
    named = {f"dataset.{name}": value for name, value in settings.items()}
    return invbench.load_problem("images", seed=seed, settings={"dataset.root": str(tree), **SMALL_DATA} | named)


SMALL_DATA = {"dataset.image_size": 8}


def test_test_environments_are_whole_and_the_others_are_split_by_seed(tree: Path) -> None:
    problem = load(tree, test_environments=("photo",))
    assert problem.classes == CLASSES
    assert problem.environment_names == ("art", "sketch", "photo")
    sizes = {name: len(split) for name, split in problem.splits.items()}
    assert sizes == {"train": 40, "validation": 8, "test": 24}
    train, test = problem.splits["train"], problem.splits["test"]
    assert train.env is not None
    assert torch.bincount(train.env).tolist() == [20, 20]
    assert test.env is not None
    assert test.env.unique().tolist() == [2]
    assert problem.fingerprint == load(tree, test_environments=("photo",)).fingerprint
    assert problem.fingerprint != load(tree, seed=1, test_environments=("photo",)).fingerprint


def test_without_test_environments_a_share_of_each_is_tested(tree: Path) -> None:
    test = load(tree, test_share=0.25).splits["test"]
    assert test.env is not None
    assert torch.bincount(test.env).tolist() == [6, 6, 6]


def test_a_share_of_a_test_environment_is_set_apart(tree: Path) -> None:
    problem = load(tree, test_environments=("photo",), test_out_share=0.5)
    assert {name: len(split) for name, split in problem.splits.items()} == {
        "train": 40, "validation": 8, "test": 12, "test_out": 12,
    }  # fmt: skip


def test_a_class_that_an_environment_lacks_shifts_no_label(tmp_path: Path) -> None:
    """DomainBed numbers the classes of each environment by itself."""
    tree = write_tree(tmp_path / "pictures")
    for environment in ENVIRONMENTS[:2]:
        extra = tree / environment / "ape"
        extra.mkdir()
        Image.new("RGB", (8, 8), "red").save(extra / "0.png")
        Image.new("RGB", (8, 8), "red").save(extra / "1.png")
    problem = load(tree, test_share=0.3)
    assert problem.classes == ("ape", "cat", "dog")
    for split in problem.splits.values():
        assert split.env is not None
        of_sketch = split.y[split.env == problem.environment_names.index("sketch")]
        assert set(of_sketch.tolist()) <= {1, 2}


def test_pixels_are_those_of_pillow(tree: Path) -> None:
    problem = load(tree, test_environments=("photo",), validation_share=0.0)
    with Image.open(tree / "photo" / "cat" / "0.png") as image:
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)) / 255
    standardised = (expected - np.array(IMAGENET.mean)) / np.array(IMAGENET.deviation)
    assert np.allclose(problem.splits["test"].inputs()[0], standardised.transpose(2, 0, 1), atol=1e-6)


def listed(tree: Path) -> pd.DataFrame:
    """List the pictures of a tree as a table."""
    paths = sorted(tree.rglob("*.png"))
    return pd.DataFrame(
        {
            "path": [str(path.relative_to(tree)) for path in paths],
            "label": [path.parent.name for path in paths],
            "environment": [path.parent.parent.name for path in paths],
        }
    )


def as_csv(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def as_parquet(table: pd.DataFrame, folder: Path) -> Path:
    table.to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def as_rows(table: pd.DataFrame, folder: Path) -> Path:
    table.to_json(folder / "table.json", orient="records")
    return folder / "table.json"


def as_nested_json(table: pd.DataFrame, folder: Path) -> Path:
    """Write `{environment: {class: [paths]}}`."""
    groups = {
        environment: {label: rows["path"].tolist() for label, rows in part.groupby("label")}
        for environment, part in table.groupby("environment")
    }
    (folder / "table.json").write_text(json.dumps(groups))
    return folder / "table.json"


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_rows, as_nested_json])
def test_a_table_makes_the_problem_of_the_tree(tree: Path, write: Callable[[pd.DataFrame, Path], Path]) -> None:
    table = write(listed(tree), tree.parent)
    problem = load(tree, table=str(table), test_environments=("photo",))
    assert problem.fingerprint == load(tree, test_environments=("photo",)).fingerprint


def test_a_table_names_splits_attributes_and_other_columns(tree: Path) -> None:
    table = listed(tree).rename(columns={"label": "animal"})
    table["split"] = np.where(table["environment"] == "photo", "test", "train")
    table["attribute"] = np.where(table.index % 2 == 0, "indoors", "outdoors")
    file = as_csv(table, tree.parent)
    columns = {"label": "animal", "attribute": "attribute"}
    config = {"dataset.root": str(tree), "dataset.table": str(file), "dataset.columns": columns, **SMALL_DATA}
    problem = invbench.load_problem("images", settings=config)
    assert len(problem.splits["test"]) == 24
    nuisance = problem.splits["test"].nuisance
    assert nuisance is not None
    assert nuisance.unique().tolist() == [0, 1]


def test_every_kind_of_picture_is_converted(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "pictures", each=6)
    folder = tree / "art" / "cat"
    grey = np.linspace(0, 255, 64).reshape(8, 8)
    Image.fromarray(grey.astype(np.uint8)).save(folder / "grey.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save(folder / "sixteen_bits.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (8, 8), (10, 20, 30, 40)).save(folder / "transparent.webp")
    Image.new("P", (8, 8)).save(folder / "palette.gif")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    problem = load(tree, test_environments=("art",), standardise="none")
    names = sorted(path.name for path in folder.iterdir())
    pixels = dict(zip(names, 255 * problem.splits["test"].inputs()[: len(names)], strict=True))
    assert torch.allclose(pixels["grey.png"], pixels["sixteen_bits.png"], atol=1.01)
    assert pixels["grey.png"][0, 0, 0] < pixels["grey.png"][0, -1, -1]
    assert pixels["cmyk.jpg"].mean((1, 2)).round().tolist() == pytest.approx([255, 0, 0], abs=3)
    assert pixels["animated.gif"].mean((1, 2)).tolist() == pytest.approx([255, 0, 0], abs=3)
    assert pixels["transparent.webp"].mean((1, 2)).tolist() == pytest.approx([10, 20, 30], abs=8)


def test_damaged_pictures_are_named_or_skipped(tree: Path) -> None:
    (tree / "art" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tree / "art" / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 74 pictures cannot be decoded, the first is .*broken\.jpg: "):
        load(tree)
    problem = load(tree, on_damaged="skip")
    assert problem.facts == {"damaged_pictures": 2.0}
    assert sum(len(split) for split in problem.splits.values()) == 72


def test_a_changed_picture_changes_the_fingerprint(tree: Path) -> None:
    before = load(tree).fingerprint
    Image.new("RGB", (8, 8), "red").save(tree / "art" / "cat" / "0.png")
    (tree / "art" / "cat" / "new.txt").write_text("not a picture")
    assert load(tree).fingerprint != before


def test_other_standardisation_is_other_data(tree: Path, tmp_path: Path) -> None:
    """Runs of one process share splits of the same fingerprint on a device."""
    here = {"dataset.root": str(tree), "trainer.epochs": 1, **SMALL}
    first = invbench.run("erm", "images", settings=here | {"dataset.standardise": "none"}, out=tmp_path / "a")
    invbench.run("erm", "images", settings=here, out=tmp_path / "b")
    again = invbench.run("erm", "images", settings=here | {"dataset.standardise": "none"}, out=tmp_path / "c")
    assert first.metrics == again.metrics
    assert load(tree).fingerprint != load(tree, standardise="none").fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": "{tree}s"}, "there is no folder .*; did you mean 'pictures'"),
        ({"test_environments": ("skecth",)}, "no environment 'skecth'; did you mean 'sketch'"),
        ({"test_environments": ENVIRONMENTS}, "none is left to train on"),
        ({"root": "{tree}/art"}, "has no pictures as environment/class"),
        ({"table": "{tree}/none.csv"}, "there is no file"),
        ({"table": "{tree}/art"}, "it must end in"),
    ],
)
def test_wrong_settings_are_one_line(tree: Path, settings: dict[str, Any], message: str) -> None:
    filled = {name: value.format(tree=tree) if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(UserError, match=message) as caught:
        load(tree, **filled)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="label"), "has no column label"),
        (lambda table: pd.concat([table, table[:1]]), "names the picture .* twice"),
        (lambda table: table.assign(label=[None, *table["label"][1:]]), "has no label in row 1"),
        (lambda table: table.assign(label="cat"), "all training pictures are of the class cat"),
        (lambda table: table.assign(path=["../none.png", *table["path"][1:]]), "cannot be read: No such file"),
        (lambda table: table[:0], "has 0 rows"),
        (lambda table: table.assign(split="Train set"), "split names 'Train set'; use lower-case"),
        (lambda table: table.assign(split="train"), "it must name train and test"),
    ],
)
def test_wrong_tables_are_one_line(
    tree: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load(tree, table=str(as_csv(change(listed(tree)), tmp_path)))


def test_images_in_a_file_train_as_those_in_memory(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, with a critic, random changes of inputs, and in float64; and a resumed run, too."""
    for number, (method, settings) in enumerate(
        [
            ("irmv1", {}),
            ("adversary", {"method.independent_of": "environment"}),
            ("erm", {"dataset.augment": "domainbed", "trainer.dtype": "float64"}),
        ]
    ):
        here = {"dataset.root": str(tree), "dataset.test_environments": ("photo",), **SMALL}
        config = here | {"trainer.epochs": 2} | settings
        metrics = []
        for most in (1 << 26, 0):
            monkeypatch.setattr(_pictures, "MOST_IN_MEMORY", most)
            monkeypatch.setattr("invbench.training.build._kept", type(invbench.training.build._kept)())
            out = tmp_path / f"{number}-{most}"
            record = invbench.run(method, "images", settings=config, out=out, progress=False)
            x = invbench.load_problem("images", settings={k: v for k, v in config.items() if "dataset" in k}).splits
            assert isinstance(x["train"].x, ImageFile) == (most == 0)
            metrics.append((record.metrics, record.data["fingerprint"], record.invariance))
        assert metrics[0] == metrics[1]


def test_selected_images_are_the_tensors_of_all(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(tree).splits["train"]
    monkeypatch.setattr(_pictures, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr("invbench.training.build._kept", type(invbench.training.build._kept)())
    split = load(tree).splits["train"]
    x, mapped = whole.inputs(), split.x
    assert isinstance(mapped, ImageFile)
    assert mapped.shape == x.shape
    mask, index = torch.arange(len(x)) % 3 == 0, torch.tensor([5, 2, 2])
    assert torch.equal(mapped[mask], x[mask])
    assert torch.equal(mapped[index], x[index])
    assert torch.equal(mapped[3], x[3])
    assert torch.equal(mapped[2:7:2], x[2:7:2])
    assert torch.equal(torch.cat(list(mapped.split(7))), x)
    rows: Split = split.rows(mask).rows(torch.tensor([1, 0]))
    assert torch.equal(rows.inputs(), x[mask][[1, 0]])
    assert torch.equal(rows.to(torch.device("cpu"), torch.float64).inputs(), x[mask][[1, 0]].double())


def test_the_contract_of_datasets(tree: Path) -> None:
    class Here(images.Images):
        small: ClassVar[dict[str, Any]] = {"dataset.root": str(tree), "dataset.test_environments": ("photo",), **SMALL}

    check_dataset(Here)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
import invbench
settings = {
    "dataset.root": sys.argv[1], "dataset.image_size": 1024, "dataset.standardise": "none", "backbone.name": "linear",
    "trainer.steps": 5, "trainer.batch_size": 2, "trainer.evaluate_splits": ["test"], "trainer.optimizer": "sgd",
    "trainer.measure_invariance": "off",
}
record = invbench.run("irmv1", "images", settings=settings, out=sys.argv[2], progress=False)
print(record.status)
"""


@pytest.mark.slow
def test_four_gigabytes_of_pictures_train_in_one(tmp_path: Path) -> None:
    """The decoded pictures are a file with holes, all black, so that the test takes no room."""
    tree = write_tree(tmp_path / "pictures", each=230, size=4)
    pictures = images.Images(root=str(tree)).labelled().pictures
    shape = (len(pictures), 3, 1024, 1024)
    folder = Path(os.environ["INVBENCH_CACHE"]) / "pictures" / picture_cache._key(pictures, 1024, 3)
    folder.mkdir(parents=True)
    with (folder / "pixels.bin").open("wb") as file:
        assert file.truncate(int(np.prod(shape))) > 4 * 10**9
    nothing: dict[str, Any] = {"damaged": np.array([], np.int64), "reasons": np.array([], np.str_)}
    np.savez(folder / "pictures.npz", digests=np.arange(4 * shape[0]).reshape(-1, 4), **nothing)
    command = [sys.executable, "-c", LIMITED, str(tree), str(tmp_path / "out")]
    # The limit also counts what the C library reserves for each thread and does not use.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
