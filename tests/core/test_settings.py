"""Settings: typed, strict, from sources with a fixed precedence."""

import math
import os
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

from invbench.core.registry import BACKBONES, DATASETS, METHODS
from invbench.core.settings import LogUniform, Settings, setting
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError
from invbench.runs.config import merge, parse_assignments, recipe_layers
from invbench.runs.resolve import resolve
from invbench.strict_yaml import parse_yaml, read_yaml
from invbench.sweeps.definition import Sweep


class Example(Settings):
    """Settings of every kind."""

    ratio: float = setting(0.5, "a ratio", ge=0, le=1, search=LogUniform(0.01, 1), fusable=True)
    count: int = setting(3, "a count", ge=1)
    flag: bool = setting(False, "a flag")
    mode: Literal["a", "b"] = setting("a", "a mode")
    steps: tuple[float, ...] = setting((0.5,), "a list")
    limit: int | None = setting(None, "a limit")
    number: Literal["auto", "off"] | int = setting("auto", "a number, or a way to choose it")
    order: tuple[str, ...] | int = setting(0, "a list, or a number")
    costs: str = setting("time", "a word that is looked at")

    @field_validator("costs")
    @classmethod
    def _known(cls, costs: str) -> str:
        if costs != "time":
            raise ValueError(f"'{costs}' is not one of time")
        return costs


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_values_are_taken() -> None:
    values = {"ratio": 1, "count": 4, "flag": True, "mode": "b", "steps": [0.1, 1], "limit": 7, "number": "off"}
    values |= {"order": ["a"], "costs": "time"}
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
        ({"count": CIRCLE}, "must be plain numbers"),
        ({"count": DEEP}, "must be plain numbers"),
        ({"mode": "x" * 5000}, "setting 'x.mode' is \"x{199}…: input should be 'a' or 'b'"),
        ({"mode": "B"}, "^setting 'x.mode' is \"B\": input should be 'a' or 'b'; did you mean 'b'[?]$"),
        ({"number": 1.5}, "^setting 'x.number' is 1.5: input should be 'auto' or 'off', or a valid integer$"),
        ({"number": "of"}, "'auto' or 'off', or a valid integer; did you mean 'off'[?]$"),
        ({"number": 2**63}, "setting 'x.number' is 9223372036854775808: input should be a whole number below 2.53$"),
        ({"order": ["a", 1]}, "^setting 'x.order.1' is 1: input should be a valid string$"),
        ({"order": True}, "^setting 'x.order' is true: input should be a valid array, or a valid integer$"),
        ({"costs": "steps"}, "^setting 'x.costs' is \"steps\": 'steps' is not one of time$"),
        (
            {"ratio": 5e-324},
            "^setting 'x.ratio' is 5e-324: input should be 0, or from 1.17549435e-38 to ",
        ),
        (
            {"steps": [1, -1e39]},
            "^setting 'x.steps.1' is -1e.39: input should be 0, or from 1.17549435e-38 ",
        ),
        ({"steps": [math.inf]}, "^setting 'x.steps.0' is Infinity: input should be a finite number$"),
    ],
)
def test_wrong_values_are_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Example.parse(values, "x")
    assert "\n" not in str(error.value)


def test_negative_zero_is_zero() -> None:
    """They are equal, so they make equal text, and one run."""
    specs = {resolve("erm", "and_mask_regression", 0, {"dataset.noise": zero}).spec.run_id for zero in (0.0, -0.0, 0)}
    assert len(specs) == 1


def test_numbers_of_float32_are_taken() -> None:
    steps = (0.0, 2.0**-126, -(2.0**-126), 3.4028234e38)
    assert Example.parse({"steps": list(steps)}, "x").steps == steps


def test_description() -> None:
    ratio = next(Example.describe())
    assert (ratio.name, ratio.type, ratio.default) == ("ratio", "float", "0.5")
    assert (ratio.range, ratio.search, ratio.meaning) == ("≥ 0, ≤ 1", "log-U(0.01, 1)", "a ratio")
    assert Example.fusable() == ("ratio",)


def test_every_setting_is_documented() -> None:
    classes = [registry.load(name) for registry in (METHODS, DATASETS, BACKBONES) for name in registry.entries()]
    for cls in [*classes, TrainerConfig]:
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


TENFOLD = "[x,x,x,x,x,x,x,x,x,x]"
"""Ten values; each letter stands for ten times those of the one before."""
BOMB = (
    f"{{a: &a {TENFOLD}, "
    + ", ".join(f"{new}: &{new} {TENFOLD.replace('x', f'*{old}')}" for old, new in pairwise("abcdefgh"))
    + "}"
)


MERGE_BOMB = "{a0: &a0 {x: 1}, " + ", ".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)) + "}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100000 values, with those that aliases stand for"),
        ("[" * 3000, "more than 32 levels"),
        ("[" * 900 + "]" * 900, "more than 32 levels"),
        ("".join(" " * depth + "a:\n" for depth in range(500)), "line 32 .* more than 32 levels"),
        ("&a [*a]", "[*]a stands for something that it is in itself"),
        ("&a {x: [*a]}", "stands for something that it is in itself"),
        ("*a", "undefined alias"),
        ("x" * (2**20 + 1), "too long: it may have 1048576 characters"),
        ("9" * 5000, "9… is no whole number below 2.53"),
        (str(2**53), "9007199254740992 is no whole number"),
        (f"a: 1\nb: -{2**53}", "line 2 .* is no whole number"),
        ("!!int abc", "tags such as tag:yaml.org,2002:int are not known"),
        ("!!float abc", "tags such as"),
        ("!!bool abc", "tags such as"),
        ("!!int [1]", "tags such as"),
        ("{a: !mine 3}", "tags such as !mine"),
        ("a: 1\na: 2", "line 2 .* 'a' is there twice"),
        ("{a: {b: 1, 'b': 2}}", "'b' is there twice"),
        ("{1: 2}", "a key is no text; put it in quotes"),
        ("{null: 2}", "a key is no text"),
        ("{[1, 2]: 3}", "a key is no text"),
        ("? {a: 1}\n: 2", "a key is no text"),
        ("\x1b[31mred", "special characters are not allowed"),
        ("\udcff", "special characters are not allowed"),
        ('"\\ud800"', "a character that is no text"),
        ('{"\\0": 1}', "a character that is no text"),
        ("1\n---\n2", "another document"),
        ("a: 1\nb: {<<: 1}", "line 2 .* << takes a table, or a list of tables"),
        ("a: &a 1\nb: {<<: *a}", "<< takes a table"),
        ("{a: &a {x: 1}, b: {<<: [*a, 1]}}", "<< takes a table"),
        ("{a: &a {x: 1}, b: {<<: [[*a]]}}", "<< takes a table"),
        ("{a: &a {x: 1}, b: {<<: *a, <<: *a}}", "'<<' is there twice"),
        ("&a {<<: *a}", "stands for something that it is in itself"),
        (MERGE_BOMB, "more than 100000 values, with those that aliases stand for"),
    ],
)
def test_yaml_has_bounds(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_yaml(text, "recipe x")
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_a_number_of_many_digits_takes_no_time() -> None:
    """What looks like one is looked at once, not once for each digit."""
    text = "1" * 200_000 + "x"
    assert parse_yaml(text, "recipe x") == text


def test_yaml_within_the_bounds() -> None:
    assert parse_yaml("[" * 32 + "]" * 32, "x")
    assert parse_yaml("a: &one {b: [1, 2]}\nc: *one\nd: [*one, *one]", "x")["d"] == [{"b": [1, 2]}] * 2
    assert len(parse_yaml(f"[{'1,' * 99_000}]", "x")) == 99_000
    assert parse_yaml(f"[{2**53 - 1}, {1 - 2**53}]", "x") == [2**53 - 1, 1 - 2**53]
    assert parse_yaml("\ufeffa: {'<<': 1, b: 1e999}", "x") == {"a": {"<<": 1, "b": math.inf}}


def test_yaml_merge_keys() -> None:
    """A table's own keys win, then those of the first that is merged; nested tables are not mixed."""
    tables = "a: &a {x: 1, z: {p: 1}}\nb: &b {x: 2, y: 2, z: {q: 1}}\n"
    merged = parse_yaml(
        f"{tables}c: {{y: 3, <<: [*a, *b]}}\nd: &d {{<<: *b}}\ne: {{<<: *d, x: 9}}\nf: {{<<: {{g: 1}}}}", "x"
    )
    assert merged["c"] == {"x": 1, "y": 3, "z": {"p": 1}}
    assert merged["d"] == merged["b"] == {"x": 2, "y": 2, "z": {"q": 1}}
    assert merged["e"] == {"x": 9, "y": 2, "z": {"q": 1}}
    assert merged["f"] == {"g": 1}
    assert parse_yaml("[<<, a: <<]", "x") == ["<<", {"a": "<<"}]
    chain = "".join(f", &a{i} {{<<: *a{i - 1}}}" for i in range(1, 200))  # read from its end
    assert parse_yaml(f"{{x: [[[[&a0 {{v: 1}}{chain}]]]], y: {{<<: *a199}}}}", "x")["y"] == {"v": 1}


def test_sweeps_and_recipes_take_merge_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = "[{<<: &both {dataset: spirals, set: {trainer.steps: 3}}, method: erm}, {<<: *both, method: irmv1}]"
    (tmp_path / "x.yaml").write_text(f"cells: {cells}")
    runs = Sweep.read(str(tmp_path / "x.yaml")).runs()
    assert [(run.spec.method, run.trainer.steps) for run in runs] == [("erm", 3), ("irmv1", 3)]
    recipe = "trainer: &one {steps: 5}\nmethods: {irmv1: {trainer: {<<: *one, learning_rate: 0.25}}}"
    monkeypatch.setattr("invbench.runs.config.recipe_text", lambda name: recipe)
    trainer = resolve("irmv1", "spirals").trainer
    assert (trainer.steps, trainer.learning_rate) == (5, 0.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xe9", "no text in UTF-8: unexpected end of data at byte 4"),
        ("a: 1".encode("utf-16"), "no text in UTF-8"),
        (b"#" * (2**20 + 1), "too long: it may have 1048576 bytes"),
        (b"\0", "special characters"),
    ],
)
def test_yaml_files_are_short_texts(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "x.yaml", "sweep x")


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "loop", tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path} is no file"):
            read_yaml(path, "sweep x")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "bom.yaml", "sweep x") == {"a": 1}


def test_every_file_of_the_package_is_within_the_bounds() -> None:
    paths = list(Path(str(files("invbench.configs"))).rglob("*.yaml"))
    assert len(paths) > 30
    for path in paths:
        assert isinstance(read_yaml(path, path.name), dict)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class default < recipe < recipe's entry for the method < layer of a sweep < --set."""
    recipe = (
        "trainer: {epochs: 5, learning_rate: 2e-3, weight_decay: 2e-3, l1: 2e-3}\n"
        "methods:\n  and_mask:\n    trainer: {learning_rate: 3e-3, weight_decay: 3e-3}\n    method: {threshold: 0.3}\n"
    )
    monkeypatch.setattr("invbench.runs.config.recipe_text", lambda name: recipe)
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
        ({"trainer.learning_rate": 5e-324}, "setting 'trainer.learning_rate' is 5e-324: input should be 0, or from"),
        ({"trainer.epsilon": 1e-300}, "setting 'trainer.epsilon' is 1e-300: input should be 0, or from"),
        ({"trainer.weight_decay": 1e60}, "setting 'trainer.weight_decay' is 1e.60: input should be 0, or from"),
        ({"trainer.measure_invariance": 1.5}, "is 1.5: input should be 'auto' or 'off', or a valid integer$"),
        ({"trainer.measure_invariance": -1}, "measure_invariance is auto, off, or a number of examples from 1"),
        ({"trainer.measure_invariance": 2**63}, "is 9223372036854775808: input should be a whole number below 2.53"),
        ({"trainer.optimizer": "Adam"}, "input should be 'adam' or 'sgd'; did you mean 'adam'"),
        ({"trainer.steps.x": 1}, "setting 'trainer.steps' is {\"x\": 1}: input should be a valid integer"),
        (
            {"trainer.steps": 3, "trainer.steps.x": 1},
            "'trainer.steps.x' is a part of 'trainer.steps', which is set too",
        ),
        ({"trainer.steps.x.y": 1, "trainer.steps": 3}, "'trainer.steps.x.y' is a part of 'trainer.steps'"),
        ({"trainer.a.b": 3, "trainer.a.b.c": 1}, "'trainer.a.b.c' is a part of 'trainer.a.b'"),
        (
            {"method.rule": "mask", "method.and_mask.rule.x": 1},
            "'method.and_mask.rule.x' is a part of 'method.and_mask",
        ),
        ({"trainer.weight_decay_of": {"a": 1}, "trainer.weight_decay_of.b": 2}, "which is set too: set only one"),
    ],
)
def test_wrong_assignments(assignments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("and_mask", "spirals", 0, assignments)


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    assert parse_assignments(["a.b=c=d", "x.y= 1e-2"]) == {"a.b": "c=d", "x.y": 0.01}
    for text in ("a.b", "a.\udcff=1", "a.b\nc=1", "x" * 5000):
        with pytest.raises(UserError, match="write it as section.name=value") as error:
            parse_assignments([text])
        assert len(str(error.value)) < 300
