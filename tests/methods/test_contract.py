"""The one contract: what every registered method, dataset and backbone must do, wherever it can be used.

The checks are those of `invbench.testing`, whose docstring has the table of the property that each one protects. By
default every check runs for every method, on a quick dataset, and for every dataset, with the methods of `EVERYWHERE`.
Of the rest, marked slow, every cell trains, and all checks run on a dataset of each kind that the method takes.

| test | property |
|---|---|
| test_a_method_keeps_the_contract | those of a method |
| test_a_dataset_keeps_the_contract | those of a dataset |
| test_a_backbone_keeps_the_contract | those of a backbone |
| test_other_forms_of_the_datasets | the same of datasets with other settings than their defaults |
| test_what_is_switched_on_is_provided | a method gets what it requires |
| test_another_seed_gives_other_data | a seed is used, but where the data are given |
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cells import EVERYWHERE, QUICK, SMALL, one_of_each_kind, possible_cells, small_config

from invbench.core.registry import BACKBONES, METHODS, datasets_with_defaults, unmet
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.seeding import stream
from invbench.testing import checks_of_backbone
from invbench.testing.dataset_checks import DATASET_CHECKS, provides_what_it_says
from invbench.testing.method_checks import METHOD_CHECKS, MethodCheck, trains
from invbench.training.restored import load_run
from invbench.training.runner import run_one

pytestmark = pytest.mark.usefixtures("standins")
CELLS = possible_cells()
SAME_FOR_EVERY_SEED = ("and_mask_regression", "cifar10", "penguins", "qm9")
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("augerino", "olivetti", {"method__train_copies": 3, "method__generators": ["rotation", "shear"]}),
    ("augerino", "qm9", {"method__interval": "symmetric", "backbone__group": "trivial"}),
    ("augerino", "digits", {"method__average": "probabilities", "method__train_copies": 2}),
    ("fixed_augmentation", "qm9", {"method__distribution": "affine", "method__widths": {"rotation_x": 1.0}}),
    ("fixed_augmentation", "cifar10", {"method__distribution": "crop_flip"}),
    ("erm", "cifar10", {"backbone__name": "resnet9"}),
    ("and_mask", "cifar10", {"backbone__name": "resnet9", "backbone__norm": "group"}),
    ("erm", "qm9", {"backbone__name": "egnn"}),
    ("erm", "qm9", {"backbone__group": "trivial"}),
    ("and_mask", "linear_unit_tests", {"dataset__example": "example2s"}),
    ("and_mask", "linear_unit_tests", {"dataset__example": "example3"}),
    ("and_mask", "irm_regression", {"dataset__problem": "cows_camels"}),
    ("and_mask", "irm_regression", {"dataset__problem": "small_margin"}),
    ("and_mask", "chain_sem", {"dataset__setup": "pes"}),
    ("and_mask", "colored_mnist", {"dataset__variant": "domainbed"}),
    ("erm", "colored_mnist", {"dataset__grayscale": True}),
    ("erm", "olivetti", {"dataset__task": "identity"}),
    ("erm", "cifar10", {"dataset__random_labels_fraction": 1.0, "dataset__transform": "none"}),
    ("erm", "digits", {"dataset__environments": "rotation_bins"}),
    ("erm", "qm9", {"dataset__target": "Cv"}),
    ("erm", "mi_toy", {"dataset__nuisance": "latent"}),
]
"""Other forms of the datasets than their defaults."""


def first_dataset(method: str) -> str:
    """Return the quickest dataset of a method, or any."""
    datasets = [dataset for name, dataset in CELLS if name == method]
    return next((dataset for dataset in QUICK if dataset in datasets), datasets[0])


def cases() -> Iterator[Any]:
    """Yield each check with the cells that it runs on."""
    for method in METHODS.entries():
        cls, first = METHODS.load(method), first_dataset(method)
        possible = [dataset for name, dataset in CELLS if name == method]
        chosen = possible if method in EVERYWHERE else [first, *one_of_each_kind(possible)]
        for check in (check for check in METHOD_CHECKS if check.applies(cls)):
            datasets = possible if check.run is trains else list(dict.fromkeys(chosen))
            for dataset in datasets if check.everywhere else [first]:
                default = dataset == first or method in EVERYWHERE
                marks = [] if default else [pytest.mark.slow]
                yield pytest.param(check, method, dataset, id=f"{check.name}-{method}-{dataset}", marks=marks)


@pytest.mark.parametrize(("check", "method", "dataset"), list(cases()))
def test_a_method_keeps_the_contract(check: MethodCheck, method: str, dataset: str) -> None:
    settings = {"trainer__strategy": "joint", "trainer__learning_rate": 1e-2} if check.run is trains else {}
    check.run(small_config(method, dataset, **settings))


@pytest.mark.parametrize("method", METHODS.entries())
def test_a_run_ends_well(method: str, tmp_path: Path) -> None:
    """Its last checks included; the finished run can be loaded."""
    config = small_config(method, first_dataset(method), trainer__evaluate_every=None)
    record = run_one(config, Options(out=tmp_path))
    assert record.status == "done"
    assert not load_run(tmp_path / record.run_id).model.training


@pytest.mark.parametrize(("method", "dataset", "settings"), VARIANTS)
def test_other_forms_of_the_datasets(method: str, dataset: str, settings: dict[str, Any]) -> None:
    config = small_config(method, dataset, trainer__strategy="joint", trainer__learning_rate=1e-2, **settings)
    provides_what_it_says(config)
    trains(config)


@pytest.mark.parametrize("dataset", datasets_with_defaults())
def test_what_is_switched_on_is_provided(dataset: str) -> None:
    """For each method, with the settings that the engine finds."""
    different = {}
    for method in [name for name, data in CELLS if data == dataset]:
        config = small_config(method, dataset)
        assert not unmet(METHODS.traits(method), config.dataset.capabilities())
        different[repr(config.dataset)] = config
    for config in different.values():
        provides_what_it_says(config)


@pytest.mark.parametrize("check", DATASET_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dataset", datasets_with_defaults())
def test_a_dataset_keeps_the_contract(check: Callable[[RunConfig], None], dataset: str) -> None:
    check(small_config("erm", dataset))


@pytest.mark.parametrize("dataset", datasets_with_defaults())
def test_another_seed_gives_other_data(dataset: str) -> None:
    """Or the same on purpose."""
    data = small_config("erm", dataset).dataset
    first, second = (data.load(stream(seed, "data")).fingerprint for seed in (0, 1))
    assert (first == second) == (dataset in SAME_FOR_EVERY_SEED)


@pytest.mark.parametrize("backbone", BACKBONES.entries())
def test_a_backbone_keeps_the_contract(backbone: str) -> None:
    if backbone == "timm" and not find_spec("timm"):
        pytest.skip("the extra timm is not installed")
    fields = BACKBONES.load(backbone).model_fields
    for _, check in checks_of_backbone(backbone, {"width": 8} if "width" in fields else {}):
        check()


def test_every_dataset_has_a_small_version() -> None:
    """But for one that is small."""
    assert {name for name, settings in SMALL.items() if not settings} == {"and_mask_regression"}
    assert {dataset for _, dataset in CELLS} == set(datasets_with_defaults())
