"""Runs on an accelerator: no operation mixes devices, no step copies from the host or waits, the numbers are the CPU's.

Every method runs on a pretend device (helpers/pretend_device.py), and on a GPU where there is one: some on data of each
kind, the others on one dataset.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import EVERYWHERE, KINDS, one_of_each_kind, possible_cells
from torch.utils import backend_registration

from invbench.core.registry import METHODS

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
AT_EPOCH, COPIES = "in copy_from_host", 2
"""Function that copies the order of an epoch ahead of its first step, and the number of its tensors."""
WAITING = ("point_resnet.py", "_linalg_eigh")
"""Networks that wait in every forward pass, and what a method waits for in a step; docs/gpu.md gives the reasons."""
DIFFERENCE, DIFFERENCE_OF = 1e-9, {"adareg": 1e-4, "pgrad": 1e-7}
"""Largest difference of parameters from the CPU's in float64. Layouts of convolutions differ, hence rounding does, and
adareg's strengths, which its first steps raise by orders of magnitude, enlarge it, as do pgrad's directions of small
eigenvalues."""
CROPPED = (("erm", "cifar10"),)
"""Cells whose images are cropped and mirrored at random."""
DATASETS: dict[str, list[str]] = {
    method: one_of_each_kind(
        [dataset for name, dataset in possible_cells() if name == method and (name, dataset) not in CROPPED],
        (*KINDS, "nuisance") if method in EVERYWHERE else (),
    )
    for method in METHODS.entries()
}
for _method, _dataset in CROPPED:
    DATASETS[_method].append(_dataset)
NO_PRETENDING = not hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
pretending = pytest.mark.skipif(NO_PRETENDING, reason="this torch cannot have a device that is written in Python")
DEVICES = [
    pytest.param("pretend", marks=pretending),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")),
]
TOGETHER = [list(DATASETS)[start : start + 6] for start in range(0, len(DATASETS), 6)]
"""Methods that one process trains, which imports torch once for all of them."""
pytestmark = pytest.mark.usefixtures("standins")


def results(device: str, cells: list[str]) -> list[dict[str, Any]]:
    """Train cells, alone and together, on the device and on the CPU, in another process."""
    command = [sys.executable, "accelerator_cells.py", device, *cells]
    done = subprocess.run(command, cwd=HELPERS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(device: str, result: dict[str, Any]) -> None:
    """Check what a cell has counted, and how far it is from the CPU; a GPU draws other random numbers."""
    cell = result["cell"]
    assert "error" not in result, (cell, result["error"])
    if "refused" in result or "cannot_fuse" in result:
        return
    waits = [where for where in result["waits"] if not any(name in where for name in WAITING)]
    copies = [where for where in result["copies"] if not where.endswith(AT_EPOCH)]
    assert not waits + copies, (cell, waits, copies)
    orders = sum(count for where, count in result["copies"].items() if where.endswith(AT_EPOCH))
    assert orders <= COPIES * result["epochs"], (cell, orders, result["epochs"])
    assert result.get("difference_of_resumed", 0) == 0, cell
    if device == "pretend" or cell.endswith("together"):
        largest = DIFFERENCE_OF.get(cell.partition("/")[0], DIFFERENCE)
        assert result["difference"] < largest, (cell, result["difference"])
        assert result.get("difference_of_metrics", 0) < 1e-6, (cell, result["difference_of_metrics"])


@pytest.mark.parametrize("device", DEVICES)
def test_a_cell_on_an_accelerator(device: str) -> None:
    lines = results(device, ["irmv1/spirals"])
    assert [result["cell"].split()[1] for result in lines] == ["joint", "loop", "vmap", "together"]
    assert not any({"refused", "cannot_fuse"} & set(result) for result in lines)
    for result in lines:
        check(device, result)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("methods", TOGETHER, ids=" ".join)
def test_every_cell_on_an_accelerator(device: str, methods: list[str]) -> None:
    lines = results(device, [f"{method}/{dataset}" for method in methods for dataset in DATASETS[method]])
    counts = Counter(result["cell"].partition("/")[0] for result in lines)
    for method in methods:
        # The first dataset is trained alone by each strategy.
        assert counts[method] - 2 * len(DATASETS[method]) in (2, 3), method
    for result in lines:
        check(device, result)


@pretending
def test_the_pretend_device_refuses_and_counts_what_a_gpu_does() -> None:
    done = subprocess.run(
        [sys.executable, "pretend_device.py"], cwd=HELPERS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
