"""Risk and its slope over the width of a learned distribution: why Augerino's widths end where they do.

One raw number ρ of a trained run goes through a range while all else is fixed; a batch gets the same random numbers at
every ρ. Batches are those of the run's first epoch, inputs are transformed as in training, the network is otherwise in
evaluation mode (arXiv 2010.11882, section 5; the authors' `Mario_rotation_width` has 25 batches and 20 values).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from invbench.components.augmentation import Averaged
from invbench.components.learned import LearnedScalars, learned_parameters
from invbench.console import OnProgress
from invbench.errors import UserError, did_you_mean
from invbench.seeding import stream, torch_stream
from invbench.training.examples import counts_of
from invbench.training.gradients import Objective
from invbench.training.restored import RestoredRun
from invbench.training.sampling import Sampler, loader_of

COLUMNS = ("batch", "raw", "width", "risk", "risk_slope", "objective", "objective_slope")
"""Columns of the table, besides the task's primary metric. Slopes are derivatives by the raw number."""


def width_study(
    run: RestoredRun,
    generator: str = "rotation",
    raws: Sequence[float] | None = None,
    batches: int = 25,
    on_progress: OnProgress = int,
) -> pd.DataFrame:
    """Make a table with a row for every batch and value of one generator's raw number.

    Args:
        raws: the values; None takes 20 from -5 to 5.
        on_progress: called with the number of rows that are done.

    Raises:
        UserError: the run has learned no width of that generator, has a critic, or penalises gradients.
    """
    name, learned = _learned(run, generator)
    if run.config.method.has_critic or run.config.method.has_gradient_penalty:
        raise UserError(f"{run.config.title} has a critic or a penalty on gradients, which this does not count")
    index, task = learned.names.index(generator), run.problem.task
    objective = Objective(run.config.method, task, run.model, "joint")
    seed, method = run.config.spec.seed, run.config.method
    examples = method.examples(run.problem, seed)
    sampler = Sampler.of(examples, run.config.trainer, seed)
    counts = counts_of(examples, run.problem)
    state = method.initial_state(dict(run.model.named_parameters()), sampler.environments, counts=counts)
    loader, rows = loader_of(sampler), []
    with _transforming(run):
        for number in range(batches):
            batch = loader.batch(number)
            for value in np.linspace(-5, 5, 20) if raws is None else raws:
                raw = learned.raw.detach().clone()
                raw[index] = value
                theta = {name: raw.requires_grad_()}
                with torch_stream(stream(run.config.spec.seed, "analysis", "widths", number), raw.device):
                    risks, outputs = objective.joint(theta, batch, state)
                risk, _ = run.config.method.risk(risks, batch.env, state)
                penalty, _ = run.config.method.penalty(risks, outputs, batch, state, {})
                score = task.scores(outputs.prediction, batch.y)[task.primary].mean()
                slopes = [_slope(part, raw, index) for part in (risk, risk + penalty)]
                width = learned.function(raw)[index]
                values = (width, risk, slopes[0], risk + penalty, slopes[1], score)
                rows.append([number, value, *(tensor.item() for tensor in values)])
                on_progress(len(rows))
    return pd.DataFrame(rows, columns=[*COLUMNS, task.primary])


def learned_width(run: RestoredRun, generator: str) -> float:
    """Return the width that the run ended with."""
    _, part = _learned(run, generator)
    width: float = part()[part.names.index(generator)].item()
    return width


def _learned(run: RestoredRun, generator: str) -> tuple[str, LearnedScalars]:
    """Return the vector that has the generator's raw number, with the name of its parameter."""
    widths = {name: part for name, part in learned_parameters(run.model).items() if part.what == "width"}
    known = [known_name for part in widths.values() for known_name in part.names]
    for name, part in widths.items():
        if generator in part.names:
            return name, part
    lacking = f"no width of '{generator}'{did_you_mean(generator, known)}" if known else "no widths; augerino does"
    raise UserError(f"{run.config.title} has learned {lacking}")


@contextmanager
def _transforming(run: RestoredRun) -> Iterator[None]:
    """Transform inputs as often as in training, within this block."""
    averaged = [part for part in run.model.modules() if isinstance(part, Averaged)]
    for part in averaged:
        part.training = True  # of itself, not of the network within
    try:
        yield
    finally:
        run.model.eval()


def _slope(value: Tensor, raw: Tensor, index: int) -> Tensor:
    """Compute the derivative by one raw number."""
    (gradient,) = torch.autograd.grad(value, raw, retain_graph=True, materialize_grads=True)
    return gradient[index]
