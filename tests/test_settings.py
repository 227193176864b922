"""Settings: typed, strict, from sources with a fixed precedence."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invbench.configuration import merge, parse_assignments, parse_yaml, recipe_layers
from invbench.errors import UserError
from invbench.registry import BACKBONES, DATASETS, METHODS
from invbench.settings import LogUniform, Settings, setting
from invbench.spec import resolve
from invbench.trainer import Trainer


class Example(Settings):
    """Settings of every kind."""

    ratio: float = setting(0.5, "a ratio", ge=0, le=1, search=LogUniform(0.01, 1), fusable=True)
    count: int = setting(3, "a count", ge=1)
    flag: bool = setting(False, "a flag")
    mode: Literal["a", "b"] = setting("a", "a mode")
    steps: tuple[float, ...] = setting((0.5,), "a list")
    limit: int | None = setting(None, "a limit")


def test_values_are_taken() -> None:
    values = {"ratio": 1, "count": 4, "flag": True, "mode": "b", "steps": [0.1, 1], "limit": 7}
    assert Example.parse(values, "x").canonical() == values | {"ratio": 1.0, "steps": [0.1, 1.0]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": "0.5"}, "setting 'x.ratio' is \"0.5\": input should be a valid number"),
        ({"ratio": True}, "setting 'x.ratio' is true: input should be a valid number"),
        ({"ratio": 1.5}, "setting 'x.ratio' is 1.5: input should be less than or equal to 1"),
        ({"ratio": float("nan")}, "setting 'x.ratio' is .*number"),
        ({"count": 2.0}, "setting 'x.count' is 2.0: input should be a valid integer"),
        ({"count": True}, "setting 'x.count' is true: input should be a valid integer"),
        ({"flag": 1}, "setting 'x.flag' is 1: input should be a valid boolean"),
        ({"mode": "c"}, "setting 'x.mode' is \"c\": input should be 'a' or 'b'"),
        ({"steps": 0.5}, "setting 'x.steps' is 0.5: input should be"),
        ({"coutn": 1}, "no setting 'x.coutn'; did you mean 'count'?"),
        ({"count": object()}, "must be plain numbers"),
    ],
)
def test_wrong_values_are_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Example.parse(values, "x")
    assert "\n" not in str(error.value)


def test_description() -> None:
    ratio = next(Example.describe())
    assert (ratio.name, ratio.type, ratio.default) == ("ratio", "float", "0.5")
    assert (ratio.range, ratio.search, ratio.meaning) == ("≥ 0, ≤ 1", "log-U(0.01, 1)", "a ratio")
    assert Example.fusable() == ("ratio",)


def test_every_setting_is_documented() -> None:
    classes = [registry.load(name) for registry in (METHODS, DATASETS, BACKBONES) for name in registry.entries()]
    for cls in [*classes, Trainer]:
        assert cls.__doc__
        for info in cls.describe():
            assert info.meaning, f"{cls.__name__}.{info.name} has no meaning"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), ("3", 3), ("true", True), ("null", None), ("", None),
        ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("010", 10),
        ("[0.5, 1e-1]", [0.5, 0.1]), ("{'*.bias': 0}", {"*.bias": 0}), ("mask", "mask"), ("1_000", "1_000"),
    ],
)  # fmt: skip
def test_yaml_scalars_are_jsons(text: str, value: Any) -> None:
    assert parse_yaml(text, "test") == value
    assert type(parse_yaml(text, "test")) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_yaml(value: float) -> None:
    assert float(parse_yaml(repr(value), "test")) == value


def test_malformed_yaml_and_python_tags_are_refused() -> None:
    with pytest.raises(UserError, match="recipe x, line 1 is not valid YAML"):
        parse_yaml("a: [1", "recipe x")
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.getcwd []", "recipe x")


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class default < recipe < recipe's entry for the method < layer of a sweep < --set."""
    recipe = (
        "trainer: {epochs: 5, learning_rate: 2e-3, weight_decay: 2e-3, l1: 2e-3}\n"
        "methods:\n  and_mask:\n    trainer: {learning_rate: 3e-3, weight_decay: 3e-3}\n    method: {threshold: 0.3}\n"
    )
    monkeypatch.setattr("invbench.configuration.recipe_text", lambda name: recipe)
    layer = {"trainer": {"weight_decay": 4e-3}, "method": {"and_mask": {"threshold": 0.4}}}
    cell = resolve("and_mask", "spirals", 0, {"method.threshold": 0.5}, [layer])
    trainer = cell.trainer
    assert (trainer.momentum, trainer.l1, trainer.learning_rate, trainer.weight_decay) == (0.0, 2e-3, 3e-3, 4e-3)
    assert cell.method.parts["and_mask"].threshold == 0.5  # type: ignore[attr-defined]
    erm = resolve("erm", "spirals")
    assert erm.trainer.learning_rate == 2e-3


def test_a_composition_takes_its_parts_entries() -> None:
    layers = recipe_layers("spirals", ["erm", "and_mask"], {})
    assert {"and_mask": {"threshold": 1.0, "scale_by_inverse_sparsity": True}} in [x.get("method") for x in layers]


def test_steps_replace_epochs_and_the_reverse() -> None:
    assert resolve("erm", "spirals", 0, {"trainer.steps": 7}).trainer.epochs is None
    merged = merge([{"trainer": {"steps": 3}}, {"trainer": {"epochs": 2}}])
    assert merged["trainer"] == {"epochs": 2}
    with pytest.raises(UserError, match="give either steps or epochs"):
        resolve("erm", "spirals", 0, {"trainer.steps": 7, "trainer.epochs": 7})


def test_another_backbone_drops_the_settings_of_the_first() -> None:
    cell = resolve("erm", "digits", 0, {"backbone.name": "mlp"})
    assert cell.spec.backbone_settings == BACKBONES.load("mlp")().canonical()


def test_recipe_lists_do_not_leak_between_runs() -> None:
    first = resolve("erm", "spirals", 0, {"trainer.weight_decay_of": {"*.bias": 0.0}})
    assert first.trainer.weight_decay_of
    assert not resolve("erm", "spirals").trainer.weight_decay_of


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ({"trainer.epcohs": 3}, "no setting 'trainer.epcohs'; did you mean 'epochs'"),
        ({"trianer.epochs": 3}, "setting 'trianer.epochs': write it as section.name.*did you mean 'trainer'"),
        ({"trainer": 3}, "write it as section.name"),
        ({"method.threshold": "high"}, "setting 'method.threshold' is \"high\""),
        ({"backbone.name": "mpl"}, "no backbone 'mpl'; did you mean 'mlp'"),
        ({"backbone.name": 3}, "'backbone.name' must be a name"),
        ({"backbone.name": "cnn_small"}, "backbone cnn_small takes image inputs, which spirals does not have"),
        ({"trainer.milestones": [2.0]}, "milestones are fractions"),
        ({"trainer.strategy": "loop", "trainer.compile": True}, "compile works with strategy joint"),
    ],
)
def test_wrong_assignments(assignments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("and_mask", "spirals", 0, assignments)


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    assert parse_assignments(["a.b=c=d", "x.y= 1e-2"]) == {"a.b": "c=d", "x.y": 0.01}
    with pytest.raises(UserError, match="write it as section.name=value"):
        parse_assignments(["a.b"])
