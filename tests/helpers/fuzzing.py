"""Calls of `bench`, hundreds in a minute, each in a process of its own that is held to a time and to a memory.

A server imports torch and the package once, and forks for each case. This file is the server where it is run as a
script; tests import it, start one with `Server()`, and ask `fault` whether a call ended as calls may end.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, Self

MEMORY = 6 * 2**30
"""Bytes of address space that a call may have; torch itself has about 2."""
KEPT = 2**20
"""Bytes of stdout and of stderr that a result keeps, the last ones."""
PRELOADED = (
    *("torch", "matplotlib.font_manager", "pandas", "pooch", "pyarrow.parquet", "requests"),
    *("rich.table", "scipy.stats", "sklearn.metrics", "typer.main"),
    *("invbench.cli", "invbench.reporting.contact_sheet", "invbench.reporting.page", "invbench.sweeps.execute"),
)
POLL = 0.005
"""Seconds between looks at a running call."""


class Case(NamedTuple):
    """One call of `bench`, in an empty folder of its own.

    Args:
        label: names the case in a failure.
        arguments: of `bench`.
        prepare: makes files in the folder, which is the working directory of the call.
        environment: variables besides those of `_environment`.
        seconds: longest time.
        refused: that the call succeeds would be a fault.
    """

    label: str
    arguments: list[str]
    prepare: Callable[[Path], None] | None = None
    environment: Mapping[str, str] = {}
    seconds: float = 40.0
    refused: bool = False


class Result(NamedTuple):
    """How a call ended.

    Args:
        status: as in a shell, negative for a signal.
        timed_out: it was killed at its time limit.
        peak: bytes of memory at most, with what all calls share.
    """

    status: int
    out: str
    err: str
    seconds: float
    peak: int
    timed_out: bool


def outcome(result: Result) -> str:
    """Classify how a command ended: `zero`, `ok2`, `ok1`, which are right, or what is wrong.

    `ok2` is status 2 with exactly one line `error: ...` on stderr; `ok1` is status 1 where the last line is such a one.
    """
    lines = result.err.strip("\n").split("\n")
    last = lines[-1]
    if result.timed_out:
        return "timeout"
    if result.status < 0:
        return f"signal {-result.status}"
    if "Traceback (most recent call last)" in result.out + result.err:
        return "traceback"
    if last.startswith("error: unexpected "):
        return "unexpected"
    if result.status == 2:
        return "ok2" if len(lines) == 1 and last.startswith("error: ") else "multiline"
    if result.status == 1 and last.startswith("error: "):
        return "ok1"
    return "zero" if result.status == 0 else "odd"


def fault(case: Case, result: Result) -> str:
    """Describe in one line what is wrong with how a case ended; return nothing where all is right."""
    ended = outcome(result)
    if ended in ("ok1", "ok2") or (ended == "zero" and not case.refused):
        return ""
    if ended == "zero":
        ended = "not refused"
    last = result.err.strip().rpartition("\n")[2]
    cost = f"status {result.status}, {result.seconds:.1f} s, {result.peak / 2**20:.0f} MiB"
    return f"{case.label}: {ended} ({cost}) {last[:300]!r}"


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes of the content, cut it short, or zero, repeat or leave out a block."""
    data = bytearray(content)
    first = rng.randrange(len(data) + 1)
    last = min(len(data), first + rng.randint(1, 64))
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[first:]
        case 2:
            data[first:last] = bytes(last - first)
        case 3:
            data[first:first] = data[first:last]
        case _:
            del data[first:last]
    return bytes(data)


class Server:
    """A process that has imported all that calls need, for a `with` statement."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="fuzzing-")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment(),
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait()
        self._pipe(self._process.stdout).close()
        self._scratch.cleanup()

    def run(self, case: Case) -> Result:
        """Prepare the folder of a case, call `bench` there, remove the folder."""
        with tempfile.TemporaryDirectory(dir=self._scratch.name, ignore_cleanup_errors=True) as name:
            folder = Path(name).resolve()
            if case.prepare is not None:
                case.prepare(folder)
            environment = {"HOME": str(folder), "INVBENCH_CACHE": str(folder / "cache"), **case.environment}
            order = [case.arguments, str(folder), environment, case.seconds]
            pipe = self._pipe(self._process.stdin)
            pipe.write(json.dumps(order) + "\n")
            pipe.flush()
            answer = self._pipe(self._process.stdout).readline()
        if not answer:
            raise RuntimeError(f"the server has ended with status {self._process.wait()}")
        return Result(*json.loads(answer))

    def _environment(self) -> dict[str, str]:
        """Return the environment of the server: one thread, no GPU, no data of this machine."""
        settings = {"COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return {name: os.environ[name] for name in os.environ if name != "INVBENCH_DATA"} | settings | threads

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _serve() -> None:
    """Answer orders, a line of JSON each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what an import prints is no answer
    _preload()
    for order in sys.stdin:
        arguments, folder, environment, seconds = json.loads(order)
        answers.write(json.dumps(_called(arguments, folder, environment, seconds)) + "\n")
        answers.flush()


def _preload() -> None:
    """Import what most calls need, so that they share it."""
    for name in PRELOADED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()


def _called(arguments: list[str], folder: str, environment: dict[str, str], seconds: float) -> Result:
    """Fork, wait, and kill all that is left."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        child = os.fork()
        if not child:
            _call(arguments, folder, environment, out.fileno(), err.fileno())
        timed_out = False
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            if time.monotonic() - start > seconds:
                timed_out = True
                _kill(child)
                ended = os.wait4(child, 0)
                break
            time.sleep(POLL)
        elapsed = time.monotonic() - start
        _kill(child)
        peak = ended[2].ru_maxrss * 1024
        return Result(os.waitstatus_to_exitcode(ended[1]), _tail(out), _tail(err), elapsed, peak, timed_out)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - KEPT))
    return file.read().decode(errors="replace")


def _call(arguments: list[str], folder: str, environment: dict[str, str], out: int, err: int) -> NoReturn:
    """Run `bench` in the child, as a process that a shell starts."""
    status = 113
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 256)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        encoding = environment.get("PYTHONIOENCODING", "utf-8")
        sys.stdout = os.fdopen(1, "w", closefd=False, encoding=encoding)
        sys.stderr = os.fdopen(2, "w", closefd=False, encoding=encoding, errors="backslashreplace", buffering=1)
        sys.argv = ["bench", *arguments]
        from invbench.cli import main

        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except BaseException:  # the parent reads it
        traceback.print_exc()
    finally:
        os._exit(status & 0xFF)


if __name__ == "__main__":
    _serve()
