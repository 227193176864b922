"""Hooks that single families of methods need: mixins beside `Method`.

A method that needs one derives from it, and `Composition` asks for it by `isinstance`. Like the hooks of `Method` they
are pure functions of tensors, unless one says something else.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn

from invbench.core.data import Batch, Problem, Split, group_of
from invbench.core.method import Gradients, Method, Outputs, State, class_overrides
from invbench.core.trainer import TrainerConfig

CriticFn = Callable[..., Tensor]
"""Function of a critic: its network with the present weights, applied to the arguments that the hooks give."""
Head = Callable[[Tensor], Tensor]
"""Function of the last linear layer with its present weights: representations (..., features) -> (..., outputs)."""


class GradientPenalty(Method):
    """Mixin: add a penalty on the gradients of the risks."""

    @property
    def penalises_gradients(self) -> bool:
        """Whether `gradient_penalty` counts, with these settings."""
        return True

    @abstractmethod
    def gradient_penalty(self, risk_grads: Gradients, state: State) -> tuple[Tensor, State]:
        """Compute a term of the objective from the risks' gradients (E, *param), which is differentiated once more."""


class WeighsPenalty(Method):
    """Mixin: weigh a penalty against the risk in the gradient rule; another part of `a+b` must have that penalty."""

    penalty_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings of penalties beside such a rule, by the penalty's name. A plain literal."""


class ScaledObjective(Method):
    """Mixin: multiply the whole objective, weight decay and l1 included."""

    @abstractmethod
    def scale(self, state: State) -> Tensor | float:
        """Return the factor of the objective in this step."""


class OptimizerRestarts(Method):
    """Mixin: restart the optimiser in the middle of a run."""

    @abstractmethod
    def restarts(self) -> tuple[int, ...]:
        """Return the steps, counted from 0, ahead of which the optimiser drops its moments and their count."""


class InputChange(Method):
    """Mixin: give the backbone other inputs than the data's."""

    @abstractmethod
    def inputs(self, problem: Problem) -> Problem:
        """Return a problem with inputs of the shape that the backbone gets."""


class MappableNetwork(Method):
    """Mixin: runs with the network of `build` may be trained together.

    It draws nothing, and no fusable setting is in it.
    """


class SecondBackbone(Method):
    """Mixin: make a network of two backbones."""

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        """Refuse: it takes two backbones, which `build_of_two` gets."""
        raise TypeError(f"{type(self).__name__} is built of two backbones, by build_of_two")

    @abstractmethod
    def build_of_two(self, model: nn.Module, second: nn.Module, problem: Problem) -> nn.Module:
        """Make the network.

        Args:
            model: the first backbone, as other parts have changed it.
            second: the same with other first numbers, where these are drawn.
        """


class EnvironmentContext(Method):
    """Mixin: make a network that predicts the examples of one environment together, an `EnvironmentNetwork`."""


class LearningRateChange(Method):
    """Mixin: train with another learning rate than the trainer's."""

    @abstractmethod
    def learning_rate(self, rate: float | Tensor, state: State) -> float | Tensor:
        """Return the learning rate of this step, ahead of the trainer's schedule.

        Args:
            rate: the trainer's.
        """


@dataclass(frozen=True)
class Averaging:
    """Running mean of the weights over steps.

    Args:
        first_step: step, from 1, after which the weights are the first to count; until then the mean is the weights.
        decay: of an exponential mean; None has all weights count alike.
    """

    first_step: int = 1
    decay: float | None = None

    def weight(self, step: int) -> float:
        """Return the share in the mean of the weights after the step with this number, from 1."""
        if step <= self.first_step:
            return 1.0
        return 1 / (step - self.first_step + 1) if self.decay is None else 1 - self.decay


@dataclass(frozen=True)
class Valley:
    """Mean of the weights over windows, the steps between two evaluations, by the validation loss after each.

    Args:
        start_windows: number of windows, the first of which has the lowest loss, that make the start.
        end_windows: number of windows, all of them with a higher loss, that make the end.
        tolerance: part by which losses at the end must be above the mean of those at the start.
    """

    start_windows: int
    end_windows: int
    tolerance: float


class WeightAveraging(Method):
    """Mixin: predict with a mean of the weights."""

    @abstractmethod
    def averaging(self) -> Averaging | Valley:
        """Return which mean evaluations and the finished run have."""


class RandomDraws(Method):
    """Mixin: draw random numbers in hooks as a function of the state, so that whole runs can be mapped.

    The engine adds `state["draws"]` (1,), a number of the run and of the method. `invbench.components.draws` makes
    random numbers of it.
    """


class ExampleCounts(Method):
    """Mixin: know how many training examples there are.

    The engine adds `state["counts"]`: `environments` (E,), and for classification `groups` (labels, attributes), where
    attributes are 1 if training does not know them.
    """

    def group(self, batch: Batch, state: State) -> Tensor:
        """Return the group (E, B) of each example of a batch, label · attributes + attribute."""
        return group_of(batch.y, batch.attribute, state["counts"]["groups"].shape[1])


LossFn = Callable[[Tensor, Tensor], Tensor]
"""Function of predictions (E, B, outputs) and targets (E, B): the task's loss of each example (E, B)."""


class LossChange(Method):
    """Mixin: train on other losses of the examples than the task's; risks R_e are their means."""

    @property
    def changes_losses(self) -> bool:
        """Whether `losses` counts, with these settings."""
        return True

    @abstractmethod
    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        """Return the losses (E, B) of a step; weights of losses should be constants, `detach`ed."""


class ExampleChange(Method):
    """Mixin: train on other examples than those of the training split, or draw them otherwise."""

    @abstractmethod
    def examples(self, given: Split, problem: Problem, generator: np.random.Generator) -> Split:
        """Return the examples that batches are made of.

        Args:
            given: the training split, or what a first stage has made of it.
        """


class Update(NamedTuple):
    """Parameters of one update.

    Args:
        rates: multiples of the learning rate by name of the parameter; parameters that are not named stay, and the
            gradient rule does not see them.
        updates: number of earlier updates of these parameters, for the optimiser's bias correction.
        environment: the only one whose risk these parameters minimise; None for all. The passes of others are left
            out, unless something compares environments (a penalty, a weighting of risks, a change of the batch) or a
            step has not all of them.
    """

    rates: Mapping[str, float]
    updates: int
    environment: int | None = None


class UpdateSchedule(Method):
    """Mixin: change which parameters a step moves, or make one update for each environment."""

    one_per_environment: ClassVar[bool] = False
    """Whether a step makes one update for each environment, one after another, and then calls `finish_step`."""

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        """Return what an update moves, by default all parameters; the others keep their moments too.

        Args:
            names: of all parameters.
            count: number of earlier updates since the optimiser's last restart.
            step: index of the step.
        """
        return Update(dict.fromkeys(names, 1.0), count)

    def finish_step(self, before: Tensor, after: Tensor) -> Tensor:
        """Return a parameter after a step, from its values before the step and after the last update."""
        return after


class BatchMixing(Method):
    """Mixin: change a batch ahead of the forward pass."""

    @abstractmethod
    def mix(self, batch: Batch, state: State) -> Batch:
        """Return the batch (E, B, ...) to train on; it may draw from torch's generator.

        Its `y` may be `invbench.core.data.PairedTargets`: two targets of each example, and the share of the first.
        """


class FeatureTransform(Method):
    """Mixin: change the representation between the network's body and its head, in training only."""

    @abstractmethod
    def features(self, representation: Tensor, head: Head, batch: Batch, state: State) -> Tensor:
        """Return the representation (E, B, features) that the head gets in place of the body's.

        Args:
            head: the last linear layer, with its present weights.
        """


class InnerStep(NamedTuple):
    """Gradient of the objective by every parameter, the objective (0-dimensional) and the risks (E,).

    start: values of all parameters for the update to begin from; empty: the present ones.
    """

    gradients: Gradients
    objective: Tensor
    risks: Tensor
    start: Mapping[str, Tensor] = MappingProxyType({})


StepFn = Callable[[Mapping[str, Tensor], Batch], InnerStep]
"""Function of parameters and a batch: the step that all other hooks make of them."""


class InnerSteps(Method):
    """Mixin: compute the gradient of a step from steps at other parameters, or of other batches."""

    one_environment_at_a_time: ClassVar[bool] = False
    """Whether inner steps are made of single environments, so that nothing can compare them."""

    def is_active(self, step: int) -> bool:
        """Tell whether the step with this index is made of others."""
        return True

    @abstractmethod
    def outer_step(
        self, step: StepFn, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: Tensor
    ) -> tuple[InnerStep, State]:
        """Return the step that the optimiser follows. Other parts' states are those after the first inner step.

        Args:
            step: what it returns has no graph.
            parameters: the present ones.
            rate: this step's learning rate (0-dimensional).
        """


@dataclass(frozen=True)
class Critic:
    """Network beside the model that learns on training batches to predict what the model should not reveal.

    Args:
        network: its modules must not change their buffers; the engine calls it with the arguments that the hooks give.
        trainer: settings of its optimiser.
        steps: number of its updates ahead of each step of the model.
        first_step: step ahead of which it begins to learn, counted from 0.
        warm_up: number of additional updates ahead of that step.
        simultaneous: whether it has one update a step, from the same batch and the same weights as the model's.
    """

    network: nn.Module
    trainer: TrainerConfig
    steps: int = 1
    first_step: int = 0
    warm_up: int = 0
    simultaneous: bool = False


class WithCritic(Method):
    """Mixin: train a critic beside the model, and add a penalty that is computed with the critic."""

    @abstractmethod
    def critic(self, problem: Problem, outputs: Outputs) -> Critic | None:
        """Make a freshly initialised critic, from torch's generator; None where these settings need none.

        Args:
            outputs: of two training examples (1, 2, ...), for the sizes.
        """

    def tells_environments(self, has_nuisance: bool) -> bool:
        """Whether the critic learns to tell environments, of which it knows those that are trained on."""
        return not has_nuisance

    @abstractmethod
    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        """Compute what the critic minimises (0-dimensional), from outputs (E, B, ...) that are constants to it."""

    @abstractmethod
    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        """Compute a term of the objective, to which the critic is a constant."""


CHANGED_BY_HOOKS = {
    "the model": ("build",),
    "the objective": ("risk", "penalty"),
    "the gradient": ("moments", "combine_moments", "combine"),
}
CHANGED_BY_MIXINS: dict[str, tuple[type[Method], ...]] = {
    "the objective": (WithCritic, GradientPenalty, ScaledObjective, LossChange),
    "the batch": (BatchMixing, ExampleChange),
    "the representation": (FeatureTransform,),
    "the gradient": (InnerSteps,),
    "the order of updates": (UpdateSchedule,),
    "the final weights": (WeightAveraging,),
}
"""What a method changes, by the hooks that it overrides and by the mixins that it derives from."""


def changed_by(method: type[Method]) -> list[str]:
    """Say in words which parts of empirical risk minimisation a method changes; none for ERM itself."""
    hooks = [what for what, names in CHANGED_BY_HOOKS.items() if class_overrides(method, *names)]
    mixins = [what for what, kinds in CHANGED_BY_MIXINS.items() if issubclass(method, kinds)]
    return list(dict.fromkeys(hooks + mixins))
