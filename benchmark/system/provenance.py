"""Provenance of a result: machine, packages and code, recorded beside it."""

import functools
import hashlib
import inspect
import os
import platform
import re
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "invbench",
    "torch",
    "torchvision",
    "timm",
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


def describe(device: "torch.device") -> dict[str, Any]:
    """Return the packages, hardware and settings that may change a number or its cost."""
    import torch  # tables of results need this module, and not torch

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "threads_wait": os.environ.get("OMP_WAIT_POLICY", "").lower(),
        "packages": {name: number for name in PACKAGES if (number := _version(name))},
        "device": device.type,
        # Some GPU kernels, grid_sample's gradient among them, add in no fixed order.
        "deterministic": device.type == "cpu",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver_version(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return facts


def code_version(*classes: type) -> dict[str, Any]:
    """Return the package's version, the hash of the sources behind a run and, in a checkout, the git commit.

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
    """Return the sha256 of the package's modules and the files of third parties' classes, shortened to 16 digits.

    A record that was made from other sources is stale.
    """
    paths: dict[str, Path] = {}  # by import path: the same for a plain and an editable install
    for package in ("invbench", "invbench.configs", "invbench.datasets", "invbench.methods"):
        folder = Path(next(iter(import_module(package).__path__)))
        parts = [path for path in folder.rglob("*") if path.suffix in (".py", ".png")]  # some data are pictures
        paths |= {".".join((package, *path.relative_to(folder).parts)): path for path in parts}
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        digest.update(name.encode() + path.read_bytes())
    for cls in classes:
        if not cls.__module__.startswith("invbench."):
            digest.update(_source_of(cls))
    return digest.hexdigest()[:16]


def _source_of(cls: type) -> bytes:
    """Read the file of a class, or its source where it was typed into a notebook; empty where neither can be had."""
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


def _driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None where Linux does not tell it."""
    path = Path("/proc/driver/nvidia/version")
    if not path.is_file():
        return None
    match = re.search(r"Module.*?\s([0-9]+(?:\.[0-9]+)+)\s", path.read_text())
    return match[1] if match else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
