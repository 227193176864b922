"""One run in a process of its own, whatever the engine: carried out, or a word on why not."""

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch

from invbench.errors import Interrupted, RunFailed, RunHeld, UserError
from invbench.records import Record, RunFolder
from invbench.runner import Options, run_cell
from invbench.schedule import Job, again, later
from invbench.spec import RunSpec, from_spec
from invbench.watching import Watch

Status = Literal["done", "failed", "interrupted", "held"]
PARENT_SECONDS = 1.0
"""How often a worker looks whether the sweep that started it is there."""


class Outcome(NamedTuple):
    """How an attempt at a run ended."""

    status: Status
    kind: str = ""
    """Of a failure: oom, killed, timeout, diverged, input_output, disk_full, request or error."""
    message: str = ""
    seconds: float = 0.0


def carry_out(spec: dict[str, Any], options: Options) -> Outcome:
    """Carry out the run of a specification, given as plain data; failures are an answer, not an exception."""
    began = time.monotonic()
    outcome = _attempt(RunSpec.model_validate(spec), options)
    return outcome._replace(seconds=time.monotonic() - began)


def _attempt(spec: RunSpec, options: Options) -> Outcome:
    try:
        run_cell(from_spec(spec), options)
    except RunHeld as held:
        return Outcome("held", message=str(held))
    except (Interrupted, KeyboardInterrupt) as stopped:
        return Outcome("interrupted", message=str(stopped))
    except RunFailed as failure:
        return Outcome("failed", failure.kind, str(failure))
    except UserError as error:
        return Outcome("failed", "request", str(error))
    return Outcome("done")


def prepare(device: str, threads: int) -> None:
    """Set up a process that will carry out runs: its GPU, its threads, and an end when its parent is gone.

    Args:
        device: the only GPU that it sees, as its `cuda:0`, by a name for `CUDA_VISIBLE_DEVICES`; empty hides all.
        threads: for torch and the libraries below it.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(threads)
    threading.Thread(target=_follow, args=(os.getppid(),), name="parent", daemon=True).start()


def _follow(parent: int) -> None:
    """Ask this process to keep its checkpoint and stop once its parent is gone, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    os._exit(1)


def settle(job: Job, outcome: Outcome, spec: RunSpec, folder: RunFolder, watch: Watch) -> Job | None:
    """Tell the watch how an attempt ended. Returns the job for another attempt where it deserves one.

    What ends while the sweep drains was stopped, unless it is done, and a failure leaves a record.
    """
    now = time.monotonic()
    if outcome.status == "failed" and (following := again(job, outcome.kind, now)) and not watch.draining:
        watch.retried(job.run_id, outcome)
        return following
    if outcome.status == "failed" and outcome.kind in ("killed", "timeout") and watch.draining:
        outcome = Outcome("interrupted", message=outcome.message)
    if outcome.status == "failed" and outcome.kind not in ("request", "disk_full"):
        _leave_failure(folder, spec, outcome)
    watch.ended(job.run_id, outcome)
    # A node that is taken away interrupts its runs: they go on elsewhere.
    return later(job, now) if outcome.status in ("held", "interrupted") else None


def _leave_failure(folder: RunFolder, spec: RunSpec, outcome: Outcome) -> None:
    """Write the record of a run whose process could not; one that it has written stays."""
    with suppress(OSError, UserError):
        folder.create(spec)
        with folder.claimed():
            if folder.read_record() is None:
                folder.write_record(Record.of_failure(spec, outcome.kind, outcome.message))
