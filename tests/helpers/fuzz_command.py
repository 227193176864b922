"""Calls of `bench run` with odd settings, names, seeds, devices and folders."""

import os
from pathlib import Path

from cells import SMALL
from fuzzing import Case

QUICK = [part for name, value in SMALL["spirals"].items() for part in ("--set", f"{name}={value}")]
RUN = ["run", "-m", "erm", "-d", "spirals", "--device", "cpu", *QUICK]
STEPS = ["--set", "trainer.steps=3"]
TENFOLD = "a: &a [x,x,x,x,x,x,x,x,x,x]" + "".join(
    f", {new}: &{new} [{','.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
"""Ten times as much with each letter."""
VALUES = {
    "nan": "nan", "dot nan": ".nan", "inf": "inf", "1e999": "1e999", "-1": "-1", "-1e308": "-1e308", "empty": "",
    "null": "null", "list": "[1,2]", "table": "{a: 1}", "true": "true", "text": "'3'", "5000 digits": "9" * 5000,
    "20 digits": "9" * 20, "1.5": "1.5", "open": "[" * 3000, "deep": "[" * 900 + "]" * 900, "self": "&a [*a]",
    "self in table": "&a {x: *a}", "python": "!!python/object/apply:os.system ['touch touched']",
    "binary": "!!binary aGVsbG8=", "set": "!!set {a, b}", "timestamp": "!!timestamp 2001-01-01",
    "omap": "!!omap [a: 1]",
    "int abc": "!!int abc", "int 1.5": "!!int 1.5", "float abc": "!!float abc", "bool abc": "!!bool abc",
    "null abc": "!!null abc", "int list": "!!int [1]", "str table": "!!str {a: 1}", "documents": "1\n---\n2",
    "lines": "3\n4", "tab": "a\tb", "wide digit": "３", "arabic digit": "٣", "bom": "\ufeff3",
    "surrogates": "\udcff\udcfe",
    "escape": "\x1b[31mred", "merge list": "{<<: [1]}", "merge number": "{<<: 1}", "merge": "{<<: {a: 1}}",
    "twice": "{a: 1, a: 2}", "list as key": "{[1,2]: 3}", "table as key": "? {a: 1}\n: 2", "number as key": "{1: 2}",
    "null as key": "{null: 2}", "tenfold": f"{{{TENFOLD}}}", "percent": "%", "no anchor": "*x", "comment": "#",
    "colons": ": :", "quote": "'abc", "hexadecimal": "0x10", "underscore": "1_000", "401 digits": "1" + "0" * 400,
    "-0": "-0", "1e-400": "1e-400", "escaped surrogate": '"\\ud800"', "escaped nul": '"\\0"', "bad escape": '"\\x"',
    "directive": "%YAML 9.9\n--- 1", "tag directive": "%TAG ! tag:yaml.org,2002:\n--- !int abc", "long": "x" * 100_000,
    "wide list": "[" + "1," * 20_000 + "1]", "alias of text": "[&a x, *a]", "anchor twice": "[&a 1, &a 2, *a]",
    "2**53": str(2**53 + 1), "2**53 - 1": str(2**53 - 1), "2**63": str(2**63), "-2**63": str(-(2**63)),
    "2**64": str(2**64), "denormal": "5e-324", "above float32": "1e39",
}  # fmt: skip
KEYS = (
    "", "=", "=1", "trainer=1", "trainer.=1", ".steps=1", "trainer..steps=1", "trainer.steps.x=1",
    "trainer.steps.x.y.z=1", "method=1", "method.x=1", "method.erm=1", "method.erm.x=1", "method.erm=[1]",
    "method.erm={}", "method.erm=null", "method..x=1", "backbone=1", "backbone.name=1", "backbone.name=nothing",
    "backbone.name=../../etc", "backbone.name=[mlp]", "backbone.name={a: 1}", "backbone.name=null", "backbone.name=''",
    "backbone.hidden=-1", "dataset.x.y=1", "dataset.noise=nan", "dataset.examples=1000000000000000000",
    "dataset.examples=9007199254740991", "dataset.examples=0", "dataset.examples=1e3", "dataset.examples=-5",
    "spec.seed=1", "trainer.__class__=1",
    "trainer.model_config=1", "trainer.steps\n=1", "trainer.\udcff=1", "trainer.étape=1", " trainer.steps =3",
    "trainer.steps==3", "trainer.batch_size=0", "trainer.batch_size=9223372036854775808",
    "trainer.batch_size=1000000000000", "trainer.epochs=0", "trainer.epochs=1e6", "trainer.optimizer=eval",
    "trainer.dtype=float8", "trainer.dtype=__class__", "trainer.strategy=os", "trainer.evaluate_every=0",
    "trainer.evaluate_every=-1", "trainer.evaluate_splits=[a]", "trainer.evaluate_splits=x",
    "trainer.held_out_environment=999999", "trainer.held_out_environment=-1", "trainer.schedule=x",
    "trainer.compile=yes", "trainer.autocast=foo", "trainer.weight_decay=-1", "trainer.clip=-1", "trainer.momentum=2",
    "trainer.measure_invariance=1.5", "trainer.measure_invariance=-1", "trainer.measure_invariance=9223372036854775808",
    "trainer.measure_invariance=9007199254740991", "trainer.measure_invariance=of", "trainer.epsilon=1e-300",
)  # fmt: skip
PAIRS = {
    "number, then nested": ("trainer.steps=3", "trainer.steps.x=2"),
    "nested, then number": ("trainer.steps.x=2", "trainer.steps=3"),
    "nested twice": ("trainer.a.b=3", "trainer.a.b.c=2"),
    "table, then nested": ("trainer.weight_decay_of={a: 1}", "trainer.weight_decay_of.b=2"),
    "nested, then table": ("trainer.weight_decay_of.b=2", "trainer.weight_decay_of={a: 1}"),
    "part, then setting": ("method.erm=1", "method.erm.x=2"),
    "list, then nested": ("backbone.hidden=[1]", "backbone.hidden.x=2"),
    "the same twice": ("trainer.steps=3", "trainer.steps=2"),
}
SEEDS = (
    "5-1", "0-1e9", "0-1000000000", "0-99999999999999999999", "-1", "1-", "-", "", ",", "1,,2", "a", "1 2",
    "0-4294967296", "4294967296", "9" * 5000, "٣", "²", "1-²", "1-3-5", "0x10", "1.5", "nan", "\n", "1\n2", "1;2", "+1",
    "--5", "0,0,0,", "0-999999,1000000-1999999", "0-3," * 300_000, "0-" + "9" * 5000, "\udcff",
)  # fmt: skip
SEED = ("-1", "4294967296", "1e3", "nan", "9" * 5000, "", "0x1", "99999999999999999999")
DEVICES = (
    "", "CUDA", "cuda:-1", "cuda:99999999999999999999", "cpu:0", "cpu:5", "meta", "mps", "cuda:x", "cpu\n", "\udcff",
    "xla", "privateuseone", "cuda:01", "hpu", "cuda:" + "9" * 5000, "cuda:²",
)  # fmt: skip
METHODS = (
    "", "+", "erm+", "+erm", "erm+erm", "erm+and_mask+irmv1", "../erm", "erm\n", "ERM", "erm ", " erm + and_mask ",
    "\udcff", "a" * 100_000, "erm;ls", "__init__", "_x", "erm.py", "base", "os", "method", "erm+" * 500 + "erm",
    "+".join(f"x{number}" for number in range(30_000)), "\x1b[31m",
)  # fmt: skip
DATASETS = (
    "", "../spirals", "spirals\n", "_cifar", "_linear", "__init__", "SPIRALS", " spirals", "a" * 5000, "\udcff",
    "spirals/../spirals", "standins",
)  # fmt: skip
FOLDERS = (
    "/dev/null", "/dev/null/x", "/proc/1", "\udcff", "a" * 300, "/" + "a/" * 3000, "", "x\ny", "/sys/x", "~nouser/x",
    "loop", "dangling", "file", "file/x", "pipe", "pipe/x",
)  # fmt: skip
LOGGERS = ("", "x", "csv", "csv,csv", "wandb\n", "\n", "../csv", "\udcff")
REFUSED = {
    "tenfold", "5000 digits", "deep", "open", "self", "self in table", "python", "twice", "surrogates", "documents",
    "2**53", "2**63", "2**64", "-2**63", "20 digits", "401 digits", "denormal", "above float32",
}  # fmt: skip
"""Values that no setting can have."""


def cases() -> list[Case]:
    return [*_settings(), *_names(), *_seeds(), *_folders(), *_options()]


def _settings() -> list[Case]:
    steps = [
        Case(f"steps {label}", [*RUN, "--set", f"trainer.steps={value}"], refused=label in REFUSED)
        for label, value in VALUES.items()
        if label != "2**53 - 1"  # a long run
    ]
    others = [
        Case(f"{name} {label}", [*RUN, *STEPS, "--set", f"{name}={value}"], refused=label in REFUSED)
        for name in ("trainer.learning_rate", "trainer.weight_decay_of", "dataset.noise", "method.x")
        for label, value in VALUES.items()
    ]
    keys = [Case(f"set {key!r}", [*RUN, *STEPS, "--set", key]) for key in KEYS]
    pairs = [Case(label, [*RUN, "--set", first, "--set", second]) for label, (first, second) in PAIRS.items()]
    several = Case("a thousand settings", [*RUN, *(part for n in range(1000) for part in ("--set", f"trainer.x{n}=1"))])
    return [*steps, *others, *keys, *pairs, several]


def _names() -> list[Case]:
    methods = [Case(f"method {name[:30]!r}", ["run", "-m", name, "-d", "spirals", *QUICK, *STEPS]) for name in METHODS]
    datasets = [Case(f"dataset {name[:30]!r}", ["run", "-m", "erm", "-d", name, *STEPS]) for name in DATASETS]
    devices = [
        Case(f"device {name[:30]!r}", ["run", "-m", "erm", "-d", "spirals", *QUICK, *STEPS, "--device", name])
        for name in DEVICES
    ]
    return [*methods, *datasets, *devices]


def _seeds() -> list[Case]:
    several = [
        Case(f"seeds {number} {text[:30]!r}", [*RUN, *STEPS, "--seeds", text], refused=text != "0,0,0,")
        for number, text in enumerate(SEEDS)
        if len(text) < 100_000  # the most that an argument may have
    ]
    one = [Case(f"seed {text[:30]!r}", [*RUN, *STEPS, "--seed", text], refused=True) for text in SEED]
    return [*several, *one]


def _folders() -> list[Case]:
    def prepare(folder: Path) -> None:
        (folder / "loop").symlink_to("other")
        (folder / "other").symlink_to("loop")
        (folder / "dangling").symlink_to("nowhere/x/y")
        (folder / "file").write_text("x")
        os.mkfifo(folder / "pipe")

    return [Case(f"out {name[:30]!r}", [*RUN, *STEPS, "--out", name], prepare) for name in FOLDERS]


def _options() -> list[Case]:
    seconds = [
        Case(f"checkpoints {text!r}", [*RUN, *STEPS, "--checkpoint-seconds", text])
        for text in ("nan", "inf", "-1", "1e400", "x", "", "1e308")
    ]
    loggers = [Case(f"logger {name!r}", [*RUN, *STEPS, "--logger", name]) for name in LOGGERS]
    return [
        *seconds,
        *loggers,
        Case("a logger twice", [*RUN, *STEPS, "--logger", "csv", "--logger", "csv"]),
        Case("profile of two", [*RUN, *STEPS, "--profile", "--seeds", "0-1"], refused=True),
        Case("an argument too many", [*RUN, *STEPS, "extra"], refused=True),
        Case("json with a name", [*RUN, *STEPS, "--json", "x"], refused=True),
        Case("two dashes", [*RUN, *STEPS, "--", "--seed", "1"], refused=True),
    ]
