"""Average the final weights of several runs of one network: DiWA, without training.

Rame, Kirchmeyer, Rahier, Rakotomamonjy, Gallinari, Cord (2022), "Diverse Weight Averaging for Out-of-Distribution
Generalization", arXiv 2205.09739. Runs begin at the same weights and differ in settings, such as the trials of a random
search with one seed:

    uniform       the mean of all runs
    restricted    runs in the order of their validation score, the best first; a run joins where the mean with it does
                  not score worse in validation than the mean without

The final weights of a run that averages its own, as SWAD does, are that mean.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from invbench.choices import AverageRule
from invbench.core.method import as_outputs
from invbench.errors import UserError
from invbench.evaluation.metrics import evaluate
from invbench.runs.folder import RunFolder
from invbench.runs.record import MEAN, Unreadable
from invbench.seeding import stream, torch_stream
from invbench.training.averaging import measure_statistics
from invbench.training.gradients import Objective
from invbench.training.restored import RestoredRun, load_run
from invbench.training.sampling import Sampler, loader_of

Weights = dict[str, Tensor]
SAME = ("dataset", "dataset_settings", "backbone", "backbone_settings", "seed")
"""Parts of a run's specification on which its data and its first weights depend."""
SAME_TRAINER = ("held_out_environment", "dtype")
"""Settings of the trainer on which they depend, too."""
COMPARED = 16
"""Examples of which networks must predict the same by the same weights."""


@dataclass(frozen=True)
class AveragedRuns:
    """Mean of the weights of runs.

    Args:
        rule: which of the runs are in it.
        candidates: folders of the runs.
        members: folders of those that are in it, in the order in which they joined.
        run: the best candidate in validation, else the first by its id; its model has the mean weights, in evaluation
            mode.
        metrics: of the mean, on every split.
        best: metrics of the run with the best validation score, which is the first where the rule is restricted; None
            where the data have no validation split.
    """

    rule: AverageRule
    candidates: tuple[Path, ...]
    members: tuple[Path, ...]
    run: RestoredRun
    metrics: dict[str, float]
    best: dict[str, float] | None

    @property
    def model(self) -> nn.Module:
        """Network with the mean weights."""
        return self.run.model


def groups_of(folders: Sequence[RunFolder], say: Callable[[str], object] = lambda line: None) -> list[list[Path]]:
    """Group finished runs of one method whose weights can be averaged: of one seed, on the same data, one network.

    Means of runs are left out. Groups are in the order of methods, datasets, their settings, and seeds.

    Args:
        say: called with a line about each record that cannot be understood.
    """
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        try:
            record = folder.load_record()
        except Unreadable as error:
            say(f"left out: {error}")
            continue
        if record is not None and record.status == "done" and MEAN not in record.engine:
            trainer = [record.spec.trainer.get(name) for name in SAME_TRAINER]
            key = [*(getattr(record.spec, part) for part in ("method", *SAME)), *trainer]
            groups.setdefault(json.dumps(key, sort_keys=True), []).append(folder.path)
    return [groups[key] for key in sorted(groups)]


def average_runs(
    folders: Sequence[Path],
    rule: AverageRule | str = AverageRule.uniform,
    device: str = "cpu",
    advanced: Callable[[], object] = lambda: None,
) -> AveragedRuns:
    """Average the weights of finished runs.

    Args:
        folders: of the runs.
        rule: which runs are in the mean.
        device: auto, cpu, cuda or cuda:i.
        advanced: called after each run that has been looked at.

    Raises:
        UserError: a run is not finished; the runs do not have the same data, network and first weights, or compute
            other predictions by the same weights; the rule is restricted and there is no validation split.
    """
    rule = AverageRule.of(rule)
    if not folders:
        raise UserError("there is no run to average")
    counts = Counter(folder.name for folder in folders)
    if repeated := next((name for name, count in counts.items() if count > 1), None):
        raise UserError(f"run {repeated} is given {counts[repeated]} times; a run counts once in the mean")
    folders = sorted(folders, key=lambda folder: folder.name)  # the same mean whatever the order
    first = load_run(folders[0], device)
    weights: dict[Path, Weights] = {}
    scores: dict[Path, dict[str, float]] = {}
    for folder in folders:
        run = first if folder == folders[0] else load_run(folder, device)
        weights[folder] = {name: value.clone() for name, value in run.model.state_dict().items()}
        scores[folder] = _measured(run, tuple(run.problem.splits))
        _check_alike(first, run, folders[0], folder)  # which changes the run's weights
        advanced()
    task = first.problem.task
    criterion, sign = f"validation_{task.primary}", 1 if task.higher_is_better else -1
    members, ordered, best = list(folders), list(folders), None
    if "validation" in first.problem.splits:
        ordered.sort(key=lambda folder: (-sign * scores[folder][criterion], scores[folder]["validation_loss"]))
        best, first = scores[ordered[0]], load_run(ordered[0], device)
    if rule is AverageRule.restricted:
        if best is None:
            raise UserError("rule restricted goes by the validation split, which these data do not have; use uniform")
        members, reached = ordered[:1], best[criterion]
        for folder in ordered[1:]:
            tried = _of_mean([weights[one] for one in (*members, folder)], first, ("validation",))[criterion]
            if sign * (tried - reached) >= 0:
                members, reached = [*members, folder], tried
    metrics = _of_mean([weights[folder] for folder in members], first, tuple(first.problem.splits))
    return AveragedRuns(rule, tuple(folders), tuple(members), first, metrics, best)


def _of_mean(each: Sequence[Weights], run: RestoredRun, splits: tuple[str, ...]) -> dict[str, float]:
    """Put the mean of weights into a run's model, and measure it on splits."""
    run.model.load_state_dict({name: _mean([weights[name] for weights in each]) for name in each[0]})
    if len(each) > 1:
        device = next(run.model.parameters()).device
        with torch_stream(stream(run.config.spec.seed, "noise", "average"), device):  # networks may draw augmentations
            measure_statistics(run.model, lambda most: _pass_first_batches(run, most))
    return _measured(run, splits)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Average tensors; counts, which are integers, are those of the first."""
    return torch.stack(list(values)).mean(0) if values[0].is_floating_point() else values[0]


def _measured(run: RestoredRun, splits: tuple[str, ...]) -> dict[str, float]:
    return evaluate(run.model.eval(), run.problem, splits, run.config.spec.seed, 0)


def _pass_first_batches(run: RestoredRun, most: int) -> None:
    examples = run.config.method.examples(run.problem, run.config.spec.seed)
    sampler = Sampler.of(examples, run.config.trainer, run.config.spec.seed)
    loader = loader_of(sampler)
    objective = Objective(run.config.method, run.problem.task, run.model, "joint")
    parameters = dict(run.model.named_parameters())
    for number in range(min(most, sampler.steps_per_epoch)):
        objective.batch_outputs(parameters, loader.batch(number))


def _check_alike(first: RestoredRun, other: RestoredRun, first_folder: Path, folder: Path) -> None:
    """Raise UserError unless two runs have the same data, network and first weights."""
    for part in SAME:
        if getattr(first.config.spec, part) != getattr(other.config.spec, part):
            raise UserError(
                f"{first_folder.name} and {folder.name} differ in {part.replace('_', ' ')}, so they did not begin at "
                "the same weights, or not on the same data; average runs that differ in other settings"
            )
    shapes = [{name: value.shape for name, value in run.model.state_dict().items()} for run in (first, other)]
    if first.problem.fingerprint != other.problem.fingerprint or shapes[0] != shapes[1]:
        raise UserError(f"{first_folder.name} and {folder.name} do not have the same data and the same network")
    other.model.load_state_dict(first.model.state_dict())
    if not torch.equal(_predictions(first), _predictions(other)):
        raise UserError(
            f"{first_folder.name} and {folder.name} predict otherwise by the same weights, as the network of "
            f"{first.config.method.name} depends on its settings; average runs that differ in others"
        )


@torch.no_grad()
def _predictions(run: RestoredRun) -> Tensor:
    """Predict a few examples, with the same random numbers for every run."""
    x = run.problem.splits["train"].rows(slice(COMPARED)).inputs()
    with torch_stream(stream(run.config.spec.seed, "noise", "average"), x.device):
        return as_outputs(run.model.eval()(x)).prediction
