"""Mutual information: penalise what the score tells about a nuisance, as a critic estimates it.

Belghazi et al. (2018), arXiv 1801.04062; the penalties are those of Tan's `invariant_reps`. a is the score, z the
nuisance, z' that of another example, and T(a, z) the critic. A bound I on their mutual information, which the critic
raises:

    donsker_varadhan  E T(a, z) - log E exp T(a, z')
    nwj               E T(a, z) - E exp(T(a, z') - 1)                            (Nguyen, Wainwright, Jordan)
    jsd               log 4 - E sp(-T(a, z)) - E sp(T(a, z'))                    sp(t) = log(1 + exp t)
    infonce           E [T(a, z) - log mean over z and K partners of exp T]      (van den Oord et al.)
    mmd               squared distance of kernel means, without a critic: Σ_σ of HSIC with exp(-d² / 2σ²) on a and on z

jsd is no estimate of mutual information (at its best twice the Jensen-Shannon divergence, at most log 4), but like
the first two it has a critic that ends at log p(a, z) / p(a) p(z), for nwj plus 1. What the network minimises:

    objective = (1/E) Σ_e R_e + λ P

    kl         E T(a, z), with the -1 of nwj: the divergence from joint to product once the critic is right
    minmax     max(I, 0); for mmd its square root
    heuristic  E sp(-T(a, z')): the non-saturating form
    combined   max(I + heuristic, 0)

The batch's gradient of log E exp T is biased. `moving_average` r divides by a running mean of E exp T(a, z') instead,
with weight r on the new one. `gradient_penalty_weight` γ adds γ/2 (E (1-D)² |∇T(a, z)|² + E D² |∇T(a, z')|²), with
D = 1 / (1 + exp -T), to the critic's loss (Roth et al., arXiv 1705.09367).

Deviations from Tan's code: the critic learns on training batches, not on the test's; with background only, the mean of
exponentials is over background; the gradient penalty, broken there, works; partners are not drawn but shifted; HSIC
compares with all pairs of a batch where one set of partners was meant; no second critic watches the label.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.func import vjp

from invbench.components.critic import CriticMethod, Examples, encoding
from invbench.components.penalty import squared_distances
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, is_zero, setting

WIDTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
SMALL = 1e-12


@register_method("mutual_information")
class MutualInformation(CriticMethod):
    """Penalise an estimate of the mutual information between score and nuisance."""

    display_name: ClassVar[str] = "Mutual information"
    requires: ClassVar[tuple[str, ...]] = ("nuisance or environments",)
    small: ClassVar[Mapping[str, Any]] = {
        "method.critic_width": 8,
        "method.critic_steps": 2,
        "method.critic_warm_up": 3,
        "method.pretrain_steps": 2,
    }

    weight: float = setting(10.0, "λ, weight of the penalty", ge=0, search=LogUniform(1e-2, 1e2), fusable=True)
    estimator: Literal["donsker_varadhan", "nwj", "jsd", "infonce", "mmd"] = setting(
        "donsker_varadhan", "the bound that the critic raises; mmd has no critic"
    )
    penalty_form: Literal["kl", "minmax", "heuristic", "combined"] = setting("kl", "what the network minimises")
    moving_average: float = setting(
        0.0, "donsker_varadhan: weight of a batch in the running mean of exp T; 0 is the plain gradient", ge=0, lt=1
    )
    negatives: int = setting(16, "infonce: partners of each example", ge=1)
    gradient_penalty_weight: float = setting(0.0, "γ, of the critic's squared input gradient", ge=0, fusable=True)
    critic_learning_rate: float = setting(
        8e-4, "the critic's step size", gt=0, search=LogUniform(1e-5, 1e-2), fusable=True
    )
    critic_steps: int = setting(8, "the critic's updates ahead of each step of the network", ge=1)

    @model_validator(mode="after")
    def _penalty_fits_the_estimator(self) -> "MutualInformation":
        if self.estimator in ("infonce", "mmd") and self.penalty_form != "minmax":
            raise ValueError(f"{self.estimator} has no critic that is a log-ratio; it needs penalty_form minmax")
        if self.moving_average and self.estimator != "donsker_varadhan":
            raise ValueError("moving_average corrects the gradient of donsker_varadhan only")
        return self

    def network(self, problem: Problem, nuisance: Tensor, features: int) -> nn.Module:
        return StatisticsNetwork(self, problem, nuisance, features)

    def critic(self, problem: Problem, outputs: Outputs) -> Critic | None:
        return None if self.estimator == "mmd" else self.make_critic(problem, outputs)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        first = next(iter(parameters.values()))
        return {"log_mean": torch.full((), -torch.inf, dtype=first.dtype, device=first.device)}

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        """Return -I, with γ/2 times the squared input gradient where that is asked for."""
        examples, shift = self.examples(outputs, batch), state["critic_updates"]
        joint, product = self._values(critic, examples, shift)
        loss = -self._bound(examples, joint, product)
        if self.moving_average:
            loss, state = self._corrected(loss, examples, joint, product[0], state)
        if not is_zero(self.gradient_penalty_weight):
            loss = loss + self.gradient_penalty_weight / 2 * self._input_gradient(critic, examples, shift)
        return loss, state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        examples = self.examples(outputs, batch)
        if self.penalty_form == "kl":
            value = examples.mean(critic(*examples[:3])) - (1 if self.estimator == "nwj" else 0)
            return self.weighted(value, state), state
        joint, product = self._values(critic, examples, state["critic_updates"])
        bound, heuristic = self._bound(examples, joint, product), examples.mean(F.softplus(-product[0]))
        forms = {"minmax": bound, "heuristic": heuristic, "combined": bound + heuristic}
        return self.weighted(forms[self.penalty_form].relu(), state), state

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        if self.estimator != "mmd":
            return risks.new_zeros(()), state
        examples = self.examples(outputs, batch)
        return self.weighted((hsic(examples) + SMALL).sqrt(), state), state

    def _values(self, critic: CriticFn, examples: Examples, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Compute T(a, z), (N,), and T(a, z'), (K, N), in one pass."""
        shifts = [shift + k for k in range(self.negatives if self.estimator == "infonce" else 1)]
        parts = [examples, *map(examples.with_partners, shifts)]
        label = None if examples.label is None else examples.label.repeat(len(parts))
        scores, nuisances = examples.score.repeat(len(parts), 1), torch.cat([part.nuisance for part in parts])
        values = critic(scores, nuisances, label).unflatten(0, (len(parts), -1))
        return values[0], values[1:]

    def _bound(self, examples: Examples, joint: Tensor, product: Tensor) -> Tensor:
        """Compute the bound I from T(a, z), (N,), and T(a, z'), (K, N)."""
        mean = examples.mean
        if self.estimator == "donsker_varadhan":
            return mean(joint) - examples.log_mean_exp(product[0])
        if self.estimator == "nwj":
            return mean(joint) - mean((product[0] - 1).exp())
        if self.estimator == "jsd":
            return math.log(4) - mean(F.softplus(-joint)) - mean(F.softplus(product[0]))
        each = torch.cat([joint[None], product])
        return mean(joint - each.logsumexp(0) + math.log(len(each)))

    def _corrected(
        self, loss: Tensor, examples: Examples, joint: Tensor, product: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Return a value with the gradient of E T(a, z) - E exp T(a, z') / m, m the running mean of E exp T(a, z')."""
        rate, now = self.moving_average, examples.log_mean_exp(product)
        running = torch.logaddexp(state["log_mean"] + math.log1p(-rate), now.detach() + math.log(rate))
        # A mean that starts at zero has only this much of its weights.
        weights = -torch.expm1((state["critic_updates"] + 1) * math.log1p(-rate))
        surrogate = examples.mean(joint) - (now - running + weights.log()).exp()
        return loss.detach() - surrogate + surrogate.detach(), state | {"log_mean": running}

    def _input_gradient(self, critic: CriticFn, examples: Examples, shift: Tensor) -> Tensor:
        """Compute E (1-D)² |∇T(a, z)|² + E D² |∇T(a, z')|², with gradients by the score and real-valued nuisances."""
        total = examples.score.new_zeros(())
        for part, sign in ((examples, -1), (examples.with_partners(shift), 1)):
            values, squares = _squared_gradients(critic, part)
            total = total + examples.mean((sign * values).sigmoid().square() * squares)
        return total


class StatisticsNetwork(nn.Module):
    """T: score (N, features), nuisance (N, nuisances), label (N,) or None -> (N,)."""

    def __init__(self, method: MutualInformation, problem: Problem, nuisance: Tensor, features: int) -> None:
        super().__init__()
        self.encode = encoding(nuisance)
        self.label = method.label_encoding(problem)
        inputs = features + self.encode(nuisance[:1]).shape[1] + self.label.classes
        self.layers = method.perceptron(inputs, 1)

    def forward(self, score: Tensor, nuisance: Tensor, label: Tensor | None) -> Tensor:
        inputs = torch.cat([score, self.encode(nuisance), self.label(label, score)], 1)
        value: Tensor = self.layers(inputs).squeeze(1)
        return value


def hsic(examples: Examples) -> Tensor:
    """Sum over σ the squared distance between the kernel means of (a, z) and of the product of its marginals.

    The biased estimate with kernels exp(-d² / 2σ²), of the examples that count (Gretton et al., 2005).
    """
    score, counts = examples.score, examples.counts
    weights = score.new_ones(len(score)) if counts is None else counts.to(score)
    weights = weights / weights.sum().clamp(min=1)
    distances = [squared_distances(part.to(weights)) for part in (score, examples.nuisance)]
    total = weights.new_zeros(())
    for width in WIDTHS:
        k, m = [(-squares / (2 * width**2)).exp() for squares in distances]
        k_mean, m_mean = k @ weights, m @ weights
        cross = weights @ (k_mean * m_mean)
        total = total + weights @ (k * m) @ weights + (weights @ k_mean) * (weights @ m_mean) - 2 * cross
    return total.relu()


def _squared_gradients(critic: CriticFn, examples: Examples) -> tuple[Tensor, Tensor]:
    """Compute T and |∇T|², both (N,)."""
    continuous = examples.nuisance.is_floating_point()
    inputs = (examples.score, examples.nuisance) if continuous else (examples.score,)

    def value(*arguments: Tensor) -> Tensor:
        nuisance = arguments[1] if continuous else examples.nuisance
        return critic(arguments[0], nuisance, examples.label)

    values, pull = vjp(value, *inputs)[:2]
    squares = [gradient.square().sum(1) for gradient in pull(torch.ones_like(values))]
    return values, torch.stack(squares).sum(0)
