"""IRM games: every environment owns a classifier, their mean predicts ("Invariant Risk Minimization Games").

Ahuja, Shanmugam, Varshney, Dhurandhar (2020), arXiv 2002.04692. With networks w_1..w_E on a representation Φ and the
risks R_e of their mean:

    f(x) = (1/E) Σ_e w_e(Φ(x)),     player e minimises R_e(f) over w_e alone

    fixed      Φ is the identity; one player moves in each step, in turn: e = t mod E
    variable   Φ is one dense layer, a player too, which minimises the mean risk at `representation_rate` times the
               learning rate; one moves in each step: first Φ, then the players from the last to the first
    at_once    all players (and Φ) move in each step, as in the published fork of the authors' code

A player has its own Adam: whoever does not move keeps weights and moments. Every step needs all environments. Accuracy
in training goes up and down, and the authors stop low, once the step's accuracy is below 0.6: `trainer.stop_below` and
`trainer.stop_after`. That is a choice about the colour of coloured digits, for which the defaults (the authors': 390
units, ELU, dropout 0.75) are made.

Deviations: the authors' code multiplies the sum of logits by 1/2 whatever E is; this takes the mean. They stop by the
accuracy of the step's own pass, with dropout; this by that in evaluation mode.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from invbench.core.data import Problem
from invbench.core.hooks import Update, UpdateSchedule
from invbench.core.method import Gradients, Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.errors import UserError

MOST = 64
"""Environments."""


@register_method("irm_games")
class IRMGames(UpdateSchedule):
    """An ensemble in which every environment trains its own member."""

    display_name: ClassVar[str] = "IRM Games"
    requires: ClassVar[tuple[str, ...]] = ("vector or image", "environments", "classification")
    replaces_model: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"method.width": 8}
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"method.dropout": 0.0}}

    variant: Literal["fixed", "variable"] = setting("fixed", "Φ is the identity, or a dense layer that learns")
    order: Literal["in_turn", "at_once"] = setting("in_turn", "who moves in a step: one player, or all")
    width: int = setting(390, "units of Φ and of each hidden layer", ge=1)
    depth: int = setting(2, "hidden layers of a player", ge=0)
    dropout: float = setting(0.75, "probability of dropping a hidden unit in training", ge=0, lt=1)
    representation_rate: float = setting(0.1, "Φ's multiple of the learning rate", gt=0)

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        if problem.environments > MOST:
            raise UserError(f"irm_games makes a network for each environment, at most {MOST}; these data have more")
        inputs, outputs = torch.Size(problem.input_shape).numel(), problem.task.outputs
        representation: nn.Module = nn.Flatten()
        if self.variant == "variable":
            representation, inputs = nn.Sequential(nn.Flatten(), dense(inputs, self.width), nn.ELU()), self.width
        return Ensemble(representation, [self._player(inputs, outputs) for _ in range(problem.environments)])

    def _player(self, inputs: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(self.depth):
            layers += [dense(inputs, self.width), nn.ELU(), nn.Dropout(self.dropout)]
            inputs = self.width
        return nn.Sequential(*layers, dense(inputs, outputs))

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        """Give player e the gradient of R_e, and the representation Φ that of the mean."""
        gradients: Gradients = {}
        for name, g in risk_grads.items():
            player = player_of(name)
            if player is None:
                gradients[name] = g.mean(0) + penalty_grad[name]
            else:
                is_player = (env == player).to(g.dtype)  # (E,)
                gradients[name] = torch.einsum("e,e...->...", is_player, g) + penalty_grad[name]
        return gradients, state

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        owners = {name: player_of(name) for name in names}
        rates = {name: self.representation_rate if owner is None else 1.0 for name, owner in owners.items()}
        if self.order == "at_once":
            return Update(rates, count)
        players = sorted({owner for owner in owners.values() if owner is not None})
        order: list[int | None] = list(players) if self.variant == "fixed" else [None, *reversed(players)]
        now = order[count % len(order)]
        moving = {name: rate for name, rate in rates.items() if owners[name] == now}
        return Update(moving, count // len(order), environment=now)


class Ensemble(nn.Module):
    """Mean of the players' predictions on one representation."""

    def __init__(self, representation: nn.Module, players: list[nn.Module]) -> None:
        super().__init__()
        self.representation, self.players = representation, nn.ModuleList(players)

    def forward(self, x: Tensor) -> Outputs:
        phi = self.representation(x)
        return Outputs(torch.stack([player(phi) for player in self.players]).mean(0), phi)


def player_of(name: str) -> int | None:
    """Return the player that a parameter belongs to, by its name; None for the representation's."""
    _, separator, rest = f".{name}".partition(".players.")
    return int(rest.partition(".")[0]) if separator else None


def dense(inputs: int, outputs: int) -> nn.Linear:
    """Make a linear layer with Xavier-uniform weights and biases of 0, as in Keras."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
