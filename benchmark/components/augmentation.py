"""Base of augmentation methods: models that average over random transformations of their input."""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from invbench.components.affine import action, basis, exponential, generators
from invbench.components.learned import LearnedScalars
from invbench.components.symmetry import LearnedSymmetry
from invbench.core.data import Problem
from invbench.core.method import Method, Outputs, as_outputs
from invbench.core.settings import Choice, setting
from invbench.core.task import Average, Task
from invbench.errors import UserError, did_you_mean

Interval = Literal["symmetric", "one_sided"]


class AugmentationMethod(Method):
    """h(x) = (1/J) Σ_j f(g_j x), with random transformations g_j; what they are is left to the method.

    Where J = 0, inputs are taken as they are. Copies go through the network in one batch.
    """

    train_copies: int = setting(1, "J in training", ge=0, search=Choice((1, 4)))
    test_copies: int = setting(4, "J in evaluation", ge=0, search=Choice((1, 4)))
    average: Average = setting(
        "log_probabilities", "what is averaged over the copies of an input; a regression averages its outputs"
    )

    @abstractmethod
    def transformation(self, problem: Problem) -> nn.Module:
        """Make a module that transforms each input of (N, ...) by a random element drawn for it."""

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return Averaged(self, self.transformation(problem), model, problem.task)


class Averaged(nn.Module):
    """Model averaged over copies of its input. Its outputs carry the numbers that the transformation has learned."""

    def __init__(self, method: AugmentationMethod, transformation: nn.Module, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.method, self.task, self.transformation, self.model = method, task, transformation, model
        self.learned = tuple(part for part in transformation.modules() if isinstance(part, LearnedScalars))

    def forward(self, x: Tensor) -> Outputs:
        copies = self.method.train_copies if self.training else self.method.test_copies
        if copies == 0:
            outputs = as_outputs(self.model(x))
        else:
            repeated = x.expand(copies, *x.shape).flatten(0, 1)
            each = as_outputs(self.model(self.transformation(repeated)))
            outputs = self._averaged(each.map(lambda part: part.unflatten(0, (copies, len(x)))))
        return outputs._replace(learned={**outputs.learned, **{part.what: part() for part in self.learned}})

    def _averaged(self, copies: Outputs) -> Outputs:
        """Average the outputs (J, N, ...) of copies to (N, ...)."""
        if len(copies.prediction) == 1:
            return copies.map(lambda part: part[0])
        mean = copies.map(lambda part: part.mean(0))
        return mean._replace(prediction=self.task.average(copies.prediction, self.method.average))


def test_copies(model: nn.Module) -> int:
    """Return how many copies of an input go through the network in evaluation."""
    return math.prod(max(1, part.method.test_copies) for part in model.modules() if isinstance(part, Averaged))


class RandomAffine(LearnedSymmetry):
    """x -> exp(Σ_k ε_k G_k) x with ε_k uniform on an interval of width w_k, independently for every input.

    Args:
        problem: tells which generators there are and how they act.
        widths: a module that gives the widths (k,), from `forward`.
        names: the generators G_k.
        interval: symmetric is (-w/2, w/2), one_sided (0, w).
    """

    basis: Tensor

    def __init__(self, problem: Problem, widths: nn.Module, names: tuple[str, ...], interval: Interval) -> None:
        super().__init__()
        self.widths, self.names, self.act = widths, names, action(problem)
        self.start = 0.5 if interval == "symmetric" else 0.0
        self.register_buffer("basis", basis(problem, names), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(len(x), len(self.basis), dtype=x.dtype, device=x.device)
        return self.transformed(x, noise)

    def extent(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        widths = self.widths()[:, None]
        return dict(zip(self.names, zip(-self.start * widths, (1 - self.start) * widths, strict=True), strict=True))

    def transformed(self, x: Tensor, noise: Tensor) -> Tensor:
        """Transform inputs (N, ...) by the elements that noise (N, k) in [0, 1) stands for."""
        with torch.autocast(x.device.type, enabled=False):
            coefficients = (noise - self.start) * self.widths()
            return self.act(x, exponential(coefficients, self.basis))


def known_generators(problem: Problem, names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the names, checked. Raises UserError for one that the inputs do not have, or that is there twice."""
    known = generators(problem)
    for name in set(names):
        if names.count(name) > 1:
            raise UserError(f"{where}: '{name}' is there twice; leave one out")
    for name in names:
        if name not in known:
            inputs = problem.kind.replace("_", " ")
            raise UserError(f"{where}: {inputs}s have no generator '{name}'{did_you_mean(name, known)}")
    return names
