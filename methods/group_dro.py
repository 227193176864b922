"""Group DRO: minimise a worst-case mixture of the risks ("Distributionally Robust Neural Networks for Group Shifts").

Sagawa, Koh, Hashimoto, Liang (2020), arXiv 1911.08731, algorithm 1, with the risks R_e and one weight q_e for every
training environment, q_e = 1 at first:

    q_e ← q_e exp(η R_e),    q ← q / Σ_e q_e,    objective = Σ_e q_e R_e    with no gradient through q

Default and search range are DomainBed's. Deviation: where a step has some of the environments only, the sum over
these is multiplied by their share's inverse, so that it estimates the whole; the authors' code has all of them.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.core.method import Method, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.core.task import one_hot


@register_method("group_dro")
class GroupDRO(Method):
    """Weigh the environments by exponentiated past risks."""

    display_name: ClassVar[str] = "GroupDRO"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    rate: float = setting(1e-2, "η, step size of the weights", ge=0, search=LogUniform(1e-3, 1e-1), fusable=True)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"weights": next(iter(parameters.values())).new_ones(environments)}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        q = state["weights"]
        present = one_hot(env, len(q), risks.dtype)  # (E, all environments)
        q = torch.softmax(q.log() + self.rate * (risks.detach() @ present), 0)
        return len(q) / len(env) * ((present @ q) * risks).sum(), state | {"weights": q}
