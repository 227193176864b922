"""Devices: what counts as out of memory, and that nothing falls back to another device in silence."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from invbench.errors import UserError
from invbench.runs.lease import hold_lease, read_lease
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.sweeps.engines import make_engine
from invbench.sweeps.engines.local import LocalEngine, LocalResources
from invbench.sweeps.engines.scheduler import Slot
from invbench.sweeps.monitor import SweepMonitor
from invbench.system.device import set_numerics
from invbench.system.signals import StopRequest
from invbench.training.attempt import kind_of
from invbench.training.progress import Report

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "oom"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom"),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "oom"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "oom"),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "oom"),
        ("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory", "oom"),
        ("CUDA error: device-side assert triggered", "error"),
        ("CUDA error: an illegal memory access was encountered", "error"),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "error"),
    ],
)
def test_out_of_memory_in_the_words_of_torch(text: str, kind: str) -> None:
    assert kind_of(RuntimeError(text)) == kind
    assert kind_of(ValueError(text)) == "error", "only torch says it so"


def test_out_of_memory_of_the_allocator() -> None:
    assert kind_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) == "oom"
    assert kind_of(MemoryError()) == "oom"


@NO_GPU
def test_a_slot_of_a_gpu_does_not_train_on_the_cpu(tmp_path: Path) -> None:
    """The variable names a GPU that is not there: no record, and an error that says so."""
    config = resolve("erm", "chain_sem", 0, {"trainer.steps": 20, "dataset.examples": 40})
    with SweepMonitor({config.spec.run_id: config.title}, StopRequest(), quiet=True) as monitor:
        LocalEngine([Slot(0, "0")]).run([config], Options(out=tmp_path), monitor)
    outcome = monitor.outcomes[config.spec.run_id]
    assert (outcome.status, outcome.kind) == ("failed", "request")
    assert "no GPU is visible" in outcome.message
    assert not list(tmp_path.glob("*/record.json"))


@NO_GPU
def test_devices_of_a_sweep() -> None:
    assert [slot.device for slot in LocalResources(workers=2).slots()] == ["cpu", "cpu"]
    assert {slot.device for slot in LocalResources(device="cpu").slots()} == {"cpu"}
    for resources in (LocalResources(device="cuda"), LocalResources(gpus="0"), LocalResources(gpus="")):
        with pytest.raises(UserError, match="no GPU is visible"):
            resources.slots()
    for resources in (LocalResources(device="cuda", workers=2), LocalResources(gpus="", device="cpu")):
        with pytest.raises(UserError, match="give one"):
            resources.slots()


@pytest.fixture
def flags() -> Iterator[None]:
    """Put torch's flags for GPUs back at the end of a test."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_what_the_setting_says(tf32: bool) -> None:
    """The flags are there without a GPU, too; a run on the CPU leaves them alone."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not tf32
    torch.backends.cudnn.deterministic = False
    set_numerics(torch.device("cpu"), tf32)
    assert torch.backends.cudnn.allow_tf32 is not tf32
    set_numerics(torch.device("cuda", 0), tf32)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.deterministic


def test_devices_that_contradict_the_engine() -> None:
    for engine in ("ray", "slurm"):
        with pytest.raises(UserError, match="contradict"):
            make_engine(engine, device="cpu", gpus_per_run=1)
    with pytest.raises(UserError, match="--device mps: it is one of auto, cpu, cuda"):
        make_engine("local", device="mps")


def test_the_first_step_is_in_the_lease_at_once(tmp_path: Path) -> None:
    with hold_lease(tmp_path / "claim.json") as lease, Report("", 10, tmp_path / "log.txt", True, lease) as report:
        for step, expected in ((1, 1), (2, 1)):  # later ones come with the next heartbeat
            report.step(step)
            seen = read_lease(tmp_path / "claim.json")
            assert seen is not None
            assert seen.holder is not None
            assert (seen.holder.step, seen.holder.total) == (expected, 10)
