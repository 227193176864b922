"""Group DRO: minimise a worst-case mixture of the risks ("Distributionally Robust Neural Networks for Group Shifts").

Sagawa, Koh, Hashimoto, Liang (2020), arXiv 1911.08731, algorithm 1, with the risks R_e and one weight q_e for every
training environment, q_e = 1 at first:

    q_e ← q_e exp(η (R_e + C/√n_e)),    q ← q / Σ_e q_e,    objective = Σ_e q_e R_e    with no gradient through q

n_e is the number of training examples, and C/√n_e the adjustment of section 3.3 for how far an environment's risk is
below that of new examples. With `dataset.environment_from=group` the environments are groups, as in the paper, of which
a step has equally many examples, as in the authors' code. Default and search range of η are DomainBed's. Deviation:
where a step has some of the environments only, the sum over these is multiplied by their share's inverse, so that it
estimates the whole; the authors' code has all of them.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.core.hooks import ExampleCounts
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.core.task import one_hot


@register_method("group_dro")
class GroupDRO(ExampleCounts):
    """Weigh the environments by exponentiated past risks."""

    display_name: ClassVar[str] = "GroupDRO"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    rate: float = setting(1e-2, "η, step size of the weights", ge=0, search=LogUniform(1e-3, 1e-1), fusable=True)

    adjustment: float = setting(0.0, "C, of how much more risk a small environment is expected to have: C/√n", ge=0)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"weights": next(iter(parameters.values())).new_ones(environments)}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        q = state["weights"]
        present = one_hot(env, len(q), risks.dtype)  # (E, all environments)
        expected = risks.detach()
        if self.adjustment:
            expected = expected + self.adjustment * (present @ state["counts"]["environments"]).rsqrt()
        q = torch.softmax(q.log() + self.rate * (expected @ present), 0)
        return len(q) / len(env) * ((present @ q) * risks).sum(), state | {"weights": q}
