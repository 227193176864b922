"""Devices: choice, timing and peak memory."""

import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from invbench.errors import UserError
from invbench.system.workarounds import give_back_freed_memory

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"
)
"""Texts of plain RuntimeErrors by which torch says that memory ran out: on a CPU, of CUDA, cuBLAS and cuDNN."""
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:i` into a device. Raises UserError for one that is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name or repr(name)} is not one of auto, cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            seen = f"only {count} GPUs are visible" if count else "no GPU is visible"
            raise UserError(f"--device {name}: {seen} to this process; use --device cpu or auto")
        return torch.device("cuda", index)
    if device.type != "cpu" or device.index:
        raise UserError(f"--device {name} is not supported; use auto, cpu or cuda[:i]")
    return device


def set_numerics(device: torch.device, tf32: bool) -> None:
    """Set how a GPU computes: by deterministic kernels of cuDNN, and in full float32 unless TF32 is asked for.

    By default torch rounds to TF32 in convolutions, which moves a result by about 1e-3 of its size.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of one call, until the device has finished."""
    began = time.perf_counter()
    step()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Reset what `peak_memory` measures, and give back what earlier runs of the process have freed."""
    give_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not on Linux, or not allowed
        CLEAR.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the peak of bytes in use since `forget_peak_memory`: of the GPU's allocator, or resident in this process.

    On other systems than Linux the resident peak is since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        match = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
