"""Datasets of other packages, made on the spot: all of their pictures, labels, environments and splits arrive."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import invbench
from invbench.core.data import Problem
from invbench.datafiles.decoding import squeezed
from invbench.datasets._packages import package
from invbench.errors import UserError
from invbench.sweeps.definition import Sweep

OWN = '''
import os
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import VisionDataset


def picture(i):
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (10, 12, 3), dtype=np.uint8))


class Own(VisionDataset):
    """24 pictures; half of them say what their labels are."""

    def __init__(self, root, train=True, broken=False, says_labels=True):
        super().__init__(root)
        self.numbers, self.broken = range(16) if train else range(16, 24), broken
        self.classes = ["cat", "ape"]
        self.places = ["north" if i % 4 < 2 else "south" for i in self.numbers]
        if says_labels:
            self.targets = [i % 2 for i in self.numbers]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        if self.broken and i == 3:
            raise OSError("truncated file")
        return picture(self.numbers[i]), torch.tensor(self.numbers[i] % 2) if self.broken else self.numbers[i] % 2
'''
OWN_WILDS = '''
import numpy as np
import torch
from wilds.datasets.wilds_dataset import WILDSDataset
from own import picture


class Herd(WILDSDataset):
    """60 pictures of three farms in two years; the last 20 are of another farm."""

    _dataset_name, _versions_dict = "herd", {"1.0": {"download_url": None, "compressed_size": None}}

    def __init__(self, version=None, root_dir="data", download=False, split_scheme="official", classes=2):
        self._version, self._split_scheme = version, split_scheme
        self._data_dir = self.initialize_data_dir(root_dir, download)
        numbers = torch.arange(60)
        self._y_array, self._y_size, self._n_classes = numbers % 2, 1, classes
        farm, year = numbers // 20, numbers // 2 % 2
        self._metadata_array = torch.stack((farm, year, self._y_array), 1)
        self._metadata_fields = ["farm", "year", "y"]
        self._metadata_map = {"farm": [" oak", "elm", "ash"], "y": ["  sheep", "goat"]}
        self._split_dict = {"train": 0, "id_val": 1, "val": 2, "test": 3}
        self._split_names = dict.fromkeys(self._split_dict, "")
        self._split_array = np.where(numbers % 5 == 4, 1, 0)
        self._split_array[40:50], self._split_array[50:59], self._split_array[59] = 2, 3, -1
        super().__init__(root_dir, download, split_scheme)

    def get_input(self, index):
        return picture(index)
'''
OWN_GRAPHS = '''
import torch
from torch_geometric.data import Data, InMemoryDataset


class Shapes(InMemoryDataset):
    """20 clouds of 2 to 4 points."""

    def __init__(self, root=None, real=False, flat=False):
        super().__init__(root)
        generator = torch.Generator().manual_seed(0)
        graphs = []
        for i in range(20):
            n = 2 + i % 3
            y = torch.tensor([[0.5 * i, float(i)]]) if real else torch.tensor([i % 2])
            graph = Data(pos=torch.rand(n, 2 if flat else 3, generator=generator), y=y, place=i // 2 % 2)
            if real:
                graph.z = torch.tensor([6, 1, 1, 8][:n])
            graphs.append(graph)
        self.data, self.slices = self.collate(graphs)
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = {"own": OWN, "own_wilds": OWN_WILDS, "own_graphs": OWN_GRAPHS}
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    for name in modules:
        sys.modules.pop(name, None)


def load(dataset: str, **settings: Any) -> Problem:
    named = {f"dataset.{name}": value for name, value in settings.items()}
    return invbench.load_problem(dataset, settings={"trainer.batch_size": 1} | named)


def pixels(number: int, size: int = 8) -> torch.Tensor:
    """Return the pixels of a picture of the module `own`, from 0 to 1."""
    from own import picture  # type: ignore[import-not-found]

    return torch.from_numpy(squeezed(picture(number), size, 3).astype(np.float32)) / 255


PLAIN: dict[str, Any] = {"image_size": 8, "standardise": "none"}


def extra(name: str, extra: str) -> Any:
    """Import a package, or skip the test where it is not installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"needs the extra {extra}")
    return package(name, extra)


# --- torchvision -----------------------------------------------------------------------------------------------------


def test_a_vision_dataset_arrives_whole() -> None:
    problem = load("torchvision", name="own:Own", validation_share=0.0, environment="places", **PLAIN)
    assert problem.classes == ("cat", "ape")
    assert problem.environment_names == ("north", "south")
    train, test = problem.splits["train"], problem.splits["test"]
    assert train.y.tolist() == [i % 2 for i in range(16)]
    assert test.env is not None
    assert test.env.tolist() == [0, 0, 1, 1] * 2
    assert torch.equal(train.inputs(), torch.stack([pixels(i) for i in range(16)]))
    assert torch.equal(test.inputs(), torch.stack([pixels(i) for i in range(16, 24)]))


def test_labels_are_read_of_the_items_where_no_attribute_has_them() -> None:
    arguments = {"says_labels": False}
    first = load("torchvision", name="own:Own", arguments=arguments, **PLAIN)
    again = load("torchvision", name="own:Own", **PLAIN)
    assert torch.equal(first.splits["train"].y, again.splits["train"].y)


def test_test_environments_put_the_splits_together() -> None:
    problem = load("torchvision", name="own:Own", environment="places", test_environments=("south",), **PLAIN)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 10, "validation": 2, "test": 12}


def test_a_set_of_torchvision_without_splits_is_divided() -> None:
    arguments = {"size": 40, "image_size": [3, 9, 9], "num_classes": 2}
    problem = load("torchvision", name="FakeData", arguments=arguments, **PLAIN)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 26, "validation": 6, "test": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "CIFAR11"},
            r"dataset\.name: torchvision\.datasets has no VisionDataset named 'CIFAR11'; did you mean",
        ),
        ({"name": "own:Onw"}, r"own has no VisionDataset named 'Onw'; did you mean 'Own'\?"),
        ({"name": "nothing:Own"}, r"the module nothing does not load: ModuleNotFoundError"),
        ({"name": "SVHN", "root": "away"}, r"not found.*; put its files into away, or set dataset\.download=true"),
        ({"name": "own:Own", "arguments": {"size": 3}}, r"unexpected keyword argument 'size'$"),
        ({"name": "own:Own", "environment": "farms"}, r"a dataset own:Own has no attribute farms"),
        ({"name": "own:Own", "environment": "classes"}, r"classes must have one value of each of 16 pictures"),
        (
            {"name": "own:Own", "arguments": {"broken": True}},
            r"1 of 16 pictures .* number 3 of own:Own: truncated file",
        ),
        (
            {"name": "own:Own", "arguments": {"broken": True, "says_labels": False}, "on_damaged": "skip"},
            r"the label of picture 3 cannot be read: OSError: truncated file",
        ),
    ],
)
def test_what_is_wrong_with_a_set_of_torchvision_is_one_line(settings: dict[str, Any], message: str) -> None:
    settings = {"splits": {"train": {}}} | settings if settings.get("name") == "own:Own" else settings
    with pytest.raises(UserError, match=message) as error:
        load("torchvision", **PLAIN | settings)
    assert "\n" not in str(error.value)


# --- WILDS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def herd(tmp_path: Path) -> dict[str, Any]:
    extra("wilds", "wilds")
    (tmp_path / "data" / "herd_v1.0").mkdir(parents=True)
    (tmp_path / "data" / "herd_v1.0" / "metadata.csv").write_text("")
    return PLAIN | {"name": "own_wilds:Herd", "root": str(tmp_path / "data")}


def test_a_wilds_dataset_keeps_its_splits_classes_and_metadata(herd: dict[str, Any]) -> None:
    problem = load("wilds", **herd)
    assert problem.classes == ("sheep", "goat")
    assert problem.environment_names == ("elm", "oak", "ash")
    assert {name: len(split) for name, split in problem.splits.items()} == {
        "train": 32, "id_val": 8, "validation": 10, "test": 9,
    }  # fmt: skip
    test = problem.splits["test"]
    assert test.y.tolist() == [i % 2 for i in range(50, 59)]
    assert test.env is not None
    assert test.env.tolist() == [2] * 9
    assert torch.equal(test.inputs(), torch.stack([pixels(i) for i in range(50, 59)]))


def test_several_fields_are_environments_together(herd: dict[str, Any]) -> None:
    """The same groups as `CombinatorialGrouper` forms."""
    problem = load("wilds", **herd, environment=("farm", "year"), attribute="year", validation_share=0.0)
    assert problem.environment_names == tuple(
        f"farm={farm}, year={year}" for farm in ("elm", "oak", "ash") for year in (0, 1)
    )
    from own_wilds import Herd  # type: ignore[import-not-found]
    from wilds.common.grouper import CombinatorialGrouper

    dataset = Herd(root_dir=herd["root"])
    groups = CombinatorialGrouper(dataset, ["farm", "year"]).metadata_to_group(dataset.metadata_array)
    train = problem.splits["train"]
    assert train.env is not None
    assert train.nuisance is not None
    pairs = set(zip(train.env.tolist(), groups[torch.from_numpy(dataset.split_array == 0)].tolist(), strict=True))
    assert len(pairs) == len({env for env, _ in pairs}) == len({group for _, group in pairs}) == 4
    assert train.nuisance.tolist() == dataset.metadata_array[dataset.split_array == 0, 1].tolist()


def test_an_environment_of_wilds_can_be_left_out(herd: dict[str, Any]) -> None:
    problem = load("wilds", **herd, test_environments=("elm",))
    assert problem.environment_names == ("ash", "oak", "elm")
    assert len(problem.splits["test"]) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "waterbird"}, r"dataset\.name: wilds has no 'waterbird'; did you mean 'waterbirds'\?"),
        ({"name": "waterbirds"}, r"could not be found.*; put a copy into .*data \(wilds\.stanford\.edu/downloads\)"),
        ({"environment": ("fram",)}, r"dataset\.environment: herd has no metadata field 'fram'; did you mean 'farm'\?"),
        ({"attribute": "month"}, r"dataset\.attribute: herd has no metadata field 'month'"),
        ({"arguments": {"classes": None}}, r"own_wilds:Herd is no classification by one label"),
    ],
)
def test_what_is_wrong_with_a_wilds_dataset_is_one_line(
    herd: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load("wilds", **herd | settings)
    assert "\n" not in str(error.value)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Any]:
    """Save a dataset of pictures, labels, places and embeddings, with two splits."""
    datasets = extra("datasets", "huggingface")
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["no", "maybe"]),
        place=datasets.Value("string"),
        age=datasets.Value("float64"),
        embedding=datasets.List(datasets.Value("float32")),
    )

    def part(numbers: range) -> Any:
        rows = {
            "image": [_image(i) for i in numbers],
            "label": [i % 2 for i in numbers],
            "place": ["hill" if i % 4 < 2 else "bay" for i in numbers],
            "age": [i / 4 for i in numbers],
            "embedding": [[float(i), float(-i)] for i in numbers],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict(
        {"train": part(range(16)), "val": part(range(16, 20)), "test": part(range(20, 24))}
    ).save_to_disk(tmp_path / "saved")
    return {"path": str(tmp_path / "saved")}


def _image(number: int) -> Image.Image:
    from own import picture

    return picture(number)  # type: ignore[no-any-return]


def test_pictures_of_hugging_face_arrive_whole(saved: dict[str, Any]) -> None:
    problem = load("huggingface_images", **saved, **PLAIN, columns={"environment": "place", "attribute": "age"})
    assert problem.classes == ("no", "maybe")
    assert problem.environment_names == ("bay", "hill")
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 16, "validation": 4, "test": 4}
    test = problem.splits["test"]
    assert torch.equal(test.inputs(), torch.stack([pixels(i) for i in range(20, 24)]))
    assert test.nuisance is not None
    assert test.nuisance.tolist() == [5.0, 5.25, 5.5, 5.75]
    left_out = load(
        "huggingface_images", **saved, **PLAIN, columns={"environment": "place"}, test_environments=("bay",)
    )
    assert len(left_out.splits["test"]) == 12


def test_a_table_of_hugging_face_is_what_the_same_parquet_file_is(saved: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target": "label", "environment": "place"}
    ours = load("huggingface_table", **saved, **settings, exclude=("image",))
    assert {name: len(split) for name, split in ours.splits.items()} == {"train": 16, "validation": 4, "test": 4}
    assert ours.classes == ("maybe", "no")
    rows = []
    for split, part in extra("datasets", "huggingface").load_from_disk(saved["path"]).items():
        frame = part.remove_columns(["image", "embedding"]).to_pandas()
        frame["label"] = np.array(["no", "maybe"])[frame["label"]]
        embedding = np.array(part["embedding"])
        frame["embedding.0"], frame["embedding.1"] = embedding.T
        rows.append(frame.assign(which="validation" if split == "val" else split))
    pd.concat(rows).to_parquet(tmp_path / "same.parquet", index=False)
    same = load("table", path=str(tmp_path / "same.parquet"), split="which", **settings)
    for name, split in same.splits.items():
        for field, values in split.tensors().items():
            assert torch.equal(values, ours.splits[name].tensors()[field]), (name, field)


def test_csv_files_load_by_hugging_face(tmp_path: Path) -> None:
    extra("datasets", "huggingface")
    lines = [f"{i},{i % 3},{'ab'[i % 2]}" for i in range(30)]
    (tmp_path / "wines.csv").write_text("\n".join(["sugar,acid,good", *lines]))
    arguments = {"data_files": str(tmp_path / "wines.csv"), "cache_dir": str(tmp_path / "cache")}
    problem = load("huggingface_table", path="csv", arguments=arguments, target="good")
    assert problem.classes == ("a", "b")
    assert sum(map(len, problem.splits.values())) == 30


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (
            "huggingface_images",
            {"columns": {"place": "place"}},
            r"dataset\.columns: no role 'place'; the roles are image",
        ),
        ("huggingface_images", {"columns": {"label": "lable"}}, r"no column 'lable'; did you mean 'label'\?"),
        ("huggingface_images", {"columns": {"label": "age"}}, r"the labels of pictures are classes"),
        ("huggingface_images", {"splits": {"test": "tset"}}, r"dataset\.splits: test is tset, which is no split"),
        ("huggingface_images", {"splits": {"validation": "val", "train": "train"}}, r"must name train and test"),
        ("huggingface_table", {"target": "labl"}, r"no column 'labl'; did you mean 'label'\?"),
        ("huggingface_table", {"target": "label"}, r"column image"),
    ],
)
def test_what_is_wrong_with_a_hugging_face_dataset_is_one_line(
    saved: dict[str, Any], dataset: str, settings: dict[str, Any], message: str
) -> None:
    sizes = PLAIN if dataset == "huggingface_images" else {}
    with pytest.raises(UserError, match=message) as error:
        load(dataset, **saved | sizes | settings)
    assert "\n" not in str(error.value)


def test_lists_of_other_lengths_are_refused(tmp_path: Path) -> None:
    datasets = extra("datasets", "huggingface")
    datasets.Dataset.from_dict({"v": [[1.0, 2.0]] * 5 + [[1.0]] * 5, "y": [0, 1] * 5}).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match="column v has lists of other lengths than the first, which has 2 values"):
        load("huggingface_table", path=str(tmp_path / "odd"), target="y")


# --- PyTorch Geometric -----------------------------------------------------------------------------------------------


def test_graphs_arrive_as_point_clouds() -> None:
    extra("torch_geometric", "pyg")
    problem = load("pyg", name="own_graphs:Shapes", arguments={"real": True}, target=1, environment="place")
    from own_graphs import Shapes  # type: ignore[import-not-found]

    graphs = {float(graph.y[0, 1]): graph for graph in Shapes(real=True)}
    assert problem.environment_names == ("0", "1")
    count = 0
    for split in problem.splits.values():
        assert split.env is not None
        for cloud, y, env in zip(split.inputs(), split.y.tolist(), split.env.tolist(), strict=True):
            graph, count = graphs[y], count + 1
            assert torch.equal(cloud[: graph.num_nodes, :3], graph.pos)
            assert torch.equal(cloud[: graph.num_nodes, 3], graph.z.float())
            assert not cloud[graph.num_nodes :].any()
            assert env == graph.place
    assert count == 20
    assert load("pyg", name="own_graphs:Shapes").classes == ("0", "1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "Cora"}, r"torch_geometric\.datasets has no Dataset named 'Cora'"),
        ({"target": 1}, r"dataset\.target is 1, but graph 0 has 1 targets; count from 0"),
        ({"environment": "farm"}, r"dataset\.environment: graph 0 has 0 values of farm, not 1"),
        ({"arguments": {"flat": True}}, r"graph 0 has no positions in space, an attribute pos \(nodes, 3\)"),
    ],
)
def test_what_is_wrong_with_graphs_is_one_line(settings: dict[str, Any], message: str) -> None:
    extra("torch_geometric", "pyg")
    with pytest.raises(UserError, match=message):
        load("pyg", **{"name": "own_graphs:Shapes"} | settings)


def test_environments_of_graphs_are_left_out() -> None:
    extra("torch_geometric", "pyg")
    problem = load("pyg", name="own_graphs:Shapes", environment="place", test_environments=(1,), validation_share=0.0)
    assert {name: len(split) for name, split in problem.splits.items()} == {"train": 10, "test": 10}
    cells = [{"method": "erm", "dataset": "pyg", "test_environments": "each"}]
    chosen = {"dataset.name": "own_graphs:Shapes", "dataset.environment": "place", "trainer.steps": 1}
    assert len(Sweep.read({"cells": cells, "set": chosen}).runs()) == 2
    with pytest.raises(UserError, match="has no environments to choose"):
        Sweep.read({"cells": cells, "set": {"dataset.name": "own_graphs:Shapes"}}).runs()


# --- what changes is noticed -----------------------------------------------------------------------------------------


def test_a_class_that_changes_has_its_pictures_anew(tmp_path: Path) -> None:
    """In one process, as in a notebook, and the record of a run on the old ones does not count as done."""
    settings = {"dataset.name": "own:Own", "dataset.image_size": 8, "trainer.batch_size": 4, "trainer.steps": 1}
    first = invbench.run("erm", "torchvision", settings=settings, out=tmp_path / "out")
    changed = OWN.replace("default_rng(i)", "default_rng(i + 1)").replace("i % 2 for", "(i + 1) % 2 for")
    (tmp_path / "own.py").write_text(changed)
    problem = load("torchvision", name="own:Own", validation_share=0.0, **PLAIN)
    assert torch.equal(problem.splits["train"].inputs()[0], pixels(0))
    assert problem.splits["train"].y.tolist() == [i % 2 for i in range(16)], "as the items say, not the attribute"
    again = invbench.run("erm", "torchvision", settings=settings, out=tmp_path / "out")
    assert again.data["fingerprint"] != first.data["fingerprint"]


def test_pictures_of_linked_folders_and_of_splits_are_watched(tmp_path: Path) -> None:
    for place, value in (("there", 10), ("test", 20)):
        for name in ("ant", "bee"):
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (4, 4), (value, i, 0)).save(tmp_path / place / name / f"{i}.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "ant").symlink_to(tmp_path / "there" / "ant")
    (tmp_path / "train" / "cow").symlink_to(tmp_path / "there" / "bee")
    splits = {name: {"root": str(tmp_path / name)} for name in ("train", "test")}
    settings: dict[str, Any] = {"name": "ImageFolder", "splits": splits, "validation_share": 0.0, "on_damaged": "skip"}
    problem = load("torchvision", **settings, **PLAIN)
    assert problem.classes == ("ant", "bee", "cow"), "each split numbers its own"
    assert sorted(problem.splits["test"].y.tolist()) == [0] * 4 + [1] * 4
    assert sorted(problem.splits["train"].y.tolist()) == [0] * 4 + [2] * 4
    Image.new("RGB", (4, 4), (250, 0, 0)).save(tmp_path / "there" / "ant" / "0.png")
    problem = load("torchvision", **settings, **PLAIN)
    assert problem.splits["train"].inputs()[0, 0, 0, 0] == pytest.approx(250 / 255)


def test_a_folder_that_is_saved_anew_is_loaded_anew(tmp_path: Path) -> None:
    datasets = extra("datasets", "huggingface")
    for scale in (1.0, 5.0):
        rows = {"v": [scale * i for i in range(20)], "y": [0, 1] * 10}
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / f"{scale}")
        (tmp_path / "saved").unlink(missing_ok=True)
        (tmp_path / "saved").symlink_to(tmp_path / f"{scale}")
        problem = load("huggingface_table", path=str(tmp_path / "saved"), target="y", standardise=False)
        assert max(float(split.inputs().max()) for split in problem.splits.values()) == scale * 19


def test_pictures_that_are_away_for_a_while_are_not_damaged(tmp_path: Path) -> None:
    extra("datasets", "huggingface")
    lines = []
    for i in range(6):
        _image(i).save(tmp_path / f"{i}.png")
        lines.append({"image": str(tmp_path / f"{i}.png"), "label": i % 2})
    (tmp_path / "list.json").write_text("\n".join(map(json.dumps, lines)))
    arguments = {"data_files": str(tmp_path / "list.json"), "cache_dir": str(tmp_path / "cache_of_hf")}
    settings = {"path": "json", "arguments": arguments, "columns": {"image": "image", "label": "label"}, **PLAIN}
    (tmp_path / "3.png").rename(tmp_path / "away.png")
    with pytest.raises(
        UserError, match=r"number 3 of json: .*3\.png cannot be read: No such file.*the same command goes on"
    ):
        load("huggingface_images", **settings)
    (tmp_path / "away.png").rename(tmp_path / "3.png")
    assert sum(map(len, load("huggingface_images", **settings).splits.values())) == 6


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        OWN.replace("i % 2 for", "i % 2 - (not train) for").replace("self.numbers[i] % 2\n", "self.targets[i]\n")
    )
    with pytest.raises(UserError, match="labels go from -1 to 1, but there are 2 classes, from 0 to 1"):
        load("torchvision", name="own:Own", **PLAIN)


def test_pictures_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Few datasets can be asked by several threads at once: this one shares a place in a file."""
    shared = OWN.replace(
        "        return picture(",
        "        self.place = i\n        time.sleep(1e-4)\n        i = self.place\n        return picture(",
    )
    (tmp_path / "own.py").write_text("import time\n" + shared.replace("range(16)", "range(400)"))
    problem = load("torchvision", name="own:Own", splits={"train": {}}, validation_share=0.0, **PLAIN)
    train = problem.splits["train"]
    images = {picture.tobytes(): i % 2 for i, picture in enumerate(pixels(i).numpy() for i in range(400))}
    assert [images[one.numpy().tobytes()] for one in train.inputs()] == train.y.tolist()


@pytest.mark.slow
def test_ctrl_c_while_slow_pictures_are_decoded(tmp_path: Path) -> None:
    slow = OWN.replace("        return picture(", "        time.sleep(0.2)\n        return picture(")
    (tmp_path / "own.py").write_text("import time\n" + slow.replace("range(16)", "range(300)"))
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as in a foreground job
        "import invbench; invbench.load_problem('torchvision', settings={'dataset.name': 'own:Own',"
        " 'trainer.batch_size': 1, 'dataset.splits': {'train': {}}})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "decoding" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate()
    assert time.monotonic() - began < 5


# --- all -------------------------------------------------------------------------------------------------------------


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(UserError, match=r"needs the package no_such: pip install 'invbench\[extra\]'"):
        package("no_such", "extra")


@pytest.mark.slow
def test_a_folder_of_the_same_name_is_passed_over(tmp_path: Path) -> None:
    extra("datasets", "huggingface")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    code = "from invbench.datasets._packages import package; package('datasets', 'huggingface').load_from_disk"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_runs_of_an_adapter_are_like_any(herd: dict[str, Any], tmp_path: Path) -> None:
    settings = {f"dataset.{name}": value for name, value in herd.items()}
    small = {"trainer.steps": 2, "trainer.batch_size": 4, "backbone.width": 4}
    record = invbench.run("group_dro", "wilds", settings=settings | small, out=tmp_path / "out")
    assert 0 <= record.metrics["test_accuracy"] <= 1
    assert record.data["environment_names"] == ["elm", "oak", "ash"]
