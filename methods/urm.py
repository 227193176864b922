"""URM: representations should be spread evenly ("Uniformly Distributed Feature Representations").

Krishnamachari, Ng, Foo (2024), "Uniformly Distributed Feature Representations for Fair and Robust Learning", TMLR,
openreview.net/forum?id=PgLbS5yp8n, in DomainBed's form. The representation φ passes through tanh or ReLU. A
discriminator D, in logits, tells it from uniform noise u on (-1, 1), or on (0, 1) for ReLU, in
every feature; σ is the logistic function:

    D minimises mean -log σ(D(u)) + λ mean -log σ(-D(φ)),   from the same batch and the same weights
    objective = (1/E) Σ_e R_e + λ mean -log σ(D(φ))

D has layers of 100 units with LeakyReLU. Defaults and search ranges are DomainBed's for small images. Deviation:
DomainBed's D has the network's weight decay, which is 0 for small images; here it has none.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.penalty import representation
from invbench.core.backbone import network_with_head
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn, WithCritic
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, Uniform, setting
from invbench.core.trainer import TrainerConfig

WIDTH = 100


@register_method("urm")
class URM(WithCritic):
    """Reward representations that a discriminator takes for uniform noise."""

    display_name: ClassVar[str] = "URM"
    small: ClassVar[Mapping[str, Any]] = {"method.critic_depth": 1}

    weight: float = setting(0.1, "λ", ge=0, search=Uniform(0, 0.2), fusable=True)
    activation: Literal["tanh", "relu"] = setting("tanh", "of the representation", search=Choice(("tanh", "relu")))
    critic_depth: int = setting(1, "hidden layers of D, beside the first", ge=0, search=Choice((1, 2, 3)))
    critic_learning_rate: float = setting(
        1e-3, "step size of D", gt=0, search=LogUniform(10**-5.5, 10**-3.5), fusable=True
    )

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        _, network = network_with_head(model)
        network.features = nn.Sequential(network.features, nn.Tanh() if self.activation == "tanh" else nn.ReLU())
        return model

    def critic(self, problem: Problem, outputs: Outputs) -> Critic:
        features = representation(outputs, "urm").shape[-1]
        layers: list[nn.Module] = [nn.Linear(features, WIDTH), nn.LeakyReLU()]
        for _ in range(self.critic_depth):
            layers += [nn.Linear(WIDTH, WIDTH), nn.LeakyReLU()]
        trainer = TrainerConfig(steps=1, learning_rate=self.critic_learning_rate)
        return Critic(nn.Sequential(*layers, nn.Linear(WIDTH, 1)), trainer, simultaneous=True)

    def tells_environments(self, has_nuisance: bool) -> bool:
        return False

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi = representation(outputs, "urm")
        noise = torch.rand_like(phi)  # critics have a generator of their own
        if self.activation == "tanh":
            noise = 2 * noise - 1
        of_noise, of_phi = critic(torch.cat([noise, phi])).chunk(2)
        taken, refused = -F.logsigmoid(of_noise).mean(), -F.logsigmoid(-of_phi).mean()
        return taken + self.weight * refused, state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return -self.weight * F.logsigmoid(critic(representation(outputs, "urm"))).mean(), state
