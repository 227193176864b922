"""One run in a process of its own, whatever the engine: carried out, or a word on why not."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch

from invbench.errors import Interrupted, RunFailed, RunHeld, UserError
from invbench.records import Record, RunFolder
from invbench.runner import Options, run_cell
from invbench.spec import RunSpec, from_spec

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


def prepare(device: str | None, threads: int) -> None:
    """Set up a process that will carry out runs: its GPU, its threads, and an end when its parent is gone.

    Args:
        device: the only GPU that it sees, as its `cuda:0`, by a name for `CUDA_VISIBLE_DEVICES`; empty hides all, None
            leaves them as they are.
        threads: for torch and the libraries below it.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(threads)
    threading.Thread(target=_follow, args=(os.getppid(),), name="parent", daemon=True).start()


def _follow(parent: int) -> None:
    """Ask this process to keep its checkpoint and stop once its parent is gone, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    with suppress(OSError):
        sys.stderr.flush()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    os._exit(1)


def leave_failure(folder: RunFolder, spec: RunSpec, kind: str, message: str) -> None:
    """Write the record of a run whose process could not."""
    folder.create(spec)
    with suppress(RunHeld), folder.claimed():
        if folder.read_record() is None:
            folder.write_record(Record.of_failure(spec, kind, message))
