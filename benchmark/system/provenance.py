"""What a run ran on and with: recorded beside every result."""

import functools
import hashlib
import inspect
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from invbench.errors import UserError
from invbench.system.memory import give_back_freed_memory

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
PACKAGES = (
    "invbench",
    "torch",
    "torchvision",
    "e2cnn",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
)
ROOT = Path(__file__).parent.parent


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:i` as a device. Raises UserError for one that is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not one of auto, cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            seen = f"only {count} GPUs are visible" if count else "no GPU is visible"
            raise UserError(f"--device {name}: {seen} to this process; use --device cpu or auto")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise UserError(f"--device {name} is not supported; use auto, cpu or cuda[:i]")
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """Packages, hardware and settings that may change a number or its cost."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "threads_wait": os.environ.get("OMP_WAIT_POLICY", "").lower(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": device.type,
        # Some GPU kernels, grid_sample's gradient among them, add in no fixed order.
        "deterministic": device.type == "cpu",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
    return facts


def code_version(*classes: type) -> dict[str, Any]:
    """The package's version, the hash of the sources behind a run and, in a checkout, the git commit.

    Args:
        classes: the run's method, dataset and backbone, which may be third parties'.
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "version": _version("invbench"),
        "sources": sources_hash(*classes),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain")) if commit else None,
    }


@functools.cache  # once per process: what was imported stays, whatever happens to the files meanwhile
def sources_hash(*classes: type) -> str:
    """sha256 over the package's modules and the files of third parties' classes: other sources make a record stale."""
    own: dict[str, Path] = {}  # by import path: the same for a plain and an editable install
    for package in ("invbench", "invbench.configs", "invbench.datasets", "invbench.methods"):
        folder = Path(next(iter(import_module(package).__path__)))
        parts = [path for path in folder.rglob("*") if path.suffix in (".py", ".png")]  # some data are pictures
        own |= {".".join((package, *path.relative_to(folder).parts)): path for path in parts}
    digest = hashlib.sha256()
    for name, path in sorted(own.items()):
        digest.update(name.encode() + path.read_bytes())
    for cls in classes:
        if not cls.__module__.startswith("invbench."):
            digest.update(_source_of(cls))
    return digest.hexdigest()[:16]


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has done its part."""
    began = time.perf_counter()
    step()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Until the device has done its part."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on: a worker's earlier runs are none of this one's business."""
    give_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not on Linux, or not allowed
        CLEAR.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use at once since `forget_peak_memory`: of the GPU's allocator, or resident in this process.

    On other systems than Linux the latter is since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _source_of(cls: type) -> bytes:
    """The file of a class, or its own source where it was typed into a notebook; nothing where neither can be had."""
    try:
        return Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(cls).encode()
    except (OSError, TypeError):
        return b""


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
