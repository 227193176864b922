"""Measure metrics of whole splits, with one transfer to the host per split, and coefficients of linear models."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from invbench.components.augmentation import test_copies
from invbench.components.estimates import Estimates
from invbench.components.eval_mode import eval_mode
from invbench.core.backbone import EnvironmentNetwork
from invbench.core.data import LinearLaw, Problem, Split
from invbench.core.image_file import ImageFile
from invbench.core.method import Outputs, as_outputs
from invbench.core.metric import SEEN, metric_of, parse_column
from invbench.core.task import Task
from invbench.errors import UserError
from invbench.evaluation.environments import environment_metrics
from invbench.evaluation.groups import MOST, group_metrics, probability_metrics
from invbench.evaluation.symmetry import symmetry_metrics
from invbench.seeding import stream, torch_stream
from invbench.tensors import to_host

NEAR = 0.1
"""Largest distance of a coefficient from its value in a solution."""
ROWS_OF_CPU, ROWS = 128, 4096
"""Examples, or copies of them, that are evaluated together, on a CPU, whose caches they fit, and on other devices."""
MOST_NUMBERS_OF_CPU, MOST_NUMBERS = 2**22, 2**27
"""Most numbers in the inputs that are evaluated together, which large images keep to with fewer examples."""
NUMBERS = 2**14
"""Numbers in the inputs that are evaluated together, where that makes more examples than ROWS."""


Measure = Callable[[Outputs, Split], Mapping[str, Tensor | float]]
"""Computes further metrics of a split from the outputs (N, ...) of all its examples."""


def evaluate(
    model: nn.Module,
    problem: Problem,
    splits: Iterable[str],
    seed: int,
    step: int,
    *,
    last: bool = True,
    further: Measure | None = None,
) -> dict[str, float]:
    """Measure every metric of the named splits, such as `test_accuracy`; the model is in evaluation mode meanwhile.

    A model that is random in evaluation draws from a stream that seed and step fix, so evaluations do not change the
    training.

    Args:
        last: measure probabilities, and compare environments, too: what no curve shows.
    """
    device = problem.splits["train"].x.device
    with eval_mode(model), torch.no_grad(), torch_stream(stream(seed, "evaluation", step), device):
        metrics = {
            f"{name}_{metric}": value
            for name in splits
            for metric, value in split_metrics(model, problem, name, last=last, further=further).items()
        }
        if problem.law is not None:
            metrics |= coefficient_metrics(coefficients(model, problem, problem.law), problem.law)
        for part in model.modules():
            metrics |= part.numbers() if isinstance(part, Estimates) else {}
        if problem.symmetry is not None:
            metrics |= symmetry_metrics(model, problem, problem.symmetry)
    return metrics


def watched_splits(problem: Problem, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the splits that are measured during training: by default all but `train`.

    Raises:
        UserError: no such split.
    """
    known = tuple(problem.splits)
    if names is None:
        return tuple(name for name in known if name != "train")
    for name in names:
        if name not in known:
            raise UserError(f"trainer.evaluate_splits: no split '{name}'; there are {', '.join(known)}")
    return names


def split_metrics(
    model: nn.Module, problem: Problem, name: str, *, last: bool = True, further: Measure | None = None
) -> Mapping[str, float]:
    """Average the task's scores over a split, and the primary one over its environments, groups and classes.

    Where a split has 2 to 32 environments: `<primary>_env<e>` of each, `<primary>_average` of these, and
    `<primary>_worst` of them. Of groups, classes and probabilities see `invbench.evaluation.groups`; how environments
    of a split that is not trained on are compared, `invbench.evaluation.environments`.
    """
    task, split = problem.task, problem.splits[name]
    outputs = outputs_of(model, split.x, further is not None, split.environment_rows)
    scores = {metric: values.double() for metric, values in task.scores(outputs.prediction, split.y).items()}
    means = {metric: values.mean() for metric, values in scores.items()}
    means |= _by_environment(task, scores[task.primary], split)
    means |= group_metrics(problem, name, scores.get("accuracy", means["loss"]))
    metrics = to_host(means if further is None else {**means, **further(outputs, split)})
    if not last:
        return metrics
    metrics = {**metrics, **probability_metrics(problem, split, outputs.prediction)}
    if name == "train" or not _has_environments(split):
        return metrics
    return metrics | environment_metrics(task, split, outputs.prediction)


def _has_environments(split: Split) -> bool:
    """Tell whether environments of a split are measured one by one."""
    return 2 <= len(split.environment_numbers) <= MOST


def _by_environment(task: Task, scores: Tensor, split: Split) -> dict[str, Tensor]:
    """Average the scores (N,) of a split over each environment; add the mean and the worst of these."""
    if not _has_environments(split):
        return {}
    pairs = zip(split.environment_numbers, split.environment_rows, strict=True)
    each = {f"{task.primary}_env{e}": scores[rows].mean() for e, rows in pairs}
    values = torch.stack(list(each.values()))
    worst = values.min() if task.higher_is_better else values.max()
    return each | {f"{task.primary}_average": values.mean(), f"{task.primary}_worst": worst}


def outputs_of(
    model: nn.Module, x: Tensor | ImageFile, representations: bool = True, environment_rows: Sequence[Tensor] = ()
) -> Outputs:
    """Predict inputs (N, ...) in parts of a size that is fast.

    Args:
        representations: return those of all inputs, too, where the model has them, and what else it computes.
        environment_rows: indices of each environment's inputs, which some networks predict together.
    """
    on_cpu, size = x.device.type == "cpu", x[0].numel()
    rows = max(ROWS_OF_CPU if on_cpu else ROWS, NUMBERS // size)
    rows = min(rows, max(1, (MOST_NUMBERS_OF_CPU if on_cpu else MOST_NUMBERS) // size))
    prediction = representation = None
    further: dict[str, Tensor] = {}
    parts: Iterator[tuple[slice | Tensor, Tensor]]
    if isinstance(model, EnvironmentNetwork):
        parts = _of_one_environment(x, model.support, environment_rows)
    else:
        parts = _one_after_another(x.split(max(1, rows // test_copies(model))))
    for index, part in parts:
        outputs = as_outputs(model(part))
        prediction = _filled(prediction, index, outputs.prediction, len(x))
        if representations and outputs.representation is not None:
            representation = _filled(representation, index, outputs.representation, len(x))
        for name, value in outputs.further.items() if representations else ():
            further[name] = _filled(further.get(name), index, value, len(x))
    return Outputs(cast(Tensor, prediction), representation, further=further)  # a split has an example


def _one_after_another(parts: Iterable[Tensor]) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Yield parts of the inputs, each with the rows that it has there."""
    done = 0
    for part in parts:
        yield slice(done, done + len(part)), part
        done += len(part)


def _of_one_environment(
    x: Tensor | ImageFile, support: int, environment_rows: Sequence[Tensor]
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Yield up to `support` inputs of one environment at a time, with their rows; of all in turn without any."""
    for rows in environment_rows or [torch.arange(len(x), device=x.device)]:
        for index in rows.split(support):
            yield index, x[index]


def _filled(whole: Tensor | None, index: slice | Tensor, part: Tensor, count: int) -> Tensor:
    """Write a part into rows of a tensor of so many, which the first part makes.

    Parts that are kept, to be joined at the end, would lie between the large tensors of each part's inputs, and keep
    the C library from using their memory again: gigabytes of it, with large images.
    """
    if whole is None:
        whole = part.new_empty((count, *part.shape[1:]))
    whole[index] = part
    return whole


def coefficients(model: nn.Module, problem: Problem, law: LinearLaw) -> Tensor:
    """Return the model's coefficients (D,) on the CPU, transformed back where the law's inputs are mixed.

    A coefficient is the mean derivative of the prediction by an input over the test split. For a linear model it is the
    weight.
    """
    with torch.enable_grad():
        inputs = problem.splits["test"].inputs().detach().clone().requires_grad_()
        prediction = as_outputs(model(inputs)).prediction.sum()
        slopes = torch.autograd.grad(prediction, inputs)[0].mean(0).cpu() * getattr(problem.task, "std", 1.0)
    return slopes if law.mixing is None else law.mixing.to(slopes) @ slopes


def coefficient_metrics(estimated: Tensor, law: LinearLaw) -> dict[str, float]:
    """Measure how far estimated coefficients (D,), on the CPU, are from the law's.

    Mean squared errors on the causes of the target and on the other inputs; and whether (1 or 0) the model has come to
    the invariant solution, every coefficient within 0.1 of the law's, or to the null solution, within 0.1 of 0. And
    `coefficient.<input>`, the coefficients themselves.
    """
    error = estimated - law.coefficients.to(estimated)
    errors = {
        "coefficient_error_causal": error[law.causal].square().mean().item(),
        "coefficient_error_noncausal": error[~law.causal].square().mean().item(),
        "invariant_solution": float(error.abs().max() < NEAR),
        "null_solution": float(estimated.abs().max() < NEAR),
    }
    return errors | {f"coefficient.{i}": value for i, value in enumerate(estimated.tolist())}


def headlines(metrics: Iterable[str]) -> list[str]:
    """Return the metrics that a summary shows; of those by environment only the worst one."""
    return [name for name in metrics if _is_headline(name)]


def _is_headline(name: str) -> bool:
    """Tell whether a summary shows a metric."""
    column = parse_column(name)
    headline = metric_of(column.metric).headline
    detail = column.source or column.bin or column.environment not in ("", "worst", "group_worst", "group_weighted")
    if headline == "never" or detail:
        return False
    return column.split not in SEEN or (headline == "always" and not column.environment)
