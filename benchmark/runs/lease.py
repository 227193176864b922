"""Leases of runs: one process at a time works on a run, on one machine or on several that share the folder.

A lease is a file that only one process can create. Its holder rewrites it every few seconds, with the step that it
has reached. It is released when the run ends; a killed holder cannot do that, so others must find out:

- on the same machine at once: the process is gone, or its number belongs to a younger process;
- on another machine by waiting: a holder whose file has not changed for a while is dead.

No clock of another machine is trusted, and none that can be set: what counts is whether the file changes while one
looks.

A holder that was only asleep finds that another process has the lease, and stops without writing: it replaces files of
the run inside `Lease.writing` only, which checks the lease again. A process that takes a run over holds the same lock
meanwhile, so nothing can happen between check and write. The lock dies with its process; its file is removed with the
lease.
"""

import errno
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from invbench.errors import Interrupted, RunHeld

HEARTBEAT_SECONDS = 2.0
SILENT_SECONDS = 60.0
"""Age of another machine's lease, in seconds, from which it is watched for changes."""
WATCH_SECONDS = 10.0
"""Seconds for which an old lease is watched."""
LOCK = ".claim.lock"
"""Name of the lock file beside the lease, held while a file of the run is replaced or the run taken over."""
MOST_PID = 2**31 - 1
MOST_BYTES = 2**16
"""Maximum number of bytes that are read of a lease's file."""


class Owner(BaseModel):
    """Holder of a lease: the content of its file."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    host: str
    machine: str
    """Boot of a machine or a container, within which the process number is unique."""
    pid: int = Field(ge=1, le=MOST_PID)
    born: float
    """Start time of the process, which tells it from another one with the same number; see `_birth`."""
    token: str
    """Random identifier of this lease."""
    generation: int = Field(default=1, ge=1)
    """Number of processes that have held the run, this one included, each taking it over from the one before."""
    step: int = 0
    total: int = 0

    @classmethod
    def this_process(cls) -> "Owner":
        """Make the content of a new lease of this process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=_birth(os.getpid()),
            token=uuid.uuid4().hex,
        )

    @property
    def near(self) -> bool:
        """Whether the process is on this machine, so that one can see whether it lives."""
        return self.machine == _machine()

    @property
    def gone(self) -> bool:
        """Whether it is certain that nobody holds this lease any more."""
        return self.near and not self.lives

    @property
    def lives(self) -> bool:
        """Whether a process on this machine runs, and is no zombie."""
        try:
            return abs(_birth(self.pid) - self.born) < 1 and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return False
        except psutil.AccessDenied:
            return True


class LeaseFile(NamedTuple):
    """Lease file as it was read: its holder, None where that cannot be read, and a mark that changes with the file."""

    holder: Owner | None
    mark: tuple[bytes, int]
    age: float
    """Seconds since the file was last written, by this machine's clock; not to be trusted."""


class Lease:
    """Lease of a run that this process holds."""

    def __init__(self, path: Path, holder: Owner) -> None:
        self.path, self.holder = path, holder
        self.step = self.total = 0
        self.ended = threading.Event()
        self.lost = False
        self.threads = threading.Lock()  # the heart and the run itself

    def check(self) -> None:
        """Raise Interrupted once another process is known to have taken the run over."""
        if self.lost:
            raise Interrupted("another process has taken over this run, which was silent for too long")

    def confirm(self) -> None:
        """Read the lease file again. Raises Interrupted where another process has the run."""
        current = read_lease(self.path)
        self.lost = current is None or current.holder is None or current.holder.token != self.holder.token
        self.check()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guard a block that replaces a file of the run: no other process can take the run over meanwhile.

        Raises:
            Interrupted: another process has taken it over, and the block is not entered.
        """
        with self.threads:
            self.confirm()  # first without the lock, whose file may have gone with the folder
            try:
                with _locked(self.path, SILENT_SECONDS):
                    self.confirm()
                    yield
            except Timeout:
                raise Interrupted("another process has been about to take over this run for too long") from None

    def beat(self) -> None:
        """Rewrite the lease file, with the step that the run has reached."""
        holder = self.holder.model_copy(update={"step": self.step, "total": self.total})
        with suppress(Interrupted):
            try:
                with _beside(self.path, holder) as temporary, self.writing():
                    temporary.replace(self.path)
            except OSError:  # a full disk: the file's time changes all the same
                self.confirm()
                with suppress(OSError):
                    os.utime(self.path)

    def keep_alive(self) -> None:
        """Rewrite the lease file at intervals until the run ends or is lost."""
        while not self.ended.wait(HEARTBEAT_SECONDS) and not self.lost:
            self.beat()

    def give_up(self) -> None:
        """Remove the lease file, so that other processes may take the run."""
        with suppress(Interrupted, OSError), self.writing():  # what stays is the lease of a process that is gone
            self.path.with_name(LOCK).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


@contextmanager
def hold_lease(path: Path) -> Iterator[Lease]:
    """Hold a lease for this process.

    Raises:
        RunHeld: another process has it, and lives as far as one can tell.
        OSError: the folder cannot be written to.
    """
    holder = Owner.this_process()
    lease = Lease(path, holder if _create(path, holder) else _take_over(path, holder))
    try:
        with _locked(path, SILENT_SECONDS):  # its file is made now: later there may be no room for it
            pass
    except OSError:
        path.unlink(missing_ok=True)
        raise
    heart = threading.Thread(target=lease.keep_alive, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        lease.ended.set()
        heart.join()
        lease.give_up()


@contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock beside a lease; where the file system knows no locks, only the lease itself is held.

    Raises:
        Timeout: another process has it.
        OSError: its file cannot be made.
    """
    lock = FileLock(path.with_name(LOCK), timeout=timeout)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    try:
        yield
    finally:
        lock.release()


def read_lease(path: Path) -> LeaseFile | None:
    """Read the lease file; None where there is none."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            content = file.read(MOST_BYTES)
        changed = path.stat().st_mtime_ns
    except OSError:
        return None
    try:
        holder = Owner.model_validate_json(content)
    except ValidationError:
        holder = None
    return LeaseFile(holder, (content, changed), time.time() - changed / 1e9)


def is_held(path: Path) -> bool:
    """Tell, without waiting, whether a process holds the lease; on another machine, while its file is young."""
    current = read_lease(path)
    if current is None:
        return False
    if current.holder is not None and current.holder.near:
        return current.holder.lives
    return abs(current.age) < SILENT_SECONDS


def _create(path: Path, holder: Owner) -> bool:
    """Create the lease file, with its content at once where hard links are known. Returns False where one exists."""
    try:
        with _beside(path, holder) as temporary:
            os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(holder.model_dump_json())
    except BaseException:  # Ctrl-C too: a lease without content keeps others away for a minute
        path.unlink(missing_ok=True)
        raise
    return True


def _take_over(path: Path, holder: Owner) -> Owner:
    """Replace a dead lease by this process's. Raises RunHeld where its holder lives or another process is quicker."""
    dead = _dead(path)
    if dead is None:  # given up in this moment
        if not _create(path, holder):
            raise _held_by(path, read_lease(path))
        return holder
    if dead.holder is not None:
        holder = holder.model_copy(update={"generation": dead.holder.generation + 1})
    try:
        with _locked(path, 0):
            current = read_lease(path)
            if current is None or current.mark != dead.mark:
                raise _held_by(path, current)
            with _beside(path, holder) as temporary:
                temporary.replace(path)
    except Timeout:  # others take it over, or the holder is alive after all and writes
        raise _held_by(path, dead) from None
    return holder


@contextmanager
def _beside(path: Path, holder: Owner) -> Iterator[Path]:
    """Write a temporary file with a lease's content, which is to replace the lease."""
    temporary = path.with_name(f".{path.name}.{holder.token}")
    try:
        temporary.write_text(holder.model_dump_json(), encoding="utf-8")
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _dead(path: Path) -> LeaseFile | None:
    """Return the lease if its holder is dead; None where it has just been released. Raises RunHeld where it lives."""
    before = read_lease(path)
    if before is None or (before.holder is not None and before.holder.gone):
        return before
    if (before.holder is not None and before.holder.near) or abs(before.age) < SILENT_SECONDS:
        raise _held_by(path, before)
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        time.sleep(min(HEARTBEAT_SECONDS, WATCH_SECONDS) / 4)
        after = read_lease(path)
        if after is None or after.mark != before.mark:
            raise _held_by(path, after)
    return before


def _held_by(path: Path, current: LeaseFile | None) -> RunHeld:
    holder = current.holder if current else None
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return RunHeld(f"run {path.parent.name} is being worked on by {who}; wait for it or stop it")


def _birth(pid: int) -> float:
    """Return when a process began: on Linux in the kernel's ticks since boot, which no setting of a clock moves."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return float(content.rpartition(")")[2].split()[19])  # the name in parentheses may have spaces


@cache
def _machine() -> str:
    """Identify this boot of this machine and, in a container, its namespace of processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
