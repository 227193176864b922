"""Finished runs, restored: to be looked at, and for runs of two stages to begin from."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from invbench.core.backbone import network_with_head
from invbench.core.data import Problem, Split
from invbench.core.method import Outputs
from invbench.core.stages import FirstStage, Kept
from invbench.datafiles.checksums import fingerprint
from invbench.errors import Unusable, UserError
from invbench.evaluation.metrics import outputs_of
from invbench.runs.checkpoint import Checkpoint, check_fit
from invbench.runs.folder import RunFolder, first_stages_of
from invbench.runs.resolve import RunConfig, from_spec
from invbench.runs.spec import RunSpec
from invbench.seeding import stream
from invbench.system.device import choose_device
from invbench.training.build import load_problem, model_on, problem_on


class RestoredRun(NamedTuple):
    """Result of a run: the model with its last weights, in evaluation mode, and its problem on the same device."""

    config: RunConfig
    problem: Problem
    model: nn.Module

    def __repr__(self) -> str:
        return f"RestoredRun({self.config.title}, {self.problem!r})"


def load_run(path: str | Path, device: str = "cpu") -> RestoredRun:
    """Restore what the run of a folder has trained.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> record = invbench.run("erm", "spirals", settings=settings, out="trained")
    >>> run = invbench.load_run(f"trained/{record.run_id}")
    >>> run.config.title, run.model.training
    ('erm/spirals seed 0', False)

    Args:
        path: the run's folder.
        device: auto, cpu, cuda or cuda:i.

    Raises:
        UserError: the run is not done, its record or checkpoint is damaged, its weights are not finite or do not fit
            this code, or its data are others than they were.
    """
    folder = RunFolder(Path(path))
    try:
        checkpoint = Checkpoint.load(folder.checkpoint)
    except Unusable as error:
        raise UserError(f"{path}: {error}; delete it and repeat the command that made it") from None
    record = folder.load_record()
    if record is None or checkpoint is None or record.status != "done":
        raise UserError(f"{path} holds no finished run with its checkpoint; the command that made it finishes it")
    member = record.engine.get("member_spec")  # of a mean of runs, which has the weights of no run of its own
    config = from_spec(RunSpec.model_validate(member) if member else record.spec)
    problem = load_problem(config)
    if problem.fingerprint != record.data["fingerprint"]:
        raise UserError(f"the data of {path} are not what they were when it was trained; run it again")
    chosen = choose_device(device)
    if config.method.second_stage:
        problem, model, first = begun_in(config, problem, chosen, Path(path).parent)
        if first["weights_sha256"] != record.engine.get("first_stage", {}).get("weights_sha256"):
            raise UserError(f"the first stage of {path} is not the one that it began from; run it again")
    else:
        model = model_on(chosen, config, problem)
    try:
        check_fit({"model": model.state_dict()}, checkpoint.tensors)
    except Unusable:
        raise UserError(f"the weights of {path} belong to another version of the network; run it again") from None
    average = checkpoint.tensors.get("average", {})
    means = {name: value for part in ("parameters", "buffers") for name, value in average.get(part, {}).items()}
    model.load_state_dict({**checkpoint.tensors["model"], **means})
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise UserError(f"the weights of {path} are not all finite; run it again")
    return RestoredRun(config, problem_on(chosen, config, problem), model.eval())


class Begun(NamedTuple):
    """Second stage at its beginning: data on the CPU, network on the device, and what the record says of the first."""

    problem: Problem
    model: nn.Module
    described: dict[str, Any]


def begun_in(config: RunConfig, problem: Problem, device: torch.device, results: Path) -> Begun:
    """Begin the second stage of a run whose first one is finished.

    Args:
        results: folder of the runs.

    Raises:
        UserError: the first stage is not there, or is of other data.
    """
    stage = config.method.second_stage
    if stage is None:
        raise ValueError(f"{config.title} has one stage only")
    given, first = stage.from_run, config.first_stage
    folder = first_stages_of(results) / first.spec.run_id if first else Path(str(given))
    if not folder.is_dir():
        missing = "repeat the command that made the run" if given is None else "method.from_run names it"
        raise UserError(f"{config.title} begins from the run in {folder}, which is no folder: {missing}")
    record = RunFolder(folder).read_record()
    if record is not None and record.data.get("fingerprint") != problem.fingerprint:
        raise UserError(f"the run in {folder} has other data than {config.title}, which begins from it")
    restored = load_run(folder, str(device))
    rng = np.random.default_rng(stream(config.spec.seed, "examples", "second stage"))
    data = stage.begin(FirstStage(problem, restored.model, partial(_outputs, restored)), problem, rng)
    data = replace(data, training_groups=problem.group_counts.get("train", ()))
    model = model_on(device, config, data)
    if stage.keeps != "nothing":
        _keep(model, restored, whole=stage.keeps == "network")
    spec, weights = restored.config.spec, weights_sum(restored.model)
    described = {"run_id": spec.run_id, "method": spec.method, "weights_sha256": weights} | _described(data, problem)
    return Begun(data, model, described)


def weights_sum(model: nn.Module) -> str:
    """Return the sha256 of a network's weights and buffers."""
    return fingerprint((name, value.cpu().numpy()) for name, value in sorted(model.state_dict().items()))


def _described(data: Problem, before: Problem) -> dict[str, Any]:
    """Say what the second stage trains on: how many examples, of which environments, and facts that are new."""
    examples = data.splits["train"] if data.examples is None else data.examples
    described: dict[str, Any] = {"examples": len(examples)}
    if examples.env is not None:
        described["examples_of_environments"] = torch.bincount(examples.env).tolist()
    return described | {name: value for name, value in data.facts.items() if name not in before.facts}


def _keep(model: nn.Module, first: RestoredRun, whole: bool) -> None:
    """Give a network the body of the first stage's, which is not trained any more, or all of it."""
    network, given = network_with_head(model)[1], network_with_head(first.model)[1]
    body = given.features.module if isinstance(given.features, Kept) else given.features
    pairs: list[tuple[nn.Module, nn.Module]] = [(network.features, body)]
    pairs += [(network.head, given.head)] if whole else []
    for ours, theirs in pairs:
        try:
            check_fit({"model": ours.state_dict()}, {"model": theirs.state_dict()})
        except Unusable:
            raise UserError(f"the network of {first.config.title} is another one, so its body cannot be kept") from None
        ours.load_state_dict(theirs.state_dict())
    network.features = Kept(network.features)


@torch.no_grad()
def _outputs(run: RestoredRun, split: Split) -> Outputs:
    """Compute a run's outputs (N, ...) of examples, on the CPU in double precision."""
    train = run.problem.splits["train"].x
    moved = split.to(train.device, train.dtype)
    return outputs_of(run.model, moved.x, environment_rows=moved.environment_rows).map(lambda part: part.double().cpu())
