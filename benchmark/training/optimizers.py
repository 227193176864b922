"""Adam and SGD as pure functions of tensors: parameters, gradients and state in, parameters and state out.

Nothing is changed in place and every number may be a tensor with a leading axis of runs, so that whole runs can be
stacked. Against torch.optim they differ by rounding only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from invbench.core.method import Gradients
from invbench.core.settings import is_zero
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError

OptimizerState = dict[str, dict[str, Tensor]]
"""Moments by name, for every parameter name."""


@dataclass(frozen=True)
class Optimizer:
    """Update rule with its settings.

    Args:
        trainer: the settings of the run.
        decays: weight decay of every parameter by name.
        factors: multiples of the learning rate, by name, of parameters that do not have the trainer's.
        learned: names of the parameters that are no weights; they have neither decay nor l1.
    """

    trainer: TrainerConfig
    decays: Mapping[str, float | Tensor]
    factors: Mapping[str, float]
    learned: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        trainer: TrainerConfig,
        names: Iterable[str],
        learned: Mapping[str, float | None] | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> "Optimizer":
        """Make the optimiser of these settings. Raises UserError where a pattern of `weight_decay_of` matches no name.

        Args:
            names: of all parameters.
            learned: those of them that are no weights, with their learning rates; None is the trainer's.
            factors: multiples of the learning rate of weights.
        """
        names = list(names)
        for pattern in trainer.weight_decay_of:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"trainer.weight_decay_of: no parameter matches '{pattern}'; names: {', '.join(names)}")
        learned = learned or {}
        rates = {name: 1.0 if rate is None else rate / trainer.learning_rate for name, rate in learned.items()}
        return cls(
            trainer,
            {name: 0.0 if name in learned else _decay_of(name, trainer) for name in names},
            {**(factors or {}), **rates},
            frozenset(learned),
        )

    def initial_state(self, parameters: Mapping[str, Tensor]) -> OptimizerState:
        """Return zero moments for every parameter."""
        moments = ("first", "second") if self.trainer.optimizer == "adam" else ("velocity",)
        return {name: {m: torch.zeros_like(value) for m in moments} for name, value in parameters.items()}

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Gradients,
        state: OptimizerState,
        count: int | Tensor,
        rate: float | Tensor,
        scale: Tensor | float = 1.0,
    ) -> tuple[dict[str, Tensor], OptimizerState]:
        """Compute the parameters and the state after one update.

        Args:
            count: index of this update, from 0.
            rate: this step's learning rate of the weights.
            scale: of the objective, with l1 and the weight decay that is added to the gradient.
        """
        update = self._adam if self.trainer.optimizer == "adam" else self._sgd
        new: dict[str, Tensor] = {}
        moments: OptimizerState = {}
        for name, theta in parameters.items():
            decay = self.decays[name]
            gradient = gradients[name]
            if not is_zero(self.trainer.l1) and name not in self.learned:
                gradient = gradient + self.trainer.l1 * theta.sign()
            coupled = self.trainer.weight_decay_order == "before"
            if coupled and not is_zero(decay):
                gradient = gradient + decay * theta
            if isinstance(scale, Tensor) or scale != 1:
                gradient = gradient * scale
            size, direction, moments[name] = update(gradient, state[name], count, rate * self.factors.get(name, 1.0))
            new[name] = theta - size * direction
            if not coupled and not is_zero(decay):
                new[name] = new[name] - size * decay * new[name]
        return new, moments

    def _adam(
        self, g: Tensor, state: dict[str, Tensor], count: int | Tensor, rate: float | Tensor
    ) -> tuple[float | Tensor, Tensor, dict[str, Tensor]]:
        """Compute step size, direction and moments of Adam: Kingma & Ba (2015), algorithm 1.

        The step size carries the first moment's bias correction.
        """
        beta1, beta2 = self.trainer.betas
        m = torch.lerp(state["first"], g, 1 - beta1)
        v = beta2 * state["second"] + (1 - beta2) * g * g
        denominator = (v / (1 - beta2 ** (count + 1))).sqrt() + self.trainer.epsilon
        return rate / (1 - beta1 ** (count + 1)), m / denominator, {"first": m, "second": v}

    def _sgd(
        self, g: Tensor, state: dict[str, Tensor], count: int | Tensor, rate: float | Tensor
    ) -> tuple[float | Tensor, Tensor, dict[str, Tensor]]:
        """Compute step size, direction and velocity of SGD: heavy-ball momentum without dampening, or Nesterov's."""
        velocity = self.trainer.momentum * state["velocity"] + g
        direction = g + self.trainer.momentum * velocity if self.trainer.nesterov else velocity
        return rate, direction, {"velocity": velocity}


def _decay_of(name: str, trainer: TrainerConfig) -> float:
    for pattern, decay in trainer.weight_decay_of.items():
        if fnmatchcase(name, pattern):
            return decay
    return trainer.weight_decay
