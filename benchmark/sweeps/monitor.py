"""What a sweep shows while it works: a table of its slots on a terminal, a line for each event in a log."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from invbench.console import REFRESH_SECONDS, NotebookView, error_console, plain_text
from invbench.console import duration as duration
from invbench.system.signals import StopRequest
from invbench.terminal import visible
from invbench.training.progress import Pace

if TYPE_CHECKING:
    from invbench.sweeps.jobs import Outcome

SHOWN_ERRORS = 3
FINAL = ("done", "failed", "interrupted")


@dataclass
class Running:
    """Run in a slot, or several that are trained together."""

    run_ids: list[str]
    step: int = 0
    total: int = 0
    pace: Pace = field(default_factory=Pace)


class SweepMonitor:
    """Monitor that counts the outcomes of the runs of a sweep and shows its progress.

    Args:
        titles: of the runs that are to be carried out, by id; more may come.
        stop: set when the sweep should end: running ones keep their checkpoint, no other begins; urgent where they
            should not.
        done: number of runs of the sweep that were done before.
        quiet: show nothing.
    """

    def __init__(self, titles: Mapping[str, str], stop: StopRequest, done: int = 0, quiet: bool = False) -> None:
        self.titles, self.stop, self.before = dict(titles), stop, done
        self.outcomes: dict[str, Outcome] = {}
        self.slots: dict[str, Running | None] = {}  # by name of the slot, in the order in which they were first used
        self.failures: list[str] = []
        self.seconds: list[float] = []  # of runs that are done
        self.full: str | None = None  # message of a full disk
        self.began = time.monotonic()
        self.console = error_console(quiet)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal and not quiet else None
        self.notebook = NotebookView() if self.console.is_jupyter and not quiet else None
        self.drawn = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.update(self.picture(), refresh=True)
            self.live.stop()
        if self.notebook:
            self.notebook.show(self.picture(), now=True)

    @property
    def draining(self) -> bool:
        """Whether no more runs should begin."""
        return self.stop.is_set() or self.full is not None

    def check(self) -> None:
        """Raise KeyboardInterrupt once the sweep should end at once."""
        if self.stop.urgent:
            raise KeyboardInterrupt

    @property
    def counts(self) -> Counter[str]:
        """Number of runs by status: done, failed, interrupted; `left` are the others."""
        counted = Counter(outcome.status for outcome in self.outcomes.values() if outcome.status in FINAL)
        return counted + Counter(done=self.before, left=len(self.titles) - counted.total())

    def started(self, run_ids: Sequence[str], slot: str) -> None:
        """Record that a run begins, or several together."""
        self.slots[slot] = Running(list(run_ids))
        self._line(run_ids[0], f"{_more(run_ids)}begins on {slot}")

    def knows(self, run_id: str) -> bool:
        """Tell whether the run is shown in a slot."""
        return any(running is not None and run_id in running.run_ids for running in self.slots.values())

    def progress(self, run_id: str, step: int, total: int) -> None:
        """Record the step of a run."""
        for running in self.slots.values():
            if running is not None and run_id in running.run_ids and total:
                running.step, running.total = step, total
                running.pace.at(step)

    def retried(self, run_id: str, outcome: "Outcome") -> None:
        """Record that a run failed and will be tried again."""
        self._leave(run_id)
        self._line(run_id, f"{outcome.kind}: {outcome.message}; it will be tried again")

    def parted(self, run_ids: Sequence[str], outcome: "Outcome") -> None:
        """Record that runs which were to be trained together will be tried otherwise."""
        for run_id in run_ids:
            self._leave(run_id)
        why = f"{outcome.kind}: {outcome.message}" if outcome.kind else outcome.message
        self._line(run_ids[0], f"{_more(run_ids)}will not be trained like this together: {why}")

    def ended(self, run_id: str, outcome: "Outcome") -> None:
        """Record the outcome of an attempt at a run."""
        self._leave(run_id)
        self.outcomes[run_id] = outcome
        if outcome.status == "held":
            self._line(run_id, f"{outcome.message}; looked at again later")
            return
        if outcome.status == "done":
            self.seconds.append(outcome.seconds)
        if outcome.status == "failed":
            self.failures.append(f"{self.titles[run_id]}: {outcome.message}")
        if outcome.kind == "disk_full":
            self.full = outcome.message
        text = outcome.status + (f" ({outcome.kind}): {outcome.message}" if outcome.kind else "")
        after = f" after {duration(outcome.seconds)}" if outcome.status == "done" else ""
        self._line(run_id, f"{text}{after}  [{', '.join(self._counted())}]")

    def tick(self) -> None:
        """Redraw what is shown, at most every `REFRESH_SECONDS`."""
        if self.notebook:
            self.notebook.show(self.picture())
        elif self.live and time.monotonic() - self.drawn >= REFRESH_SECONDS:
            self.drawn = time.monotonic()
            self.live.update(self.picture(), refresh=True)

    def picture(self) -> RenderableType:
        """Draw the table of slots, the counts, and the last errors."""
        table = Table(box=None, padding=(0, 1))
        for name in ("slot", "run", "progress", "step", "time left"):
            table.add_column(name, justify="right" if name in ("step", "time left") else "left", no_wrap=True)
        for slot, running in self.slots.items():
            if running is None:
                table.add_row(plain_text(slot), Text("idle", style="dim"))
                continue
            bar = ProgressBar(total=max(running.total, 1), completed=running.step, width=20)
            step = f"{running.step}/{running.total}" if running.total else "preparing"
            title = f"{self.titles[running.run_ids[0]]} {_more(running.run_ids)}".strip()
            table.add_row(plain_text(slot), plain_text(title), bar, step, _left(running))
        errors = [
            Text(f"  {visible(text)}", style="red", overflow="ellipsis", no_wrap=True) for text in self._last_failures()
        ]
        return Group(table, Text(self._summary(), style="bold"), *errors)

    def _counted(self) -> list[str]:
        """Describe the number of runs of each status, and the time that is left."""
        counts, finished = self.counts, len(self.outcomes)
        parts = [f"{counts['done']} done", f"{counts['failed']} failed", f"{counts['left']} left"]
        if finished and counts["left"] and not self.draining:
            parts.append(f"about {duration((time.monotonic() - self.began) / finished * counts['left'])} to go")
        return parts

    def _summary(self) -> str:
        parts = self._counted()
        if self.draining:
            parts.append("stopping: running ones keep their checkpoints; Ctrl-C again kills them")
        return "  ".join([*parts, f"({duration(time.monotonic() - self.began)})"])

    def _last_failures(self) -> list[str]:
        return list(dict.fromkeys(self.failures))[-SHOWN_ERRORS:]

    def _leave(self, run_id: str) -> None:
        for slot, running in self.slots.items():
            if running is not None and run_id in running.run_ids:
                running.run_ids.remove(run_id)
                if not running.run_ids:
                    self.slots[slot] = None

    def _line(self, run_id: str, text: str) -> None:
        if not self.live and not self.notebook:
            line = f"{time.strftime('%H:%M:%S')}  {self.titles[run_id]} ({run_id})  {text}"
            self.console.print(plain_text(line), soft_wrap=True)


def _more(run_ids: Sequence[str]) -> str:
    return f"and {len(run_ids) - 1} more " if len(run_ids) > 1 else ""


def _left(running: Running) -> str:
    left = running.pace.left(running.total)
    return "" if left is None else duration(left)
