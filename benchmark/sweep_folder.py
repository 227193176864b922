"""The folder of a sweep: what is there already, what the file says now, and what that will cost."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from invbench.files import write_text
from invbench.machine import sources_hash
from invbench.records import Record, RunFolder, Status, run_folders, unwritable
from invbench.spec import Cell
from invbench.sweep_file import Results, Sweep


class Rerun(StrEnum):
    """Which runs of a sweep are carried out."""

    missing = "missing"
    failed = "failed"
    stale = "stale"
    all = "all"


OPEN: Mapping[Rerun, tuple[Status, ...]] = {
    Rerun.missing: ("queued", "lost", "running"),
    Rerun.failed: ("queued", "lost", "running", "failed"),
    Rerun.stale: ("queued", "lost", "running", "stale"),
    Rerun.all: ("queued", "lost", "running", "failed", "stale", "done"),
}
"""Statuses that each choice takes up. A running one belongs to another process, which may yet die."""


def statuses(cells: Iterable[Cell], out: Path) -> dict[str, Status]:
    """By id of the run."""
    return {cell.spec.run_id: RunFolder(out / cell.spec.run_id).status(sources_hash(*cell.classes)) for cell in cells}


def metrics_of(out: Path) -> Results:
    """What is known of the runs of a folder."""

    def found(run_id: str) -> Mapping[str, float] | None:
        record = RunFolder(out / run_id).read_record()
        return None if record is None else record.metrics

    return found


def chosen(cells: Sequence[Cell], found: Mapping[str, Status], rerun: Rerun) -> list[Cell]:
    """The runs that `--rerun` asks for."""
    return [cell for cell in cells if found[cell.spec.run_id] in OPEN[rerun]]


def reopen(cells: Iterable[Cell], out: Path) -> None:
    """Put records and checkpoints aside, so that the runs begin anew."""
    for cell in cells:
        folder = RunFolder(out / cell.spec.run_id)
        if folder.path.exists():
            with folder.claimed():
                folder.set_aside()
                folder.checkpoint.unlink(missing_ok=True)


def announce_changes(sweep: Sweep, tier: str, cells: Sequence[Cell], out: Path) -> list[str]:
    """Write the sweep into its folder. Returns lines that say how it differs from the one that is there.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = out / "sweep.yaml"
    text = f"# tier: {tier}\n" + yaml.safe_dump(_as_data(sweep), sort_keys=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8") if path.exists() else None
        if before != text:
            write_text(path, text)
    except OSError as error:
        raise unwritable(out, error) from None
    wanted = {cell.spec.run_id for cell in cells}
    others = [folder for folder in run_folders(out) if folder.path.name not in wanted]
    lines = []
    if before is not None and before != text:
        lines.append(f"the sweep differs from the one that {out} was made with:")
        difference = list(difflib.unified_diff(before.splitlines(), text.splitlines(), n=0, lineterm=""))[2:]
        lines += [f"  {line}" for line in difference if not line.startswith("@@")]
    if others:
        kinds = Counter(folder.status() for folder in others)
        listed = ", ".join(f"{count} {status}" for status, count in kinds.items())
        lines.append(f"{len(others)} runs in {out} are not part of the sweep as it is now ({listed}); they stay there")
    return lines


def _as_data(sweep: Sweep) -> dict[str, Any]:
    """Without `fuse` where it is off, as in folders that know no such thing."""
    return sweep.model_dump(mode="json", exclude={"fuse"} if sweep.fuse == "off" else set())


class Costs:
    """Seconds that runs will take, by what earlier ones of the same method and dataset took for a step."""

    def __init__(self, out: Path) -> None:
        root = out if out.exists() else out.parent
        records = [record for folder in run_folders(root) if (record := folder.read_record()) is not None]
        self.known: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            if record.status == "done":
                self.known.setdefault((record.spec.method, record.spec.dataset), []).append(record)

    def seconds(self, cell: Cell) -> float | None:
        """Of one run; None where nothing like it has been run."""
        like = self.known.get((cell.spec.method, cell.spec.dataset))
        if not like:
            return None
        record = max(like, key=lambda one: (_shared(one, cell), one.finished))
        steps = cell.trainer.total_steps(record.engine["steps_per_epoch"])
        return record.cost["wall_seconds"] * float(steps) / max(int(record.engine["steps"]), 1)


def _shared(record: Record, cell: Cell) -> int:
    """How many settings a record's run shares with another."""
    theirs, ours = record.spec.flat(), cell.spec.flat()
    return sum(theirs.get(name) == value for name, value in ours.items())
