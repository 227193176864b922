"""Who works on a run: one process at a time, on one machine or on several that share the folder.

A claim is a file that only one process can create. Its holder writes it anew every few seconds, with the step that it
has reached. It is given up when the run ends; a killed holder cannot do that, so others must find out:

- on the same machine at once: the process is gone, or its number belongs to a younger process;
- on another machine by waiting: a holder whose file has not changed for a while is dead.

No clock of another machine is trusted, and none that can be set: what counts is whether the file changes while one
looks.

A holder that was only asleep finds the claim in other hands, and stops without writing: it replaces files of the run
inside `Lease.writing` only, which looks at the claim again. Whoever takes a run over holds the same lock meanwhile, so
no moment is left between the look and the write. The lock dies with its process; its file goes with the claim.
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
"""A claim on another machine that is this old is looked at more closely."""
WATCH_SECONDS = 10.0
"""How long a closer look takes."""
LOCK = ".claim.lock"
"""Beside the claim: held while a file of the run is replaced, or the run taken over."""
MOST_PID = 2**31 - 1
MOST_BYTES = 2**16
"""A claim's file with more bytes is not read."""


class Owner(BaseModel):
    """Content of a claim."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    host: str
    machine: str
    """Where the process number means something: this boot of this machine, or of this container."""
    pid: int = Field(ge=1, le=MOST_PID)
    born: float
    """When the process began, so that another one with the same number is not taken for it; see `_birth`."""
    token: str
    """This claim and no other."""
    generation: int = Field(default=1, ge=1)
    """How many processes have held the run, this one included, each taking it over from the one before."""
    step: int = 0
    total: int = 0

    @classmethod
    def this_process(cls) -> "Owner":
        """A new claim of this process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=_birth(os.getpid()),
            token=uuid.uuid4().hex,
        )

    @property
    def near(self) -> bool:
        """Whether it is on this machine, so that one can see whether it lives."""
        return self.machine == _machine()

    @property
    def gone(self) -> bool:
        """Whether it is certain that nobody holds this claim any more."""
        return self.near and not self.lives

    @property
    def lives(self) -> bool:
        """Of a near one: whether the process is there, and no mere remains of it."""
        try:
            return abs(_birth(self.pid) - self.born) < 1 and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return False
        except psutil.AccessDenied:
            return True


class Seen(NamedTuple):
    """A claim as it was found: who holds it, None where that cannot be read, and a mark that changes with the file."""

    holder: Owner | None
    mark: tuple[bytes, int]
    age: float
    """Seconds since it was last written, by this machine's clock; not to be trusted."""


class Lease:
    """A run in this process's hands."""

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
        """Look whether the run is still this process's. Raises Interrupted where it is not."""
        seen = read_lease(self.path)
        self.lost = seen is None or seen.holder is None or seen.holder.token != self.holder.token
        self.check()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Replace a file of the run inside this block: nobody can take the run over meanwhile.

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
        """Show that the holder lives, and how far it is."""
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
        """Beat until the run ends or is lost."""
        while not self.ended.wait(HEARTBEAT_SECONDS) and not self.lost:
            self.beat()

    def give_up(self) -> None:
        """Let others have the run."""
        with suppress(Interrupted, OSError), self.writing():  # what stays is the claim of a process that is gone
            self.path.with_name(LOCK).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


@contextmanager
def claimed(path: Path) -> Iterator[Lease]:
    """Hold a claim for this process.

    Raises:
        RunHeld: another process has it, and lives as far as one can tell.
        OSError: the folder cannot be written to.
    """
    holder = Owner.this_process()
    claim = Lease(path, holder if _create(path, holder) else _take_over(path, holder))
    try:
        with _locked(path, SILENT_SECONDS):  # its file is made now: later there may be no room for it
            pass
    except OSError:
        path.unlink(missing_ok=True)
        raise
    heart = threading.Thread(target=claim.keep_alive, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield claim
    finally:
        claim.ended.set()
        heart.join()
        claim.give_up()


@contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock beside a claim; where the file system knows no locks, nothing but the claim itself is held.

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


def read_lease(path: Path) -> Seen | None:
    """The claim that is there now, or None."""
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
    return Seen(holder, (content, changed), time.time() - changed / 1e9)


def held(path: Path) -> bool:
    """Whether somebody holds the claim, at a glance: a far holder counts as alive while its file is young."""
    seen = read_lease(path)
    if seen is None:
        return False
    if seen.holder is not None and seen.holder.near:
        return seen.holder.lives
    return abs(seen.age) < SILENT_SECONDS


def _create(path: Path, holder: Owner) -> bool:
    """Whether this process made the claim, which appears with its content where links are known; False where one is."""
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
    except BaseException:  # Ctrl-C too: a claim without content keeps others away for a minute
        path.unlink(missing_ok=True)
        raise
    return True


def _take_over(path: Path, holder: Owner) -> Owner:
    """Put our claim in the place of a dead one. Raises RunHeld where it lives or where others are quicker."""
    dead = _dead(path)
    if dead is None:  # given up in this moment
        if not _create(path, holder):
            raise _held_by(path, read_lease(path))
        return holder
    if dead.holder is not None:
        holder = holder.model_copy(update={"generation": dead.holder.generation + 1})
    try:
        with _locked(path, 0):
            now = read_lease(path)
            if now is None or now.mark != dead.mark:
                raise _held_by(path, now)
            with _beside(path, holder) as temporary:
                temporary.replace(path)
    except Timeout:  # others take it over, or the holder is alive after all and writes
        raise _held_by(path, dead) from None
    return holder


@contextmanager
def _beside(path: Path, holder: Owner) -> Iterator[Path]:
    """A file with a claim's content, which is to take the claim's place."""
    temporary = path.with_name(f".{path.name}.{holder.token}")
    try:
        temporary.write_text(holder.model_dump_json(), encoding="utf-8")
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _dead(path: Path) -> Seen | None:
    """The claim, if its holder is dead; None where it has just been given up. Raises RunHeld where it lives."""
    seen = read_lease(path)
    if seen is None or (seen.holder is not None and seen.holder.gone):
        return seen
    if (seen.holder is not None and seen.holder.near) or abs(seen.age) < SILENT_SECONDS:
        raise _held_by(path, seen)
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        time.sleep(min(HEARTBEAT_SECONDS, WATCH_SECONDS) / 4)
        now = read_lease(path)
        if now is None or now.mark != seen.mark:
            raise _held_by(path, now)
    return seen


def _held_by(path: Path, seen: Seen | None) -> RunHeld:
    holder = seen.holder if seen else None
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return RunHeld(f"run {path.parent.name} is being worked on by {who}; wait for it or stop it")


def _birth(pid: int) -> float:
    """When a process began: on Linux in the kernel's ticks since it started, which no setting of a clock moves."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return float(content.rpartition(")")[2].split()[19])  # the name in parentheses may have spaces


@cache
def _machine() -> str:
    """This boot of this machine and, in a container, its own numbering of processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
