"""Identity of a run: content, never spelling."""

import json
import random
import shlex
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invbench.errors import UserError
from invbench.runs.commands import command_of
from invbench.runs.config import parse_assignments
from invbench.runs.resolve import from_spec, resolve
from invbench.runs.spec import RunSpec


def test_golden_id() -> None:
    """The id of a fixed specification; if this changes, every stored result loses its name."""
    spec = RunSpec(
        method="and_mask",
        method_settings={"and_mask": {"threshold": 1.0, "rule": "mask"}},
        dataset="spirals",
        dataset_settings={"environments": 16},
        backbone="mlp",
        backbone_settings={"width": 256},
        trainer={"epochs": 150, "steps": None, "learning_rate": 0.01},
        seed=0,
    )
    assert spec.run_id == "ffdfc7a5a55c8bd7"


@given(st.randoms(use_true_random=False))
def test_key_order_does_not_matter(rng: random.Random) -> None:
    spec = resolve("and_mask", "spirals").spec
    data = _shuffled(json.loads(spec.model_dump_json()), rng)
    assert RunSpec.model_validate(data).run_id == spec.run_id


def test_spelling_of_numbers_does_not_matter() -> None:
    ids = {resolve("and_mask", "spirals", 0, {"method.threshold": value}).spec.run_id for value in (1, 1.0, 10e-1)}
    assert len(ids) == 1


def test_naming_a_default_does_not_matter() -> None:
    plain = resolve("and_mask", "spirals").spec
    named = resolve("and_mask", "spirals", 0, {"method.and_mask.rule": "mask", "trainer.momentum": 0.0}).spec
    assert named.run_id == plain.run_id


def test_everything_that_matters_changes_the_id() -> None:
    ids = [
        resolve(method, dataset, seed, assignments).spec.run_id
        for method, dataset, seed, assignments in [
            ("and_mask", "spirals", 0, {}),
            ("erm", "spirals", 0, {}),
            ("erm", "digits", 0, {}),
            ("and_mask", "spirals", 1, {}),
            ("and_mask", "spirals", 0, {"method.threshold": 0.9}),
            ("and_mask", "spirals", 0, {"dataset.environments": 8}),
            ("and_mask", "spirals", 0, {"backbone.width": 8}),
            ("and_mask", "spirals", 0, {"trainer.epochs": 8}),
        ]
    ]
    assert len(set(ids)) == len(ids)


def test_a_stored_specification_gives_the_same_run() -> None:
    spec = resolve("erm+and_mask", "spirals", 3, {"method.threshold": 0.25}).spec
    again = from_spec(RunSpec.model_validate_json(spec.model_dump_json()))
    assert again.spec == spec
    assert again.spec.run_id == spec.run_id


@pytest.mark.parametrize("table", ["😀: t.csv", "9", "1e5", "null", "a b.csv", "&a", "!x", "*", "{", "é\t", "#", ""])
def test_any_text_survives_the_command_of_a_run(table: str) -> None:
    spec = resolve("erm", "tabular_nuisance", 0, {"dataset.table": table}).spec
    words = shlex.split(command_of(spec, [0]))
    sets = [value for name, value in pairwise(words) if name == "--set"]
    assert resolve("erm", "tabular_nuisance", 0, parse_assignments(sets)).spec == spec


def test_columns() -> None:
    assert resolve("and_mask", "spirals").spec.flat()["method.threshold"] == 1.0
    assert resolve("erm+and_mask", "spirals").spec.flat()["method.and_mask.threshold"] == 1.0


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0])
def test_seeds(seed: int) -> None:
    with pytest.raises(UserError, match="must be a whole number from 0"):
        resolve("erm", "spirals", seed)


def test_a_method_of_many_names() -> None:
    with pytest.raises(UserError, match="names 'erm' twice"):
        resolve("erm+and_mask+erm", "spirals")
    with pytest.raises(UserError, match="method erm\\+: there is no name on one side of a"):
        resolve("erm+", "spirals")
    with pytest.raises(UserError, match="no method 'x0'"):
        resolve("+".join(f"x{number}" for number in range(100_000)), "spirals")


def test_requirements_name_the_datasets_that_meet_them() -> None:
    with pytest.raises(UserError, match="and_mask needs environments, which dataset pivot .*that can: .*, spirals"):
        resolve("and_mask", "pivot")


def test_what_a_method_requires_is_switched_on_unless_it_is_set_otherwise() -> None:
    assert resolve("and_mask", "digits").spec.dataset_settings["environments"] == "rotation_bins"
    assert resolve("erm", "digits").spec.dataset_settings["environments"] == "none"
    with pytest.raises(UserError, match="and_mask needs environments.*; set dataset.environments=rotation_bins$"):
        resolve("and_mask", "digits", 0, {"dataset.environments": "none"})


def _shuffled(value: object, rng: random.Random) -> object:
    if isinstance(value, dict):
        items = [(key, _shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return value
