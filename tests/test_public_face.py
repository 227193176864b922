"""What `import invbench` offers: names at once, modules on first use, examples that run as printed."""

import ast
import doctest
import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bench

import invbench
from invbench import choices
from invbench.errors import UserError
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.sweeps.engines import ENGINES, make_engine
from invbench.sweeps.engines.local import LocalEngine
from invbench.sweeps.engines.ray import RayEngine
from invbench.sweeps.engines.slurm import SlurmEngine
from invbench.sweeps.monitor import SweepMonitor
from invbench.testing import temporary_registrations
from invbench.training.runner import run_one

FACE = (
    "run", "sweep", "load_results", "load_curves", "table", "compare", "load_run", "load_problem", "Method", "setting",
    "register_method", "register_dataset", "register_backbone", "Problem", "Split", "Batch", "Outputs", "UserError",
    "RunFailed", "Record", "__version__", "Backbone", "Choice", "Dataset", "Gradients", "LogUniform", "Metric", "State",
    "Uniform", "register_metric", "fit", "Predictor",
)  # fmt: skip
EXAMPLES = (
    "invbench",
    "run",
    "sweep",
    "load_results",
    "load_curves",
    "table",
    "compare",
    "load_run",
    "load_problem",
    "fit",
)
"""What has a doctest; the example of the package itself shows the rest."""
TWO_STEPS = {"trainer.epochs": None, "trainer.steps": 2}
SMALL_SWEEP = "{seeds: 0-1, set: {trainer.epochs: null, trainer.steps: 2}, cells: [{method: erm, dataset: spirals}]}"


def test_names_are_listed_and_there() -> None:
    assert sorted(invbench.__all__) == sorted(FACE)
    assert set(FACE) <= set(dir(invbench))
    assert all(getattr(invbench, name) is not None for name in FACE)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", invbench.__version__)
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        invbench.rum  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The imports for them are those that happen on first use."""
    tree = ast.parse(Path(invbench.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        str(node.module).removeprefix("invbench."): tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == invbench._HOMES


def test_the_package_alone_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, invbench; dir(invbench), invbench.UserError, invbench.__version__, invbench.register_method\n"
        "import invbench.choices, invbench.sweeps.engines\n"
        "sys.exit(sorted({'torch', 'pandas', 'numpy', 'sklearn', 'pydantic'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_imports_neither_pandas_nor_scikit_learn(tmp_path: Path) -> None:
    """They take as long to import as torch does."""
    code = (
        "import sys, invbench\n"
        f"invbench.run('erm', 'digits', settings={{'trainer.epochs': 1}}, out={str(tmp_path)!r})\n"
        "sys.exit(sorted({'pandas', 'sklearn'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_as_printed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    documented = invbench if name == "invbench" else getattr(invbench, name)
    # A class of the package is looked for in the module that names it.
    (example,) = doctest.DocTestFinder(recurse=False).find(
        documented, name, module=False, globs={"__name__": "example"}
    )
    said: list[str] = []
    with temporary_registrations():
        result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.attempted
    assert not result.failed, "".join(said)


@pytest.mark.parametrize("name", ["run", "sweep", "load_results", "load_curves", "table", "compare", "load_run"])
def test_functions_say_what_they_raise(name: str) -> None:
    assert re.search(r"Raises:\n +UserError: ", inspect.getdoc(getattr(invbench, name)) or "")


def test_several_seeds_make_a_list_of_records(tmp_path: Path) -> None:
    records = invbench.run(
        "erm", "spirals", seeds="0,2", settings=TWO_STEPS, out=tmp_path, loggers=["csv"], checkpoint_seconds=0
    )
    assert [record.spec.seed for record in records] == [0, 2]
    assert len(list(tmp_path.glob("*/curves.csv"))) == 2
    assert invbench.run("erm", "spirals", seeds=[2], settings=TWO_STEPS, out=tmp_path) == records[1:]
    assert invbench.run("erm", "spirals", seed=2, settings=TWO_STEPS, out=tmp_path) == records[1]


def test_a_failed_seed_keeps_none_of_the_others_from_being_run(tmp_path: Path) -> None:
    settings = TWO_STEPS | {"trainer.optimizer": "sgd", "trainer.learning_rate": 1e30, "trainer.steps": 6}
    with pytest.raises(invbench.RunFailed, match=r"\(2 of 2 runs failed\)") as failure:
        invbench.run("erm", "spirals", seeds="0-1", settings=settings, out=tmp_path)
    assert failure.value.kind == "diverged"
    assert list(invbench.load_results(tmp_path)["status"]) == ["failed", "failed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1, "seeds": "0-4"}, "give either seed or seeds"),
        ({"seeds": "4-0"}, "runs backwards; write 0-4"),
        ({"seeds": "0-999999"}, "they are 1,000,000, and can be 100,000"),
        ({"seeds": [0, -1]}, "seed -1 must be a whole number"),
        ({"loggers": ["cvs"]}, "did you mean 'csv'"),
    ],
)
def test_mistakes_of_a_run(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(invbench.UserError, match=re.escape(message)):
        invbench.run("erm", "spirals", settings=TWO_STEPS, out=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_every_engine_gets_its_options() -> None:
    local = make_engine("local", workers=2, threads=3, timeout=60, memory_floor=0.5, gpus=None)
    assert isinstance(local, LocalEngine)
    assert (len(local.slots), local.threads, local.rules.timeout, local.rules.memory_floor) == (2, 3, 60, 2**29)
    assert make_engine("ray", address="local", gpus_per_run=0.5) == RayEngine("local", 0.5, 1)
    slurm = make_engine("slurm", gpus_per_run=2.0, threads=4, minutes=5, slurm={"partition": "gpu"})
    assert slurm == SlurmEngine(5, 2, 4, parameters={"partition": "gpu"})
    assert list(ENGINES) == list(choices.EngineName)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "sluurm"}, "no engine 'sluurm'; did you mean 'slurm'?"),
        ({"engine": "ray", "timeout": 5}, "--timeout is for --engine local; leave it out"),
        ({"minutes": 5}, "--minutes is for --engine slurm; leave it out"),
        ({"timeout": float("nan")}, "--timeout nan: it is a number from 0.001 to 31622400"),
        ({"timeout": "2h"}, "--timeout 2h: it is a number from"),
        ({"engine": "slurm", "minutes": 0}, "--minutes 0: it is a number from 1 to 527040"),
        ({"rerun": "fialed"}, "no --rerun 'fialed'; did you mean 'failed'?"),
    ],
)
def test_mistakes_of_a_sweep(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(invbench.UserError, match=re.escape(message)):
        invbench.sweep("smoke", tier="small", out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_new_engine_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        """Runs in this process."""

        def run(self, configs: Sequence[RunConfig], options: Options, monitor: SweepMonitor) -> None:
            for config in configs:
                run_one(config, options)

    monkeypatch.setitem(ENGINES, "here", Here)
    file = tmp_path / "small.yaml"
    file.write_text(SMALL_SWEEP, "utf-8")
    runs = invbench.sweep(file, out=tmp_path / "runs", engine="here")
    assert sorted(runs["seed"]) == [0, 1]
    assert set(runs["status"]) == {"done"}
    with pytest.raises(invbench.UserError, match="--workers is for --engine local"):
        invbench.sweep(file, out=tmp_path / "runs", engine="here", workers=1)


def test_an_engine_need_not_know_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    """The command passes an engine only the options that were given."""
    monkeypatch.setitem(ENGINES, "local", lambda: LocalEngine([]))
    file = tmp_path / "small.yaml"
    file.write_text(SMALL_SWEEP, "utf-8")
    command = ("sweep", str(file), "--out", str(tmp_path / "runs"), "--dry-run")
    assert bench(*command)[0] == 0
    status, _, error = bench(*command, "--threads", "2")
    assert status == 2
    assert "--threads is for --engine ray or slurm" in error


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("table --select", choices.Select),
        ("plot curves --select", choices.Select),
        ("table --format", choices.Format),
        ("compare a b --format", choices.Format),
        ("sweep smoke --engine", choices.EngineName),
        ("sweep smoke --rerun", choices.Rerun),
    ],
)
def test_commands_list_choices_and_refuse_others(
    command: str, names: type[choices.Choice], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    verb, option = command.split()[0], command.split()[-1]
    assert f"[{'|'.join(names)}]" in bench(verb, "--help")[1]
    status, _, said = bench(*command.split(), "other")
    assert (status, said.count("\n")) == (2, 1), option
    assert f"'other'; known: {', '.join(sorted(names))}" in said


def test_seeds_of_numpy_are_seeds(tmp_path: Path) -> None:
    one = invbench.run("erm", "spirals", seed=np.int64(3), settings=TWO_STEPS, out=tmp_path)
    assert one.spec == invbench.run("erm", "spirals", seed=3, settings=TWO_STEPS, out=tmp_path).spec
    some = invbench.run("erm", "spirals", seeds=np.arange(2), settings=TWO_STEPS, out=tmp_path)
    assert [record.spec.seed for record in some] == [0, 1]
    for wrong in ([], b"01", itertools.count()):
        with pytest.raises(UserError, match="give 1 to"):
            invbench.run("erm", "spirals", seeds=wrong, settings=TWO_STEPS, out=tmp_path)
