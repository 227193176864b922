"""Sweep files, options of `bench sweep`, the other verbs, and odd variables of the environment."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from cells import SMALL
from fuzz_command import QUICK, STEPS, TENFOLD
from fuzzing import Case, damaged

SMALL_RUN = json.dumps(SMALL["spirals"] | {"trainer.steps": 2})
CELL = f"{{method: erm, dataset: spirals, set: {SMALL_RUN}}}"
GOOD = f"cells:\n- {CELL}\n"
RICH = f"""seeds: 0-1
set: {SMALL_RUN}
cells:
  - method: [erm, and_mask]
    dataset: spirals
    grid: {{trainer.learning_rate: [0.1, 0.01]}}
  - {{method: and_mask, dataset: spirals, random: {{trials: 2}}}}
exclude:
  - {{method: erm, trainer.learning_rate: 0.1}}
fuse: auto
tiers:
  small: {{seeds: 0, trials: 1}}
"""
"""What `damaged` damages."""
MUTATIONS = 60


def cells(text: str) -> str:
    """Return a sweep file with one item."""
    return f"cells:\n- {{method: erm, dataset: spirals, {text}}}\n"


TEXTS: dict[str, str | bytes] = {
    "good": GOOD, "empty": "", "null": "null", "list": "[1]", "scalar": "abc", "binary": b"\x00\x01\x02",
    "latin-1": b"cells: \xe9\n", "utf-16": "cells: []".encode("utf-16"), "utf-32": "cells: []".encode("utf-32"),
    "bom": b"\xef\xbb\xbf" + GOOD.encode(), "tabs": "\tcells:\n", "two documents": f"{GOOD}---\n{GOOD}",
    "carriage returns": GOOD.replace("\n", "\r"), "merge": f"x: &x {CELL}\ncells: [{{<<: *x}}]\n",
    "alias": "a: &a [erm]\ncells:\n- {method: *a, dataset: spirals}\n",
    "anchors": f"cells:\n- {{method: &m erm, dataset: spirals, set: {SMALL_RUN}}}\n",
    "int key": "1: 2\n" + GOOD, "null key": "null: 2\n" + GOOD, "list key": "? [1,2]\n: 3\n" + GOOD,
    "int key in set": cells("set: {1: 2}"), "null key in set": cells("set: {null: 2}"),
    "int key in grid": cells("grid: {1: [2]}"), "int key in rule": GOOD + "exclude: [{1: 2}]\n",
    "no cells": "cells:\n", "empty cells": "cells: []\n", "table of cells": "cells: {a: 1}\n",
    "method null": "cells:\n- {method: null, dataset: spirals}\n",
    "method empty list": "cells:\n- {method: [], dataset: spirals}\n",
    "method table": "cells:\n- {method: {a: 1}, dataset: spirals}\n",
    "method nested list": "cells:\n- {method: [[erm]], dataset: spirals}\n",
    "method empty": "cells:\n- {method: '', dataset: spirals}\n",
    "every dataset": "cells:\n- {method: erm, dataset: '*'}\n",
    "every method": f"cells:\n- {{method: '*', dataset: spirals, set: {SMALL_RUN}}}\n",
    "every method of nothing": "cells:\n- {method: '*', dataset: nothing}\n",
    "grid scalar": cells("grid: {trainer.steps: 1}"), "grid empty": cells("grid: {trainer.steps: []}"),
    "grid of tables": cells("grid: {trainer.steps: [{a: 1}]}"), "grid null": cells("grid: {trainer.steps: null}"),
    "grid nested": cells("grid: {trainer.steps: [1], trainer.steps.x: [2]}"),
    "set nested": cells("set: {trainer.steps: 1, trainer.steps.x: 2}"),
    "set nested first": cells("set: {trainer.steps.x: 1, trainer.steps: 2}"),
    "set nan": cells("set: {trainer.learning_rate: .nan}"), "set inf": cells("set: {trainer.learning_rate: 1e999}"),
    "common inf": "set: {trainer.learning_rate: 1e999}\n" + GOOD, "set list": cells("set: [1]"),
    "seeds inf": GOOD + "seeds: 1e999\n", "seeds negative": GOOD + "seeds: -1\n", "seeds float": GOOD + "seeds: 1.0\n",
    "seeds true": GOOD + "seeds: true\n", "seeds null": GOOD + "seeds: null\n", "seeds none": GOOD + "seeds: []\n",
    "seeds text in list": GOOD + "seeds: ['0-4']\n", "seeds reversed": GOOD + "seeds: 5-1\n",
    "seeds squared": GOOD + "seeds: '²'\n", "seeds 2**32": GOOD + "seeds: 4294967296\n",
    "fuse 0": GOOD + "fuse: 0\n", "fuse -3": GOOD + "fuse: -3\n", "fuse text": GOOD + "fuse: maybe\n",
    "fuse 21 digits": GOOD + "fuse: 999999999999999999999\n", "fuse true": GOOD + "fuse: true\n",
    "fuse float": GOOD + "fuse: 1.5\n", "fuse null": GOOD + "fuse: null\n",
    "tier full": GOOD + "tiers: {full: {}}\n", "tier list": GOOD + "tiers: [a]\n",
    "rule on nothing": GOOD + "include: [{nothing: 1}]\n", "rules keep nothing": GOOD + "include: [{seed: 77}]\n",
    "empty rule": GOOD + "exclude: [{}]\n", "rule text": GOOD + "include: other.yaml\n",
    "rule with table": GOOD + "exclude: [{seed: {a: 1}}]\n", "rule null": GOOD + "exclude: [null]\n",
    "random 0": cells("random: {trials: 0}"), "random list": cells("random: [1]"),
    "random without range": cells("random: {trials: 1, settings: [trainer.steps]}"),
    "random text": cells("random: {trials: 1, settings: trainer.learning_rate}"),
    "random twice": cells("random: {trials: 1, settings: [trainer.learning_rate, trainer.learning_rate]}"),
    "two searches": cells(
        "random: {trials: 1}, optuna: {trials: 1, metric: validation_loss, direction: minimize}"
    ),
    "optuna": cells("optuna: {trials: 1, metric: validation_loss, direction: minimize}"),
    "optuna by test": cells("optuna: {trials: 1, metric: test_loss, direction: minimize}"),
    "optuna up": cells("optuna: {trials: 1, metric: validation_loss, direction: up}"),
    "protocol": f"cells:\n- {{method: erm, dataset: spirals, protocol: oracle, set: {SMALL_RUN}}}\n",
    "protocol x": cells("protocol: x"), "unknown": GOOD + "cels: 1\n", "unknown letters": GOOD + "séeds: 1\n",
    "escape in key": GOOD + '"\\e[31mred": 1\n', "line in key": GOOD + '"a\\nb": 1\n',
    "lines in method": 'cells:\n- {method: "erm\\n\\nfoo", dataset: spirals}\n',
    "surrogate method": 'cells:\n- {method: "\\ud800", dataset: spirals}\n',
    "surrogate value": cells('set: {dataset.x: "\\ud800"}'), "surrogate key": cells('set: {"\\ud800": 1}'),
}  # fmt: skip
REFUSED: dict[str, str | bytes] = {
    "open": "[" * 5000, "deep": "a: " + "[" * 2000 + "]" * 2000,
    "deep tables": "".join(" " * depth + "a:\n" for depth in range(1500)),
    "tenfold": f"{{{TENFOLD}, cells: *h}}", "self": "cells: &a [*a]\n",
    "self in set": "cells:\n- method: erm\n  dataset: spirals\n  set: &x {a: *x}\n",
    "self in rule": GOOD + "include: &a [*a]\n",
    "python": "cells: !!python/object/apply:os.system ['id']\n", "python name": "!!python/name:os.system cells: 1\n",
    "tag": "cells: !x 1\n", "method twice": "cells:\n- {method: erm, method: vrex, dataset: spirals}\n",
    "cells twice": GOOD + GOOD, "too long": GOOD + "# " + "x" * 3_000_000,
    "seeds 10**9": GOOD + "seeds: 0-1000000000\n", "seeds 10**21": GOOD + "seeds: 0-999999999999999999999\n",
    "seeds 5000 digits": GOOD + f"seeds: {'9' * 5000}\n",
    "steps 5000 digits": cells(f"set: {{trainer.steps: {'9' * 5000}}}"),
    "random 10**11": cells("random: {trials: 100000000000}"),
    "optuna 10**11": cells("optuna: {trials: 100000000000, metric: validation_loss, direction: minimize}"),
    "optuna 10**11 at once": cells(
        "optuna: {trials: 100000000000, at_once: 100000000000, metric: validation_loss, direction: minimize}"
    ),
    "random 10**5, 10**5 seeds": cells("random: {trials: 100000}") + "seeds: 0-99999\n",
    "grid 10**12": cells(
        f"grid: {{{', '.join(f'trainer.x{number}: [1,2,3,4,5,6,7,8,9,10]' for number in range(12))}}}"
    ),
    "grid 10**9": cells(
        f"grid: {{trainer.learning_rate: {[1e-5 * n for n in range(1, 1001)]}, trainer.steps: "
        f"{list(range(1, 1001))}, trainer.batch_size: {list(range(1, 1001))}}}"
    ),
    "methods 10**9": f"cells:\n- {{method: [{'erm,' * 31_623} erm], dataset: [{'spirals,' * 31_623} spirals]}}\n",
}  # fmt: skip
TIERS = {
    "unknown": ("", "x"), "null": ("tiers: {small: null}\n", "small"), "trials 0": ("tiers: {small: {trials: 0}}\n",
    "small"),
    "seeds": ("tiers: {small: {seeds: 0-1000000000}}\n", "small"), "empty": ("tiers: {'': {}}\n", ""),
    "surrogate": ("", "\udcff"), "good": ("tiers: {small: {seeds: 3}}\n", "small"),
}  # fmt: skip
NINES = "9" * 5000
OPTIONS = (
    "--workers 0", "--workers -1", "--workers 1e3", "--workers nan", "--workers 1000000000",
    "--workers 99999999999999999999", f"--workers {NINES}", "--threads 0", "--threads 99999999999999999999",
    "--threads 1000000", "--timeout 0", "--timeout -1", "--timeout inf", "--timeout nan", "--timeout 1y",
    f"--timeout {NINES}", f"--timeout {'9' * 300}d", "--timeout ²s", "--timeout ٣s", "--timeout 1e5",
    "--memory-floor nan", "--memory-floor inf", "--memory-floor -1", "--memory-floor 1e308", "--jobs-per-gpu 0",
    "--jobs-per-gpu 1000000000", "--jobs-per-gpu 99999999999999999999", "--gpus x", "--gpus -1", "--gpus 0,0",
    "--gpus ²", f"--gpus {NINES}", "--engine x", "--engine ray --address x", "--engine slurm --slurm x",
    "--engine slurm --slurm =", "--engine slurm --gpus-per-run nan", "--engine slurm --gpus-per-run inf",
    "--engine slurm --gpus-per-run 1e300", "--engine slurm --gpus-per-run 0.5", "--engine ray --gpus-per-run nan",
    "--engine ray --gpus-per-run inf", "--engine slurm --minutes 99999999999999999999", "--minutes 0",
    "--minutes 99999999999999999999", "--rerun x", "--rerun \udcff", "--fuse x", "--fuse 0", "--fuse -1", "--fuse ²",
    f"--fuse {NINES}", "--fuse 1.5", "--fuse ٣", "--out s.yaml", "--out s.yaml/x", "--out /dev/null", "--out /proc/x",
    "--out ~nouser", f"--out {'a' * 300}", "--out loop", "--workers 2 --gpus 0",
)  # fmt: skip
EMPTY = ("--timeout", "--gpus", "--engine", "--rerun", "--fuse", "--out", "--tier", "--slurm", "--address")
NAMES = (
    "nothing", "", "../smoke", "smoke.yaml", "/dev/null", "/dev/zero", "/dev/random", "/dev/stdin", "/proc/self/mem",
    ".",
    "/", "\udcff", "a" * 300, "a/" * 3000, "s.yaml/x", "pipe", "loop", "dangling", "~nouser", "secret/s.yaml",
)  # fmt: skip
VERBS = (
    "ls x", "show ../x", "show \udcff", "show spirals --picture x.png --set trainer.steps=1",
    "show spirals --picture x.png --set dataset.noise=nan", "show digits --picture x.png --seed -1",
    f"show digits --picture x.png --seed {'9' * 30}", "show digits --picture /dev/null",
    "show digits --picture /proc/x.png",
    "show digits --picture loop.png", "show digits --picture dangling.png",
    "show digits --picture folder.png", "show digits --picture pipe.png", "show digits --picture file/x.png",
    "show digits --picture .", "show digits --picture .png", f"show digits --picture {'a' * 300}.png",
    "show digits --picture x.PNG", "show digits --picture ~nouser/x.png", "show digits --picture \udcff.png",
    "show digits --set dataset.x=1", "show spirals --picture x.png",
    "show erm --picture x.png", "show tabular_nuisance --picture x.png",
    "show tabular_nuisance --picture x.png --set dataset.table=/dev/zero", "show trainer --seed 1",
    "data ls x", "data", "data fetch", "data fetch ../x", "data fetch \udcff", "data verify spirals",
    "data verify mnist",
    "data fetch spirals", "data verify ../x", "data x",
    "analyze", "analyze spectrum", "analyze spectrum nowhere", "analyze x", "analyze spectrum . --alpha nan",
    "analyze spectrum . --alpha inf", "analyze spectrum . --alpha 0", "analyze spectrum . --top 0",
    "analyze spectrum . --steps 99999999999999999999", "analyze spectrum . --vectors 99999999999999999999",
    "analyze spectrum . --examples 0", "analyze spectrum . --device x", "analyze spectrum . --out loop.png",
    "analyze widths . --points 1", "analyze widths . --points 99999999999999999999",
    "analyze widths . --generator \udcff",
    "analyze consistency . --epsilon nan", "analyze consistency . --reach inf", "analyze consistency . --reach nan",
    "analyze consistency . --directions 99999999999999999999", "analyze spectrum /dev/null", "analyze spectrum loop",
    "analyze spectrum pipe",
    "analyze symmetry . --tolerance nan", "analyze symmetry . --tolerance 0", "analyze symmetry . --examples 0",
    "analyze symmetry nowhere", "analyze symmetry . --out loop.png",
    "reproduce x", "reproduce ../x", "reproduce irmv1_colored_mnist --dry-run --out /dev/null",
    "reproduce irmv1_colored_mnist --dry-run --out loop", f"reproduce irmv1_colored_mnist --dry-run --out {'a' * 300}",
    "reproduce irmv1_colored_mnist --workers 0", "reproduce irmv1_colored_mnist --workers 1000000000 --dry-run",
    "reproduce irmv1_colored_mnist --threads 99999999999999999999 --dry-run", "reproduce irmv1_colored_mnist --gpus x",
    "reproduce \udcff", "reproduce irmv1_colored_mnist --dry-run",
    "compare . .", "compare aaaaaaaaaaaa bbbbbbbbbbbb", "compare 0000000 0000000", "compare /dev/null /dev/null",
    "compare --x y", "compare \udcff \udcff", "compare loop loop", "compare . . --metric \udcff", "compare pipe pipe",
    f"compare {'a' * 300} .", "compare . . --format x", "compare aaaaaaaaaaaa bbbbbbbbbbbb --results loop",
    "compare aaaaaaaaaaaa bbbbbbbbbbbb --results nowhere", f"compare {'a' * 40}\n .",
    "table .", "table /dev/null", "table . --format x", "table . --rows x", "table \udcff", "table . --select x",
    "table loop", "table pipe", "table /dev/zero", f"table {'a' * 300}", "table . --metric \udcff",
    "table --vs-published .",
    "table ~nouser",
    "report . --out .html", "report . --out /proc/x.html", "report . --out folder.html", "report . --out loop.html",
    "report . --out pipe.html", "report . --out dangling.html", f"report . --out {'a' * 300}.html",
    "report . --port 70000",
    "report . --port -1", "report . --port nan", "report . --serve --port 99999999999999999999",
    "report /dev/null --out x.html", "report . --out \udcff.html", "report . --out ~nouser/x.html",
    "report . --out file/x.html",
    "plot curves . --out x.exe", "plot x .", "plot curves .", "plot angle . --example -1", "plot curves . --out .png",
    "plot angle . --example 99999999999999999999", "plot curves . --out loop.png", "plot curves . --out /proc/x.png",
    "plot curves . --out folder.png", "plot curves . --out pipe.png", "plot widths . --mark nan",
    "plot densities . --at x",
    "plot densities . --at nan", "plot ranks . --select x", "plot sensitivity . --metric \udcff",
    "plot curves /dev/zero",
    "rerun-best .", "rerun-best . --select last", "rerun-best . --seeds 5-1", "rerun-best . --workers 0",
    "rerun-best . --seeds 0-1000000000", "rerun-best . --workers 1000000000", "rerun-best . --out /dev/null",
    "rerun-best /dev/null", f"rerun-best . --seeds {NINES}",
    "doctor x", "--version", "--help x", "-x", "run", "\udcff", "run --help -m", "--install-completion",
)  # fmt: skip
EMPTY_NAMES = (
    ("ls", ""), ("show", ""), ("data", "fetch", ""), ("data", "verify", ""), ("reproduce", ""), ("compare", "", ""),
    ("table", ""), ("report", "."), ("report", ".", "--out", ""), ("plot", "", "."),
    ("plot", "curves", ".", "--out", ""), ("analyze", "spectrum", ""), ("rerun-best", ""), ("",),
    ("show", "digits", "--picture", ""), ("compare", "a b", "c\td"),
    ("report", ".", "--out", "a\nb.html"), ("engine", "slurm"), ("sweep",), ("sweep", "s.yaml", "s.yaml"),
)  # fmt: skip
VARIABLES: tuple[dict[str, str], ...] = (
    {"INVBENCH_DATA": "/dev/null"}, {"INVBENCH_DATA": "\udcff"}, {"INVBENCH_DATA": ""}, {"INVBENCH_DATA": "~nouser/x"},
    {"INVBENCH_DATA": "a" * 300}, {"INVBENCH_DATA": "loop"}, {"INVBENCH_DATA": "~"}, {"INVBENCH_DATA": "x\ny"},
    {"INVBENCH_CACHE": "/dev/null"}, {"INVBENCH_CACHE": "/proc/x"}, {"INVBENCH_CACHE": "~nouser/x"},
    {"INVBENCH_CACHE": "a" * 300}, {"INVBENCH_CACHE": "loop"}, {"INVBENCH_CACHE": ""}, {"INVBENCH_CACHE": "\udcff"},
    {"INVBENCH_CACHE": "pipe/x"}, {"CUDA_VISIBLE_DEVICES": "x,y"}, {"CUDA_VISIBLE_DEVICES": "0,0"}, {"COLUMNS": "0"},
    {"COLUMNS": "-5"}, {"COLUMNS": "x"}, {"COLUMNS": "9" * 5000}, {"COLUMNS": "1"}, {"COLUMNS": "²"},
    {"COLUMNS": "1000000000"},
    {"LINES": "x"}, {"LANG": "C", "PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}, {"TERM": "\udcff"},
    {"HOME": "", "INVBENCH_CACHE": ""}, {"HOME": "/nonexistent", "INVBENCH_CACHE": ""},
    {"HOME": "\udcff", "INVBENCH_CACHE": ""}, {"XDG_CACHE_HOME": "~nouser", "INVBENCH_CACHE": ""},
    {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TMPDIR": "/nonexistent"}, {"TZ": "nowhere/x"}, {"OMP_NUM_THREADS": "x"},
)  # fmt: skip
UNDER = (
    ("data", "ls"), ("ls",), ("show", "mnist"), ("data", "verify", "all"), ("sweep", "s.yaml",
    "--dry-run"),
    ("run", "-m", "erm", "-d", "spirals", *QUICK, *STEPS),
)  # fmt: skip


def cases() -> list[Case]:
    return [*_files(), *_damaged_files(), *_sweep_options(), *_verbs(), *_variables()]


def _writing(content: str | bytes) -> Callable[[Path], None]:
    """Return a preparation that writes a sweep file, and some names that are no regular files."""

    def prepare(folder: Path) -> None:
        (folder / "s.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        for ending in ("", ".png", ".html"):
            (folder / f"loop{ending}").symlink_to(f"other{ending}")
            (folder / f"other{ending}").symlink_to(f"loop{ending}")
            (folder / f"dangling{ending}").symlink_to("nowhere/x/y")
            os.mkfifo(folder / f"pipe{ending}")
            (folder / f"folder{ending}").mkdir()
        (folder / "file").write_text("x")

    return prepare


def _sweep(label: str, content: str | bytes, *more: str, refused: bool = False) -> Case:
    return Case(f"sweep {label}", ["sweep", "s.yaml", "--dry-run", *more], _writing(content), refused=refused)


def _files() -> list[Case]:
    right = [_sweep(label, text) for label, text in TEXTS.items()]
    wrong = [_sweep(label, text, refused=True) for label, text in REFUSED.items()]
    tiers = [_sweep(f"tier {label}", GOOD + text, "--tier", name) for label, (text, name) in TIERS.items()]
    return [*right, *wrong, *tiers]


def _damaged_files() -> list[Case]:
    return [
        _sweep(f"damaged {seed}", damaged(RICH.encode(), random.Random(seed)))  # noqa: S311
        for seed in range(MUTATIONS)
    ]


def _sweep_options() -> list[Case]:
    some = [_sweep(f"option {text[:45]!r} {len(text)}", GOOD, *text.split(" ")) for text in OPTIONS]
    none = [_sweep(f"option {name} of nothing", GOOD, name, "") for name in EMPTY]
    names = [
        Case(f"sweep name {name[:20]!r}", ["sweep", name, "--dry-run"], _writing(GOOD), seconds=15, refused=True)
        for name in NAMES
    ]
    return [*some, *none, *names]


def _verbs() -> list[Case]:
    calls = [*(tuple(text.split(" ")) for text in VERBS), *EMPTY_NAMES]
    return [Case(f"verb {' '.join(call)[:70]!r}", list(call), _writing(GOOD)) for call in calls]


def _variables() -> list[Case]:
    return [
        Case(f"variable {str(variables)[:60]} {' '.join(call)[:20]}", list(call), _writing(GOOD), variables)
        for variables in VARIABLES
        for call in UNDER
    ] + [
        Case(f"variable {variables} doctor", ["doctor"], _writing(GOOD), variables)
        for variables in ({"INVBENCH_CACHE": "~nouser/x"}, {"INVBENCH_DATA": "loop"}, {"COLUMNS": "x"})
    ]
