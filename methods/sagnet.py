"""SagNet: classify by the content of a representation, not by its style ("Reducing Domain Gap by Reducing Style Bias").

Nam, Lee, Park, Yoon, Yoo (2021), arXiv 1910.11645, algorithm 1, in DomainBed's form for any network. The style of a
representation φ is its mean μ and its variance v over the features, its content u = (φ - μ) / sqrt(v + 1e-5). With j
another example of the step, drawn at random, α ~ U(0, 1) for each example, h the head, and s a second head:

    style changed     φ' = u_i sqrt(v' + 1e-5) + μ',   μ' = α μ_i + (1 - α) μ_j,  v' = α v_i + (1 - α) v_j
    content changed   φ″ = u_j sqrt(v_i + 1e-5) + μ_i,  without gradient through u_j

    objective = mean ℓ(h(φ'), y) + λ mean_{i,c} -log softmax(s(φ″_i))_c
    s minimises mean ℓ(s(φ″), y), from the same batch and the same weights

Predictions are h(φ). Default and search range are DomainBed's. Deviations: DomainBed updates the body twice in a step,
by one Adam for both terms; here it is one update of their sum. Its second head has the network's learning rate and
weight decay; here it has a rate of its own, and none. j is the next example in a random ring, never i itself.
"""

from typing import ClassVar

from torch import Tensor, nn

from invbench.components.classes import cross_entropy, uniform_cross_entropy
from invbench.components.draws import of_examples, partners
from invbench.components.penalty import representation
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn, FeatureTransform, Head, RandomDraws, WithCritic
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.core.trainer import TrainerConfig

EPSILON = 1e-5
STYLE, OTHER_STYLE, OTHER_CONTENT, ADVERSARY = range(4)
"""Purposes of the random numbers of a step."""


@register_method("sagnet")
class SagNet(RandomDraws, WithCritic, FeatureTransform):
    """Classify representations of changed style, and keep a second head from classifying them by style alone."""

    display_name: ClassVar[str] = "SagNet"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    weight: float = setting(0.1, "λ, of the adversarial term", ge=0, search=LogUniform(1e-2, 10), fusable=True)
    critic_learning_rate: float = setting(
        1e-3, "step size of the second head", gt=0, search=LogUniform(10**-4.5, 10**-2.5), fusable=True
    )

    def features(self, representation: Tensor, head: Head, batch: Batch, state: State) -> Tensor:
        content, mean, variance = parts_of(representation)
        share = of_examples(state, STYLE, batch.env, batch.y.shape[1], representation)[..., None]
        mean = share * mean + (1 - share) * self._of_others(mean, OTHER_STYLE, batch, state)
        variance = share * variance + (1 - share) * self._of_others(variance, OTHER_STYLE, batch, state)
        return content * (variance + EPSILON).sqrt() + mean

    def critic(self, problem: Problem, outputs: Outputs) -> Critic:
        features = representation(outputs, "sagnet").shape[-1]
        trainer = TrainerConfig(steps=1, learning_rate=self.critic_learning_rate)
        return Critic(nn.Linear(features, problem.task.outputs), trainer, simultaneous=True)

    def tells_environments(self, has_nuisance: bool) -> bool:
        return False

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        changed = self._content_changed(representation(outputs, "sagnet"), OTHER_CONTENT, batch, state)
        return cross_entropy(critic(changed), batch.y).mean(), state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        body = outputs.body if outputs.body is not None else representation(outputs, "sagnet")
        changed = self._content_changed(body, ADVERSARY, batch, state)
        return self.weight * uniform_cross_entropy(critic(changed)).mean(), state

    def _content_changed(self, phi: Tensor, purpose: int, batch: Batch, state: State) -> Tensor:
        content, mean, variance = parts_of(phi)
        return self._of_others(content.detach(), purpose, batch, state) * (variance + EPSILON).sqrt() + mean

    @staticmethod
    def _of_others(values: Tensor, purpose: int, batch: Batch, state: State) -> Tensor:
        """Give every example the values (E, B, ...) of another one."""
        keys = of_examples(state, purpose, batch.env, batch.y.shape[1], values)
        others: Tensor = values.flatten(0, 1)[partners(keys.flatten())].unflatten(0, batch.y.shape)
        return others


def parts_of(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return content (..., features), mean and variance (..., 1) of representations."""
    mean = phi.mean(-1, keepdim=True)
    variance = phi.var(-1, keepdim=True)
    return (phi - mean) / (variance + EPSILON).sqrt(), mean, variance
