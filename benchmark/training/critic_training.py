"""Training of critics: mutual-information estimators and adversaries, on separate training batches.

Ahead of a step of the model a critic makes its updates. Each takes a fresh batch of the training split through the
network as it is, and leaves the network unchanged: random draws come from a separate stream, and running means of
batch normalisation are restored. So a penalty of weight zero leaves the model's run as it is, bit for bit. The critic's
parameters, buffers and moments are part of the method's state, and with it of checkpoints.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad

from invbench.components.eval_mode import eval_mode
from invbench.core.data import Batch, Problem, Split
from invbench.core.hooks import Critic
from invbench.core.method import Outputs, State, as_outputs
from invbench.pytree import Tree
from invbench.runs.resolve import RunConfig
from invbench.seeding import stream, torch_stream
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective, detached
from invbench.training.optimizers import Optimizer
from invbench.training.phases import timed_phase
from invbench.training.recorded_step import Recorded, Recording
from invbench.training.sampling import Sampler, loader_of

Augment = Callable[[Batch], Batch]
MOST_ROWS, MOST_NUMBERS = 10_000, 2**26
"""Maximum number of examples of a split on which a critic's loss is measured, and of numbers in their inputs."""
CRITIC = ("critic", "critic_updates", "critic_loss")
"""Names in the method's state of what the engine keeps of a critic: tensors, number of updates, the last loss."""


def find_critics(config: RunConfig, problem: Problem, model: nn.Module) -> dict[str, Critic]:
    """Make the critics of a run by part of the method, on the model's device; most runs have none."""
    if not config.method.has_critic:
        return {}
    x = problem.splits["train"].x
    with eval_mode(model), torch.no_grad(), torch_stream(stream(config.spec.seed, "init", "critic"), x.device):
        outputs = as_outputs(model(x[:2])).map(lambda part: part[None])
    critics = config.method.critics(problem, outputs, config.spec.seed)
    for critic in critics.values():
        critic.network.to(x.device, outputs.prediction.dtype)
    return critics


def with_critics(state: State, critics: Mapping[str, Critic]) -> State:
    """Add the state of fresh critics to the method's first state."""
    return state | {name: state[name] | _initial_state(critic) for name, critic in critics.items()}


def _initial_state(critic: Critic) -> State:
    network = FlatModule(critic.network)
    weights = network.weights()
    tensors = {
        "weights": weights,
        "buffers": network.buffers(),
        "optimizer": _optimizer(critic).initial_state({"weights": weights}),
    }
    count = torch.zeros((), dtype=torch.int64, device=weights.device)
    return {"critic": tensors, "critic_updates": count, "critic_loss": weights.new_zeros(())}


def _optimizer(critic: Critic) -> Optimizer:
    return Optimizer.of(critic.trainer, ["weights"])


class CriticTrainer:
    """Critics of a run, and their updates.

    Args:
        objective: of the model.
        augment: the dataset's random change of training inputs.
        recording: what to do with the operations of updates.
    """

    def __init__(
        self,
        critics: Mapping[str, Critic],
        objective: Objective,
        config: RunConfig,
        examples: Split,
        augment: Augment,
        recording: Recording = Recording.NONE,
    ) -> None:
        self.critics, self.objective, self.augment, self.seed = critics, objective, augment, config.spec.seed
        self.environments = len(examples.environment_numbers) or 1
        self.has_nuisance = examples.nuisance is not None  # else a test split alone has one
        samplers = {name: Sampler.of(examples, config.trainer, self.seed, "critic", name) for name in critics}
        self.loaders = {name: loader_of(sampler) for name, sampler in samplers.items()}
        self.optimizers = {name: _optimizer(critic) for name, critic in critics.items()}
        self.slopes = {
            name: Recorded(partial(self._slope, name), objective.model, critic.network, recording=recording)
            for name, critic in critics.items()
        }

    def update_before(self, parameters: Mapping[str, Tensor], state: State, step: int) -> State:
        """Make the updates of the critics ahead of the step with this index. Returns the new state."""
        for name in self.critics:
            counts = self.update_counts(name, step)
            if counts:
                state = self._updates(name, parameters, state, step, counts)
        return state

    def update_counts(self, name: str, step: int) -> range:
        """Return the indices, from 0, of the updates that a critic makes ahead of the step with this index."""
        critic = self.critics[name]
        more = 0 if critic.simultaneous else critic.steps
        first = self.updates_before(critic, step)
        return range(first, first + critic.warm_up * (step == critic.first_step) + more * (step >= critic.first_step))

    def update_beside(self, parameters: Mapping[str, Tensor], batch: Batch, state: State, step: int) -> State:
        """Make the updates of simultaneous critics in a step. Returns their states by part, for the end of the step."""
        updated: State = {}
        for name, critic in self.critics.items():
            if critic.simultaneous and step >= critic.first_step:
                noise = torch_stream(stream(self.seed, "noise", "critic", name, step), batch.x.device)
                with timed_phase("critic"), noise:
                    after = self.update(name, parameters, batch, state, self.updates_before(critic, step))[name]
                    updated[name] = {part: after[part] for part in CRITIC}
        return updated

    @torch.no_grad()
    def losses(self, outputs: Outputs, split: Split, state: State) -> dict[str, Tensor]:
        """Compute critic_loss on the outputs (N, ...) of a split, by part where there are several critics.

        A critic that tells environments has no loss on a split with one that it was not trained on.
        """
        if not self.critics:
            return {}
        most = min(MOST_ROWS, max(1, MOST_NUMBERS // split.x[0].numel()))
        order = np.random.default_rng(0).permutation(len(split))
        rows = torch.from_numpy(order[:most]).to(split.x.device)
        chosen = split.rows(rows)
        env = torch.zeros_like(rows) if chosen.env is None else chosen.env
        nuisance = chosen.nuisance[:, None] if self.has_nuisance and chosen.nuisance is not None else None
        batch = Batch(chosen.inputs()[:, None], chosen.y[:, None], env, nuisance)
        single = outputs.map(lambda part: part[rows][:, None])
        unknown = max(split.environment_numbers, default=0) >= self.environments
        losses = {}
        for name, critic in self.objective.critic_functions(state).items():
            part = self.objective.method.critic_part(name)
            if unknown and part.tells_environments(nuisance is not None):
                continue
            key = "critic_loss" if len(self.critics) == 1 else f"critic_loss_{name}"
            losses[key] = part.critic_loss(critic, single, batch, state[name])[0]
        return losses

    def update(self, name: str, parameters: Mapping[str, Tensor], batch: Batch, state: State, count: int) -> State:
        """Make one update of a part's critic, its `count`-th from 0. Returns the new state of all parts."""
        buffers = dict(self.objective.model.named_buffers())
        network = {"parameters": {name: value.detach() for name, value in parameters.items()}, "buffers": buffers}
        result = self.slopes[name](network | {"batch": batch.tensors(), "state": state[name]})
        with torch.no_grad():
            return self._updated(name, **result, state=state, count=count, rate=self.learning_rate(name))

    def _slope(self, name: str, inputs: Tree) -> Tree:
        """Compute the critic's loss, its gradient, and the state after it."""
        batch, state = Batch(**inputs["batch"]), inputs["state"]
        outputs = self._outputs(inputs, batch)
        weights = state["critic"]["weights"].detach().requires_grad_()
        loss, after = self._loss(name, weights, self.objective, outputs, batch, state)
        gradient = torch.autograd.grad(loss, weights)[0]
        return {"gradient": gradient, "loss": loss.detach(), "after": detached(after)}

    def learning_rate(self, name: str) -> float:
        """Return the learning rate of a part's critic."""
        return self.critics[name].trainer.learning_rate

    def pure_update(
        self,
        name: str,
        objective: Objective,
        outputs: Outputs,
        batch: Batch,
        state: State,
        count: Tensor,
        rate: float | Tensor,
    ) -> State:
        """Make one update as a pure function of tensors, with this learning rate and this objective's method."""

        def loss_of(weights: Tensor) -> tuple[Tensor, tuple[Tensor, State]]:
            loss, after = self._loss(name, weights, objective, outputs, batch, state[name])
            return loss, (loss, after)

        gradient, (loss, after) = grad(loss_of, has_aux=True)(state[name]["critic"]["weights"])
        return self._updated(name, gradient, loss, after, state, count, rate)

    def _loss(
        self, name: str, weights: Tensor, objective: Objective, outputs: Outputs, batch: Batch, state: State
    ) -> tuple[Tensor, State]:
        critic = objective.critics[name].bind(state["critic"] | {"weights": weights})
        return objective.method.critic_part(name).critic_loss(critic, outputs, batch, state)

    def _updated(
        self,
        name: str,
        gradient: Tensor,
        loss: Tensor,
        after: State,
        state: State,
        count: int | Tensor,
        rate: float | Tensor,
    ) -> State:
        tensors = state[name]["critic"]
        weights = {"weights": tensors["weights"]}
        new, moments = self.optimizers[name].step(weights, {"weights": gradient}, tensors["optimizer"], count, rate)
        facts = {"critic_updates": state[name]["critic_updates"] + 1, "critic_loss": loss}
        return state | {name: detached(after | facts | {"critic": tensors | new | {"optimizer": moments}})}

    def _updates(self, name: str, parameters: Mapping[str, Tensor], state: State, step: int, counts: range) -> State:
        device = next(iter(parameters.values())).device
        with timed_phase("critic"), torch_stream(stream(self.seed, "noise", "critic", name, step), device):
            for count in counts:
                batch = self.augment(self.loaders[name].batch(count))
                state = self.update(name, parameters, batch, state, count)
        return state

    @property
    def all_active_from(self) -> int:
        """First step from which on all critics learn, and none is in its warm-up."""
        return max((critic.first_step + 1 for critic in self.critics.values()), default=0)

    @staticmethod
    def updates_before(critic: Critic, step: int) -> int:
        """Return how many updates a critic has had ahead of a step."""
        begun = step - critic.first_step
        return begun * (1 if critic.simultaneous else critic.steps) + critic.warm_up * (begun > 0)

    @torch.no_grad()
    def _outputs(self, inputs: Tree, batch: Batch) -> Outputs:
        """Compute the network's outputs in training mode, without changing its buffers."""
        buffers = {name: value.clone() for name, value in inputs["buffers"].items()}
        return self.objective.batch_outputs({**inputs["parameters"], **buffers}, batch)
