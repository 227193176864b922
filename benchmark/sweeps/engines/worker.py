"""One run in a process of its own, whatever the engine: carried out, or a word on why not."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invbench.errors import CannotFuse, Interrupted, RunFailed, RunHeld, UserError
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig, from_spec
from invbench.runs.spec import RunSpec
from invbench.sweeps.jobs import Job, Outcome, again, later, parted
from invbench.sweeps.monitor import SweepMonitor
from invbench.training.attempt import kind_of
from invbench.training.runner import run_one, run_together

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

UNGUARDED = "unguarded"
"""Kind of the failure of a process that imports a script in which a sweep begins."""
PARENT_SECONDS = 1.0
"""How often a worker looks whether the sweep that started it is there."""


def mark_of_unguarded(sweep: int) -> Path:
    """Return the file by which a process tells its sweep's, which has this number, that the script begins a sweep.

    It imports the script before it is given anything that it could tell it by.
    """
    return Path(tempfile.gettempdir()) / f"invbench-{UNGUARDED}-{sweep}"


def carry_out(specs: Sequence[dict[str, Any]], options: Options) -> list[Outcome]:
    """Carry out the run of a specification, or several together, given as plain data.

    Failures are answers, not exceptions.
    """
    began = time.monotonic()
    runs = [RunSpec.model_validate(spec) for spec in specs]
    outcomes = [_alone(runs[0], options)] if len(runs) == 1 else _together(runs, options)
    return [outcome._replace(seconds=(time.monotonic() - began) / len(runs)) for outcome in outcomes]


def _alone(spec: RunSpec, options: Options) -> Outcome:
    try:
        return _outcome(run_one(from_spec(spec), options))
    except (KeyboardInterrupt, Interrupted, RunFailed, UserError) as stopped:
        return _outcome(stopped)
    except Exception as error:
        return Outcome("failed", kind_of(error), f"{type(error).__name__}: {error}")


def _together(specs: Sequence[RunSpec], options: Options) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    rest = Outcome("apart")
    try:
        configs = [from_spec(spec) for spec in specs]
        run_together(configs, options, lambda config, result: outcomes.update({config.spec.run_id: _outcome(result)}))
    except (KeyboardInterrupt, Interrupted) as stopped:
        rest = _outcome(stopped)
    except (CannotFuse, UserError) as reason:
        rest = Outcome("apart", message=str(reason))
    except Exception as error:
        rest = Outcome("apart", kind_of(error), f"{type(error).__name__}: {error}")
    return [outcomes.get(spec.run_id, rest) for spec in specs]


def _outcome(result: Record | BaseException) -> Outcome:
    """Return what a run's record, or the error that stopped it, means for the sweep."""
    if isinstance(result, Record):
        return Outcome("done")
    if isinstance(result, RunFailed):
        return Outcome("failed", result.kind, str(result))
    if isinstance(result, RunHeld):
        return Outcome("held", message=str(result))
    if isinstance(result, UserError):
        return Outcome("failed", "request", str(result))
    return Outcome("interrupted", message=str(result))


def prepare(device: str, parent: int, number: "Synchronized[int]") -> None:
    """Set up a process that will carry out runs: its GPU, and an end when its parent is gone.

    Args:
        device: the only GPU that it sees, as its `cuda:0`, by a name for `CUDA_VISIBLE_DEVICES`; empty hides all.
        parent: the process of the sweep.
        number: gets this process's own number.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_follow, args=(parent,), name="parent", daemon=True).start()
    number.value = os.getpid()


def _follow(parent: int) -> None:
    """Ask this process to keep its checkpoint and stop once its parent is gone, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    os._exit(1)


def settle_outcomes(
    job: Job, outcomes: Sequence[Outcome], configs: Mapping[str, RunConfig], out: Path, monitor: SweepMonitor
) -> list[Job]:
    """Tell the monitor how an attempt at the runs of a job ended. Returns the jobs of other attempts."""
    following = []
    apart: list[tuple[str, Outcome]] = []
    for run_id, outcome in zip(job.run_ids, outcomes, strict=True):
        if job.others and outcome.status == "failed" and outcome.kind == "killed":
            outcome = outcome._replace(status="apart")
        if outcome.status == "apart":
            apart.append((run_id, outcome))
            continue
        alone = job._replace(run_id=run_id, others=())
        again = _settle_outcome(alone, outcome, configs[run_id].spec, RunFolder(out / run_id), monitor)
        following += [again] if again else []
    if apart:
        run_ids, (_, reason) = [run_id for run_id, _ in apart], apart[0]
        monitor.parted(run_ids, reason)
        following += parted(job, run_ids, reason.kind)
    return following


def _settle_outcome(job: Job, outcome: Outcome, spec: RunSpec, folder: RunFolder, monitor: SweepMonitor) -> Job | None:
    """Tell the monitor how one run ended. Returns the job of another attempt at it, if it deserves one.

    What ends while the sweep drains was stopped, unless it is done, and a failure leaves a record.
    """
    now = time.monotonic()
    if outcome.status == "failed" and (following := again(job, outcome.kind, now)) and not monitor.draining:
        monitor.retried(job.run_id, outcome)
        return following
    if outcome.status == "failed" and outcome.kind in ("killed", "timeout") and monitor.draining:
        outcome = Outcome("interrupted", message=outcome.message)
    if outcome.status == "failed" and outcome.kind not in ("request", "disk_full"):
        _leave_failure(folder, spec, outcome)
    monitor.ended(job.run_id, outcome)
    # A node that is taken away interrupts its runs: they go on elsewhere.
    return later(job, now) if outcome.status in ("held", "interrupted") else None


def _leave_failure(folder: RunFolder, spec: RunSpec, outcome: Outcome) -> None:
    """Write the record of a run whose process could not; one that it has written stays."""
    with suppress(OSError, UserError, RunFailed, Interrupted):
        folder.create(spec)
        with folder.hold() as held:
            if held.read_record() is None:
                held.set_aside()  # what is there cannot be understood
                held.write_record(Record.of_failure(spec, outcome.kind, outcome.message))
