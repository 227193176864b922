"""Carry out runs: hold the folder, make the data, train, write the record."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch

from invbench.console import announce, somebody_looks
from invbench.core.data import Problem
from invbench.datafiles.checksums import is_regular, sha256
from invbench.errors import Interrupted, RunFailed, RunHeld, Unusable, UserError
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.commands import parse_seeds
from invbench.runs.folder import RunFolder, first_stages_of
from invbench.runs.given import named_dataset
from invbench.runs.options import RESULTS, Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.device import choose_device
from invbench.system.provenance import code_version
from invbench.system.threads import set_threads, threads_put_back
from invbench.training.attempt import Attempt, Metrics, record_unbuilt
from invbench.training.build import load_problem
from invbench.training.restored import load_run, weights_sum

WAIT_SECONDS = 0.5
"""Seconds between looks at whether another process has finished a first stage."""
Ended = Record | RunFailed | Interrupted | RunHeld | UserError
"""Record of a run, or the error that stopped it."""


@overload
def run(
    method: str,
    dataset: str | Problem,
    *,
    seed: int = 0,
    seeds: None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path = RESULTS,
    threads: int | None = None,
    progress: bool | None = None,
    loggers: Iterable[str] = (),
    checkpoint_seconds: float = 10.0,
) -> Record: ...


@overload
def run(
    method: str,
    dataset: str | Problem,
    *,
    seeds: str | Iterable[int],
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path = RESULTS,
    threads: int | None = None,
    progress: bool | None = None,
    loggers: Iterable[str] = (),
    checkpoint_seconds: float = 10.0,
) -> list[Record]: ...


def run(
    method: str,
    dataset: str | Problem,
    *,
    seed: int = 0,
    seeds: str | Iterable[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path = RESULTS,
    threads: int | None = None,
    progress: bool | None = None,
    loggers: Iterable[str] = (),
    checkpoint_seconds: float = 10.0,
) -> Record | list[Record]:
    """Train one method on one dataset and keep the record.

    The same call again returns that record. A run that failed, or that other code or other data made, is made anew.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> record = invbench.run("erm", "spirals", settings=settings)
    >>> record.status
    'done'
    >>> [record.spec.seed for record in invbench.run("erm", "spirals", seeds="0-1", settings=settings)]
    [0, 1]

    Args:
        method: a registered name, or several joined by `+`.
        dataset: a registered name; or a problem, see `Problem.from_arrays`, which is kept in the cache.
        seed: decides data, initialisation, order and noise, each by a stream of its own.
        seeds: several, such as `"0-4"` or `[0, 2, 7]`, instead of one; then the answer is a list of records.
        settings: `{"method.threshold": 0.5, "trainer.epochs": 3}`; they win over the recipe.
        device: auto, cpu, cuda or cuda:i.
        out: folder that gets a folder for each run.
        threads: number of threads of torch on the CPU; None chooses it by the size of the run.
        progress: show it on stderr, or below the cell of a notebook; None: where that is a terminal or a notebook.
        loggers: further destinations of the curves: csv, tensorboard, wandb, mlflow.
        checkpoint_seconds: time between checkpoints; 0 makes one after every step.

    Raises:
        UserError: the request cannot be met; nothing is lost and nothing half-written.
        RunFailed: a run started and failed; its record says why. Of several seeds the others are run all the same.
        Interrupted: Ctrl-C or SIGTERM, or another process has taken the run over; the same call continues it.
    """
    if seeds is not None and seed:
        raise UserError("give either seed or seeds")
    show = somebody_looks() if progress is None else progress
    options = Options(device, Path(out), checkpoint_seconds, not show, tuple(loggers), threads=threads)
    name, chosen = named_dataset(dataset, settings)
    if seeds is None:
        return run_one(resolve(method, name, seed, chosen), options)
    records, failure = run_each([resolve(method, name, one, chosen) for one in parse_seeds(seeds)], options)
    if failure:
        raise failure
    return records


def run_one(config: RunConfig, options: Options) -> Record:
    """Carry out one run, or return its record where this code has finished it already.

    A run that failed, or was made by other code or from other data, is run again; its record is kept as
    `record.previous.json`.
    """
    with threads_put_back(), _opened(config, options) as opened:
        return opened if isinstance(opened, Record) else opened.carry_out()


def run_each(configs: Sequence[RunConfig], options: Options) -> tuple[list[Record], RunFailed | None]:
    """Carry out every run, whether the ones before it failed or not.

    Returns:
        The records, those of failures among them, and what to raise where there are any.
    """
    records, failures = [], []
    for config in configs:
        try:
            records.append(run_one(config, options))
        except RunFailed as failure:
            failures.append(failure)
            record = RunFolder(options.out / config.spec.run_id).read_record()
            records += [record] if record else []
    if not failures:
        return records, None
    more = f" ({len(failures)} of {len(configs)} runs failed)" if len(configs) > 1 else ""
    return records, RunFailed(failures[0].kind, f"{failures[0]}{more}")


def run_together(configs: Sequence[RunConfig], options: Options, ended: Callable[[RunConfig, Ended], None]) -> None:
    """Train runs that differ in seed and numbers only as one; each leaves the files that it would leave alone.

    Args:
        options: with `fuse="auto"` the runs are trained together only where that is faster.
        ended: called with every run that is over, and its record or the error that stopped it.

    Raises:
        CannotFuse: the runs that have not ended should be carried out one by one.
    """
    from invbench.training.fused.compatibility import check_can_fuse
    from invbench.training.fused.payoff import check_memory  # these take a while to import

    if options.fuse == "auto":
        check_memory(configs[0], choose_device(options.device), len(configs))
    with threads_put_back(), ExitStack() as stack:
        attempts: list[Attempt] = []
        for config in configs:
            try:
                opened = stack.enter_context(_opened(config, options))
            except (RunFailed, UserError) as stopped:
                ended(config, stopped)
                continue
            if isinstance(opened, Record):
                ended(config, opened)
                continue
            attempts.append(opened)
            check_can_fuse([attempts[0].training, opened.training])  # as soon as possible: data take memory
        groups: dict[int, list[Attempt]] = {}
        for attempt in attempts:
            groups.setdefault(attempt.training.checkpoint_step, []).append(attempt)
        for group in groups.values():
            _carry_out(group, ended)


def _carry_out(attempts: Sequence[Attempt], ended: Callable[[RunConfig, Ended], None]) -> None:
    """Train runs together that continue at the same step."""
    from invbench.training.fused.loop import FusedTraining
    from invbench.training.fused.payoff import check_that_it_pays

    fused = FusedTraining([attempt.training for attempt in attempts])
    if attempts[0].options.fuse == "auto":
        check_that_it_pays(fused)
    with ExitStack() as stack:
        reports = [stack.enter_context(attempt.begin()) for attempt in attempts]

        def finish_run(number: int, result: Metrics | RunFailed | Interrupted) -> None:
            attempt, report = attempts[number], reports[number]
            if isinstance(result, Interrupted):
                ended(attempt.config, result)
                return
            try:
                if isinstance(result, RunFailed):
                    raise result
                ended(attempt.config, attempt.conclude(result, report, len(attempts)))
            except (OSError, RuntimeError, RunFailed) as error:
                ended(attempt.config, attempt.record_failure(error, report))

        fused.run(reports, finish_run)


@contextmanager
def _opened(config: RunConfig, options: Options) -> Iterator[Record | Attempt]:
    """Hold a run's folder within the block. Yields the record where the run is done, else an attempt at it.

    Raises:
        RunHeld: another process has the run.
        UserError: it cannot be run; a folder that was made for it is removed.
    """
    device = choose_device(options.device)
    if options.threads is not None:
        set_threads(options.threads)
    code = code_version(*config.classes)
    folder = RunFolder(options.out / config.spec.run_id)
    new = folder.create(config.spec)
    with folder.hold() as held:
        record = held.read_record()
        if record is not None and record.spec != config.spec:  # the record of another run was put there
            record = None
        problem = None
        try:
            done = record is not None and record.status == "done" and record.code["sources"] == code["sources"]
            if record is not None and done and not _other_weights(config, record):
                problem = _other_data(config, record)
                if problem is None and not _other_first_stage(config, record, options):
                    if not options.quiet:
                        announce(f"{config.title}  is done already: {folder.path}")
                    yield record
                    return
            yield _attempt(config, problem, held, device, code, options)
        except UserError:
            if new:
                held.discard()
            raise


def _attempt(
    config: RunConfig,
    problem: Problem | None,
    folder: RunFolder,
    device: torch.device,
    code: dict[str, Any],
    options: Options,
) -> Attempt:
    """Load the data and build the network of a run.

    Raises:
        RunFailed: code of the method, dataset or backbone raised an error; the record of the failure is written.
    """
    try:
        if first := config.first_stage:
            _carry_out_first(first, replace(options, out=first_stages_of(options.out)))
        return Attempt(config, problem or load_problem(config), folder, device, code, options)
    except (UserError, Interrupted):
        raise
    except Exception as error:
        raise record_unbuilt(config, folder, code, error) from error


def _carry_out_first(config: RunConfig, options: Options) -> None:
    """Carry out the first stage of a run, which another process may be at."""
    waiting = False
    while True:
        try:
            folder = RunFolder(options.out / config.spec.run_id)
            if _lacks_weights(folder):
                with folder.hold() as held, held.writing():
                    held.record.unlink(missing_ok=True)  # so that it is carried out again
                    held.checkpoint.unlink(missing_ok=True)
            run_one(config, options)
            return
        except RunHeld:
            if not waiting and not options.quiet:
                announce(f"waiting for {config.title}, which another process is carrying out")
            waiting = True
            time.sleep(WAIT_SECONDS)


def _lacks_weights(folder: RunFolder) -> bool:
    """Tell whether a finished run's checkpoint is gone or damaged."""
    record = folder.read_record()
    if record is None or record.status != "done":
        return False
    try:
        return Checkpoint.load(folder.checkpoint) is None
    except Unusable:
        return True


def _other_data(config: RunConfig, record: Record) -> Problem | None:
    """Load the run's data if they are not those of the record, because a file has changed; None if they are."""
    if not config.dataset.files():
        return None
    problem = load_problem(config)
    return None if problem.fingerprint == record.data["fingerprint"] else problem


def _other_first_stage(config: RunConfig, record: Record, options: Options) -> bool:
    """Tell whether a run began from another one than is there now; one of its own that is gone is made anew."""
    stage, first = config.method.second_stage, config.first_stage
    if stage is None:
        return False
    if first is None:
        path = Path(str(stage.from_run))
    else:
        out = first_stages_of(options.out)
        folder = RunFolder(out / first.spec.run_id)
        if not folder.record.exists() or _lacks_weights(folder):
            _carry_out_first(first, replace(options, out=out))
        path, begun = folder.path, folder.read_record()
        if begun is None or begun.finished < record.started:  # in whole seconds
            return False
    known: str | None = record.engine.get("first_stage", {}).get("weights_sha256")
    return weights_sum(load_run(path).model) != known


def _other_weights(config: RunConfig, record: Record) -> bool:
    """Tell whether the file of the network's first weights is here, and another than that of the record."""
    path = config.backbone.weights_file() if config.backbone else None
    if path is None or not is_regular(path):
        return False
    known: str | None = record.engine.get("weights", {}).get("sha256")
    return sha256(path) != known
