"""The folder of a sweep: its runs' statuses, its summary, its changes, and its estimated cost."""

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from invbench.choices import Rerun
from invbench.files import write_text
from invbench.runs.commands import ranges
from invbench.runs.folder import RunFolder, Status, run_folders, unwritable
from invbench.runs.record import Record, Unreadable, file_content
from invbench.runs.resolve import RunConfig
from invbench.sweeps.definition import Results, Sweep
from invbench.system.provenance import sources_hash

OPEN: Mapping[Rerun, tuple[Status, ...]] = {
    Rerun.missing: ("queued", "lost", "running"),
    Rerun.failed: ("queued", "lost", "running", "failed"),
    Rerun.stale: ("queued", "lost", "running", "stale"),
    Rerun.all: ("queued", "lost", "running", "failed", "stale", "done"),
}
"""Statuses of the runs that each choice carries out. A running one belongs to another process, which may yet die."""


MOST_VALUES = 6
"""Maximum number of values of a setting that a summary lists."""
MOST_COMPARED, MOST_LINES = 5000, 40
"""Maximum number of lines of a sweep that are compared with its earlier version, and of changes that are shown."""
MOST_ENTRIES, MOST_SIBLINGS, MOST_RUNS = 10_000, 30, 50
"""Maximum number of entries of the parent folder, of folders there, and of runs of each that are read for the costs of
runs."""


def statuses(configs: Iterable[RunConfig], out: Path) -> dict[str, Status]:
    """Return the status of each run, by id."""
    return {
        config.spec.run_id: RunFolder(out / config.spec.run_id).status(sources_hash(*config.classes))
        for config in configs
    }


def metrics_of(out: Path) -> Results:
    """Return a function from the id of a run in a folder to its metrics; see `Results`."""

    def metrics(run_id: str) -> Mapping[str, float] | None:
        record = RunFolder(out / run_id).read_record()
        return None if record is None else record.metrics

    return metrics


def chosen(configs: Sequence[RunConfig], status_of: Mapping[str, Status], rerun: Rerun) -> list[RunConfig]:
    """Select the runs that `--rerun` asks for."""
    return [config for config in configs if status_of[config.spec.run_id] in OPEN[rerun]]


def reopen(configs: Iterable[RunConfig], out: Path) -> None:
    """Rename records and remove checkpoints, so that the runs start over."""
    for config in configs:
        folder = RunFolder(out / config.spec.run_id)
        if folder.path.exists():
            with folder.hold() as held:
                held.set_aside()
                with held.writing():
                    held.checkpoint.unlink(missing_ok=True)


def told_apart(configs: Iterable[RunConfig]) -> dict[str, str]:
    """Describe, by id of the run, the settings in which runs of its method and dataset differ besides the seed."""
    texts = {}
    for members in _groups(configs).values():
        flat = list(map(_settings, members))
        differing = _differing(flat)
        for config, settings in zip(members, flat, strict=True):
            parts = (f"{name}={_short(settings[name])}" for name in differing if name in settings)
            texts[config.spec.run_id] = "  ".join(parts)
    return texts


def shared(configs: Iterable[RunConfig]) -> Iterator[str]:
    """Describe, a line for each method and dataset, the settings in which all its runs agree."""
    for (method, dataset), members in _groups(configs).items():
        flat = list(map(_settings, members))
        differing = _differing(flat)
        texts = (f"{name}={_short(value)}" for name, value in flat[0].items() if name not in differing)
        yield f"{method} on {dataset}: {'  '.join(texts)}"


def summary(configs: Sequence[RunConfig]) -> Iterator[str]:
    """Describe how many runs there are of what, and the ranges of the settings in which they differ."""
    groups = _groups(configs)
    methods, datasets = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    seeds = {config.spec.seed for config in configs}
    flat = [list(map(_settings, members)) for members in groups.values()]
    trials = [len({json.dumps(settings, sort_keys=True) for settings in members}) for members in flat]
    numbers = {"method": len(methods), "dataset": len(datasets), "trial": max(trials), "seed": len(seeds)}
    product = len(configs) == math.prod(numbers.values())
    parts = [f"{number} {name}{'s' * (number > 1)}" for name, number in numbers.items()]
    listed = " × ".join(parts) if product else f"some of {', '.join(parts)}"
    yield f"{len(configs)} runs: {listed}"
    yield f"  methods: {', '.join(methods)}"
    yield f"  datasets: {', '.join(datasets)}"
    values: dict[str, list[Any]] = {}
    for members in flat:
        for name in _differing(members):
            values.setdefault(name, []).extend(settings[name] for settings in members if name in settings)
    yield from (f"  {name}: {_range(choices)}" for name, choices in values.items())
    yield f"  seeds: {ranges(sorted(seeds))}"


def _groups(configs: Iterable[RunConfig]) -> dict[tuple[str, str], list[RunConfig]]:
    """Group runs by method and dataset."""
    groups: dict[tuple[str, str], list[RunConfig]] = {}
    for config in configs:
        groups.setdefault((config.spec.method, config.spec.dataset), []).append(config)
    return groups


def _settings(config: RunConfig) -> dict[str, Any]:
    return {"backbone.name": config.spec.backbone} | config.spec.flat()


def _differing(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the settings in which runs differ."""
    names = dict.fromkeys(name for settings in flat for name in settings)
    return [name for name in names if any(settings.get(name, ...) != flat[0].get(name, ...) for settings in flat)]


def _range(values: Sequence[Any]) -> str:
    """Format values: all of them, or the smallest and the largest where they are many."""
    texts = list(dict.fromkeys(map(_short, values)))
    if len(texts) <= MOST_VALUES:
        return ", ".join(texts)
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return f"{', '.join(texts[:MOST_VALUES])}, … ({len(texts)} values)"
    return f"{_short(min(numbers))} to {_short(max(numbers))} ({len(texts)} values)"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def announce_changes(sweep: Sweep, tier: str, configs: Sequence[RunConfig], out: Path) -> list[str]:
    """Write the sweep into its folder. Returns lines that say how it differs from the one that was there.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = out / "sweep.yaml"
    text = f"# tier: {tier}\n" + yaml.safe_dump(_as_data(sweep), sort_keys=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        content = file_content(path)
        before = None if content is None else content.decode("utf-8", "replace")
        if before != text:
            write_text(path, text)
    except OSError as error:
        raise unwritable(out, error) from None
    run_ids = {config.spec.run_id for config in configs}
    others = [folder for folder in run_folders(out) if folder.path.name not in run_ids]
    lines = []
    if before is not None and before != text:
        lines.append(f"the sweep differs from the one that {out} was made with:")
        old, new = (whole.splitlines()[:MOST_COMPARED] for whole in (before, text))
        difference = list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:]
        changed = [f"  {line}" for line in difference if not line.startswith("@@")]
        lines += changed[:MOST_LINES]
        lines += [f"  and {len(changed) - MOST_LINES} more lines"] if len(changed) > MOST_LINES else []
    if others:
        kinds = Counter(folder.status() for folder in others)
        listed = ", ".join(f"{count} {status}" for status, count in kinds.items())
        lines.append(f"{len(others)} runs in {out} are not part of the sweep as it is now ({listed}); they stay there")
    return lines


def _as_data(sweep: Sweep) -> dict[str, Any]:
    """Dump the sweep as JSON data, without `fuse` where it is off, as in folders of older versions."""
    return sweep.model_dump(mode="json", exclude={"fuse"} if sweep.fuse == "off" else set())


class CostEstimator:
    """Estimator of the seconds of runs, by the step time of earlier ones of the same method and dataset.

    Earlier ones are the runs of the folder; where it has none yet, some of the folders beside it.
    """

    def __init__(self, out: Path) -> None:
        self.known: dict[tuple[str, str], list[Record]] = {}
        for record in list(_usable(run_folders(out))) or _usable(_beside(out)):
            self.known.setdefault((record.spec.method, record.spec.dataset), []).append(record)

    def seconds(self, config: RunConfig) -> float | None:
        """Estimate the seconds of one run; None where nothing like it has been run."""
        like = self.known.get((config.spec.method, config.spec.dataset))
        if not like:
            return None
        record = max(like, key=lambda earlier: (_shared(earlier, config), earlier.finished))
        steps = config.trainer.total_steps(record.engine["steps_per_epoch"])
        return record.cost["wall_seconds"] * float(steps) / max(int(record.engine["steps"]), 1)


def _usable(folders: Iterable[RunFolder]) -> Iterator[Record]:
    """Yield the records of finished runs, which give the step time; files may be damaged."""
    for folder in folders:
        with suppress(Unreadable):
            record = folder.load_record()
            if record is not None and record.status == "done" and record.engine:
                yield record


def _beside(out: Path) -> Iterator[RunFolder]:
    """Yield some runs in the folders beside this one, last changed first, without descending deeper."""
    siblings = sorted(_folders(out.absolute().parent, MOST_ENTRIES), key=_changed, reverse=True)
    for sibling in siblings[:MOST_SIBLINGS]:
        folder = RunFolder(sibling)
        inner = [folder] if folder.spec.exists() else map(RunFolder, _folders(sibling, MOST_RUNS))
        yield from (run for run in inner if run.record.exists())


def _folders(path: Path, most: int) -> list[Path]:
    """List the folders among the first `most` entries of a folder; none where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [Path(entry) for entry in islice(entries, most) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _shared(record: Record, config: RunConfig) -> int:
    """Count the settings that a record's run shares with another."""
    theirs, ours = record.spec.flat(), config.spec.flat()
    return sum(theirs.get(name) == value for name, value in ours.items())
