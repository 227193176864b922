"""Ray and Slurm, both real: the same sweep gives the same numbers wherever it is carried out, and survives there."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Bench
from faulty import Place
from slurm_cluster import slurm_cluster, why_not

from invbench.records import run_folders

NO_RAY = "" if find_spec("ray") else "the extra ray is not installed"
NO_SLURM = why_not() if find_spec("submitit") else "the extra slurm is not installed"
FAULTS = ["none", "kill_once", "raise"]
WHERE = [
    pytest.param(
        ("--engine", "ray", "--address", "local"),
        marks=[pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(bool(NO_RAY), reason=NO_RAY)],
    ),
    pytest.param(
        ("--engine", "slurm"),
        marks=[pytest.mark.slow, pytest.mark.slurm, pytest.mark.skipif(bool(NO_SLURM), reason=NO_SLURM)],
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Slurm's environment."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.mark.parametrize("where", WHERE)
def test_the_same_numbers_as_on_this_machine(
    where: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also where a process is killed; a failure is the same failure."""
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    file = here.file(FAULTS, steps=10, seeds="0-1")
    here.run(file)
    if "slurm" in where:
        there.environment["SLURM_CONF"] = request.getfixturevalue("cluster")["SLURM_CONF"]
    status, said = there.run(file, *where)
    assert status == 1, said
    assert there.kinds() == here.kinds() == {
        "none": ["done"] * 2, "kill_once": ["done"] * 2, "raise": ["error"] * 2,
    }  # fmt: skip
    assert said.count("  killed: ") == 1
    assert there.metrics() == here.metrics()
    assert "4 of 6 runs done, 2 failed (--rerun failed)" in said
    before = {folder.record: folder.record.stat().st_mtime_ns for folder in run_folders(there.out)}
    assert there.run(file, *where)[0] == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing is done twice"


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(
    engine: str, module: str, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    status, _, said = bench("sweep", "smoke", "--tier", "small", "--engine", engine, "--out", str(tmp_path / "out"))
    assert status == 2
    assert f"pip install 'invbench[{engine}]'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "sluurm"], "did you mean 'slurm'"),
        (["--engine", "ray", "--workers", "2"], "are for --engine local"),
        (["--engine", "slurm", "--gpus-per-run", "0.5"], "Slurm gives whole GPUs"),
        (["--engine", "slurm", "--slurm", "gpu"], "write KEY=VALUE"),
    ],
)
def test_mistakes(arguments: list[str], message: str, bench: Bench) -> None:
    status, _, said = bench("sweep", "smoke", *arguments)
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
