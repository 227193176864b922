"""The record of a mean of runs, by which it is a row of tables, and its checkpoint, from which it is restored."""

import hashlib
from pathlib import Path
from typing import Any

from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder, unwritable
from invbench.runs.record import MEAN, BestStep, Record, now
from invbench.runs.spec import RunSpec
from invbench.system.provenance import code_version, describe
from invbench.training.average_runs import AveragedRuns

DIWA = "diwa"


def write_average(averaged: AveragedRuns, out: Path) -> RunFolder:
    """Write the checkpoint and the record of a mean of runs. An earlier record of other numbers is set aside.

    Args:
        out: folder of results.

    Raises:
        UserError: the folder cannot be written to, or another process writes there.
    """
    records = [record for folder in averaged.candidates if (record := RunFolder(folder).load_record())]
    record = _record_of(averaged, records)
    folder = RunFolder(out / record.run_id)
    folder.create(record.spec)
    with folder.hold() as held:
        earlier = held.read_record()
        if earlier is not None and (earlier.metrics, earlier.engine) == (record.metrics, record.engine):
            return folder
        try:
            held.set_aside()  # a record means that the checkpoint is there
            Checkpoint({"model": dict(averaged.model.state_dict())}, {}).save(held.replacing(held.checkpoint))
            held.write_record(record)
        except OSError as error:
            raise unwritable(folder.path, error) from None
    return folder


def _record_of(averaged: AveragedRuns, records: list[Record]) -> Record:
    run, first = averaged.run, records[0]
    spec = spec_of_average([record.spec for record in records], averaged.rule.value)
    steps = [record.engine["steps"] for record in records]
    reasons = [record.engine.get("inactive", "") for record in records]
    has_validation = "validation" in run.problem.splits
    kept = ("strategy", "steps_per_epoch", "parameters", "weights")
    return Record(
        run_id=spec.run_id,
        status="done",
        spec=spec,
        metrics=averaged.metrics,
        best_validation=BestStep(step=max(steps), metrics=averaged.metrics) if has_validation else None,
        data=first.data,
        engine={
            **{name: first.engine[name] for name in kept if name in first.engine},
            **({"inactive": reasons[0]} if all(reasons) else {}),
            "steps": max(steps),
            MEAN: [path.name for path in averaged.members],
            "candidates": [path.name for path in averaged.candidates],
            "member_spec": run.config.spec.model_dump(mode="json"),
        },
        cost=_cost_of([record.cost for record in records], steps),
        code=code_version(*run.config.classes),
        machine=describe(next(averaged.model.parameters()).device),
        finished=now(),
    )


def _cost_of(costs: list[dict[str, float]], steps: list[int]) -> dict[str, float]:
    """Return the cost of all runs: the sums of seconds, the mean of those of a step, the largest memory."""
    parts = set.intersection(*(set(cost) for cost in costs)) - {"seconds_per_step", "peak_memory_bytes"}
    seconds = sum(cost["seconds_per_step"] * count for cost, count in zip(costs, steps, strict=True))
    return {part: sum(cost[part] for cost in costs) for part in sorted(parts)} | {
        "seconds_per_step": seconds / max(1, sum(steps)),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
    }


def spec_of_average(specs: list[RunSpec], rule: str) -> RunSpec:
    """Return the specification of a mean: the settings in which all runs agree, the rule, and which runs there are.

    These are told by their number and a hash of their settings, so that only means of the same settings are means over
    seeds.
    """
    first, *others = specs
    methods = {
        part: _agreed(settings, [spec.method_settings[part] for spec in others])
        for part, settings in first.method_settings.items()
    }
    settings = sorted(spec.model_copy(update={"seed": 0}).run_id for spec in specs)
    runs = {"runs": len(specs), "settings": hashlib.sha256(" ".join(settings).encode()).hexdigest()[:8]}
    changed = {
        "method": f"{first.method}+{DIWA}",
        "method_settings": methods | {DIWA: {"rule": rule, **runs}},
        "trainer": _agreed(first.trainer, [spec.trainer for spec in others]),
        "protocol": first.protocol if all(spec.protocol == first.protocol for spec in others) else "last",
    }
    return first.model_copy(update=changed)


def _agreed(settings: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that are the same in all runs."""
    return {name: value for name, value in settings.items() if all(other.get(name) == value for other in others)}
