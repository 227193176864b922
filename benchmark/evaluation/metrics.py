"""Metrics of whole splits, with one transfer to the host a split, and of the law that a linear model has found."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from invbench.components.augmentation import test_copies
from invbench.core.data import LinearLaw, Problem, Split
from invbench.core.method import Outputs, as_outputs
from invbench.core.metric import SEEN, metric_of, parse_column
from invbench.core.task import Task
from invbench.errors import UserError
from invbench.evaluation.eval_mode import eval_mode
from invbench.seeding import stream, torch_stream

ENVIRONMENTS = 32
"""As many environments as a split is measured on one by one."""
NEAR = 0.1
ROWS = {"cpu": 128, "cuda": 4096}
"""Examples, or copies of them, evaluated together: on a CPU as many as stay in its caches,"""
NUMBERS = 2**14
"""or, of small inputs, as many as have so many numbers."""


Measure = Callable[[Outputs, Split], Mapping[str, float]]
"""Further metrics of a split, from the outputs (N, ...) of all its examples."""


def evaluate(
    model: nn.Module, problem: Problem, splits: Iterable[str], seed: int, step: int, further: Measure | None = None
) -> dict[str, float]:
    """Every metric of the named splits, e.g. `test_accuracy`; the model is in evaluation mode meanwhile.

    A model that is random in evaluation draws from a stream of its own, fixed by seed and step, so that how often one
    looks does not change what is trained.
    """
    device = problem.splits["train"].x.device
    with eval_mode(model), torch.no_grad(), torch_stream(stream(seed, "evaluation", step), device):
        metrics = {
            f"{name}_{metric}": value
            for name in splits
            for metric, value in split_metrics(model, problem.task, problem.splits[name], further).items()
        }
        if problem.law is not None:
            metrics |= coefficient_metrics(coefficients(model, problem, problem.law), problem.law)
    return metrics


def watched_splits(problem: Problem, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The splits that are measured during training, all but `train` where names is None. Raises UserError."""
    known = tuple(problem.splits)
    if names is None:
        return tuple(name for name in known if name != "train")
    for name in names:
        if name not in known:
            raise UserError(f"trainer.evaluate_splits: no split '{name}'; there are {', '.join(known)}")
    return names


def split_metrics(model: nn.Module, task: Task, split: Split, further: Measure | None = None) -> Mapping[str, float]:
    """Means over the split of the task's scores, and of the primary one over its environments.

    Where a split has 2 to 32 environments: `<primary>_env<e>` of each, `<primary>_average` of these, and
    `<primary>_worst` of them.
    """
    found = outputs_of(model, split.x)
    scores = {metric: values.double() for metric, values in task.scores(found.prediction, split.y).items()}
    means = {metric: values.mean() for metric, values in scores.items()}
    means |= _by_environment(task, scores[task.primary], split.env)
    metrics = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
    return metrics if further is None else {**metrics, **further(found, split)}


def _by_environment(task: Task, scores: torch.Tensor, env: torch.Tensor | None) -> dict[str, torch.Tensor]:
    present = [] if env is None else env.unique().tolist()
    if not 2 <= len(present) <= ENVIRONMENTS:
        return {}
    each = {f"{task.primary}_env{e}": scores[env == e].mean() for e in present}
    values = torch.stack(list(each.values()))
    worst = values.min() if task.higher_is_better else values.max()
    return each | {f"{task.primary}_average": values.mean(), f"{task.primary}_worst": worst}


def outputs_of(model: nn.Module, x: torch.Tensor) -> Outputs:
    """The model's predictions on inputs (N, ...), and representations where it has them, from as many at a time as is
    fast."""
    rows = max(ROWS[x.device.type], NUMBERS // x[0].numel())
    parts = [as_outputs(model(part)) for part in x.split(max(1, rows // test_copies(model)))]
    representations = [part.representation for part in parts if part.representation is not None]
    return Outputs(
        torch.cat([part.prediction for part in parts]), torch.cat(representations) if representations else None
    )


def coefficients(model: nn.Module, problem: Problem, law: LinearLaw) -> torch.Tensor:
    """The model's coefficients (D,), those of scrambled inputs unscrambled.

    A coefficient is the mean derivative of the prediction by an input over the test split: the weight of a linear
    model, and what is nearest to it in another.
    """
    with torch.enable_grad():
        inputs = problem.splits["test"].x.detach().clone().requires_grad_()
        prediction = as_outputs(model(inputs)).prediction.sum()
        found = torch.autograd.grad(prediction, inputs)[0].mean(0) * getattr(problem.task, "std", 1.0)
    return found if law.mixing is None else law.mixing.to(found) @ found


def coefficient_metrics(found: torch.Tensor, law: LinearLaw) -> dict[str, float]:
    """How far the coefficients (D,) are from the law's.

    Mean squared errors on the causes of the target and on the other inputs; and whether (1 or 0) the model has come to
    the invariant solution, every coefficient within 0.1 of the law's, or to the null solution, within 0.1 of 0. And
    `coefficient.<input>`, the coefficients themselves.
    """
    error = found - law.coefficients.to(found)
    causal = law.causal.to(found.device)
    errors = {
        "coefficient_error_causal": error[causal].square().mean().item(),
        "coefficient_error_noncausal": error[~causal].square().mean().item(),
        "invariant_solution": float(error.abs().max() < NEAR),
        "null_solution": float(found.abs().max() < NEAR),
    }
    return errors | {f"coefficient.{i}": value for i, value in enumerate(found.tolist())}


def headlines(metrics: Iterable[str]) -> list[str]:
    """The metrics that are worth a reader's first look: of environments only the worst, and only in the test."""
    return [name for name in metrics if _is_headline(name)]


def _is_headline(name: str) -> bool:
    column = parse_column(name)
    headline = metric_of(column.metric).headline
    detail = column.source or column.bin or column.environment not in ("", "worst")
    if headline == "never" or detail:
        return False
    return column.split not in SEEN or (headline == "always" and not column.environment)
