"""The record of a mean of runs, by which it is a row of tables, and its checkpoint, from which it is restored."""

from pathlib import Path
from typing import Any

from invbench.errors import UserError
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder, unwritable
from invbench.runs.record import MEAN, BestStep, Record, now
from invbench.runs.spec import RunSpec
from invbench.system.provenance import code_version, describe
from invbench.training.average_runs import AveragedRuns

DIWA = "diwa"


def write_average(averaged: AveragedRuns, out: Path) -> RunFolder:
    """Write the record and the checkpoint of a mean of runs.

    Args:
        out: folder of results.

    Raises:
        UserError: a mean of other runs with the same rule and settings is there, or the folder cannot be written to.
    """
    records = [record for folder in averaged.candidates if (record := RunFolder(folder).load_record())]
    spec, members = spec_of_average([record.spec for record in records], averaged.rule.value), averaged.members
    folder, first = RunFolder(out / spec.run_id), records[0]
    candidates = sorted(path.name for path in averaged.candidates)
    earlier = folder.load_record()
    if earlier is not None and sorted(earlier.engine.get("candidates", [])) != candidates:
        raise UserError(f"{folder.path} is the mean of other runs; use another --out")
    steps = max(record.engine["steps"] for record in records)
    has_validation = "validation" in averaged.run.problem.splits
    device = next(averaged.model.parameters()).device
    record = Record(
        run_id=spec.run_id,
        status="done",
        spec=spec,
        metrics=averaged.metrics,
        best_validation=BestStep(step=steps, metrics=averaged.metrics) if has_validation else None,
        data=first.data,
        engine={
            **{name: first.engine[name] for name in ("strategy", "steps_per_epoch", "parameters", "weights")
               if name in first.engine},
            "steps": steps,
            "candidates": candidates,
            MEAN: [path.name for path in members],
            "member_spec": averaged.run.config.spec.model_dump(),
        },
        cost={name: sum(record.cost[name] for record in records) for name in ("wall_seconds", "seconds_per_step")}
        | {"peak_memory_bytes": max(record.cost["peak_memory_bytes"] for record in records)},
        code=code_version(*averaged.run.config.classes),
        machine=describe(device),
        finished=now(),
    )  # fmt: skip
    folder.create(spec)
    try:
        Checkpoint({"model": dict(averaged.model.state_dict())}, {}).save(folder.replacing(folder.checkpoint))
        folder.write_record(record)
    except OSError as error:
        raise unwritable(folder.path, error) from None
    return folder


def spec_of_average(specs: list[RunSpec], rule: str) -> RunSpec:
    """Return the specification of a mean: the settings in which all runs agree, the rule, and the number of runs."""
    first, *others = specs
    methods = {
        part: _agreed(settings, [spec.method_settings[part] for spec in others])
        for part, settings in first.method_settings.items()
    }
    return RunSpec(
        method=f"{first.method}+{DIWA}",
        method_settings=methods | {DIWA: {"rule": rule, "runs": len(specs)}},
        dataset=first.dataset,
        dataset_settings=first.dataset_settings,
        backbone=first.backbone,
        backbone_settings=first.backbone_settings,
        trainer=_agreed(first.trainer, [spec.trainer for spec in others]),
        seed=first.seed,
        protocol=first.protocol if all(spec.protocol == first.protocol for spec in others) else "last",
    )


def _agreed(settings: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that are the same in all runs."""
    return {name: value for name, value in settings.items() if all(other.get(name) == value for other in others)}
