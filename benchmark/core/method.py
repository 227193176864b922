"""The contract of a method: ERM with one thing changed.

Hooks are pure functions of tensors: state comes in and goes out, nothing is printed, moved, written or asked for its
value on the host. That is what lets the engine map one file over environments and over whole runs.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from invbench.core.data import Batch, Problem
from invbench.core.settings import Settings
from invbench.pytree import Tree

Gradients = dict[str, Tensor]
"""One tensor per parameter name."""
State = Tree
"""A nested dictionary of tensors. Its scalars become columns of the run's curves; all of it is checkpointed."""


class Outputs(NamedTuple):
    """Outputs of a network, with the inputs' leading shape.

    prediction (..., outputs); representation (..., features), the input of the last linear layer, where there is one;
    learned: what a model has learned besides its weights, by name, the same for all inputs, such as widths (k,);
    further (..., *): what else a network computes of its inputs, by name.

    The engine adds for penalties: losses (...) of the examples, and loss_gradients (..., outputs) by their predictions;
    head, weights (outputs, features) and biases (outputs,), if it has any, of the last linear layer, where the network
    has one; body (..., features), the representation ahead of a method's change of it.
    """

    prediction: Tensor
    representation: Tensor | None = None
    learned: Mapping[str, Tensor] = MappingProxyType({})
    loss_gradients: Tensor | None = None
    further: Mapping[str, Tensor] = MappingProxyType({})
    losses: Tensor | None = None
    head: tuple[Tensor, Tensor | None] | None = None
    body: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """Apply `change` to what the network computes of its inputs."""
        return self._replace(
            prediction=change(self.prediction),
            representation=None if self.representation is None else change(self.representation),
            further={name: change(value) for name, value in self.further.items()},
        )


def as_outputs(value: Tensor | Outputs) -> Outputs:
    """Wrap logits, which a network may return alone, as outputs."""
    return value if isinstance(value, Outputs) else Outputs(value)


class Method(Settings):
    """Empirical risk minimisation: minimise the mean over environments of the risk R_e.

    A method overrides one of seven hooks, seldom two: `build`, `initial_state`, `risk`, `penalty`, `moments`,
    `combine_moments`, `combine`. What single families need beside them is in `invbench.core.hooks`.

    E is the number of environments in a step, `*param` a parameter's shape. `state` is the method's own: what
    `initial_state` made, plus `state["step"]`, the number of finished steps.
    """

    display_name: ClassVar[str] = ""
    """What papers call it, in tables and figures; the registered name where it is empty. A plain literal."""
    requires: ClassVar[tuple[str, ...]] = ()
    """What the data must provide, e.g. ("environments",) or ("image or point_cloud",); a plain tuple, read without
    importing the file."""

    small: ClassVar[Mapping[str, Any]] = {}
    """Settings by dotted name that make a run take about a second: `invbench.testing` and the tests use them. A plain
    literal."""
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings by dotted name with which a step draws no random numbers, or none that matter, by what the data provide,
    such as "image"; for the same purpose. A plain literal."""

    replaces_model: ClassVar[bool] = False
    """Whether `build` makes a network of its own and ignores the one it is given."""

    couples_rows: ClassVar[bool] = False
    """Whether in the network that `build` makes the rows of a batch depend on each other, as by batch normalisation."""

    trains: ClassVar[bool] = True
    """Whether there is anything to train; without, `build` gives the answer and its network has no free parameters."""

    @property
    def min_environments(self) -> int:
        """Minimum number of environments of a step for the method to differ from ERM."""
        return 2 if "environments" in type(self).requires else 1

    @property
    def min_examples(self) -> int:
        """Minimum number of examples of each environment in a step for the method to be defined."""
        return 1

    @property
    def uses_moments_only(self) -> bool:
        """Whether the penalty of a linear model with squared loss depends on the examples through each environment's
        first and second moments of (x, y) only: then a few examples with the same moments can stand for all."""
        return not overrides(self, "penalty")

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        """Wrap or replace the network. ERM's is the network itself."""
        return model

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        """Return the tensors that hooks carry from step to step, for so many training environments. ERM has none."""
        return {}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the objective, one number, from the risks (E,) of environments, their indices env (E,). ERM: mean."""
        return risks.mean(), state

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        """Return the penalty that is added to the objective; outputs and batch lead with (E, B). ERM: zero."""
        return risks.new_zeros(()), state

    def moments(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Compute element-wise functions of an environment's gradient (..., *param).

        Their means over environments are all that `combine_moments` gets to see, so the engine can add them up one
        environment at a time and never hold E copies of the gradient. ERM needs the gradient itself.
        """
        return (gradient,)

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        """Return the step's gradient from mean moments, each (*param). ERM: the mean gradient plus the penalty's."""
        return {name: mean + penalty_grad[name] for name, (mean, *_) in moments.items()}, state

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        """Return the step's gradient from the gradients (E, *param) of environments env (E,) and that of the penalty.

        Override this only for a rule that no moments can express, as PCGrad's; the engine then holds all E gradients.
        """
        means = {name: tuple(m.mean(0) for m in self.moments(grad)) for name, grad in risk_grads.items()}
        return self.combine_moments(means, penalty_grad, state)


def overrides(method: Method, *hooks: str) -> bool:
    """Whether the method's class replaces any of ERM's hooks of these names."""
    return class_overrides(type(method), *hooks)


def class_overrides(method: type[Method], *hooks: str) -> bool:
    """Tell whether a class overrides a hook."""
    return any(getattr(method, hook) is not getattr(Method, hook) for hook in hooks)
