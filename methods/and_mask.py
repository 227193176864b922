"""AND-mask and geometric mean of environment gradients ("Learning explanations that are hard to vary").

Parascandolo, Neitz, Orvieto, Gresele, Schölkopf (2020), arXiv 2009.00329. For every parameter tensor apart, with the
gradient g_e of each environment's risk, e = 1..E, all operations element-wise:

    ḡ = (1/E) Σ_e g_e
    a = |(1/E) Σ_e sign(g_e)|                                 agreement of the signs, sign(0) = 0
    m = 1[a ≥ τ]                                              the mask
    mask:            g = m ḡ
    geometric_mean:  g = m sign(ḡ) exp((1/E) Σ_e log(|g_e| + 1e-10))
    scaled:          g / (1e-10 + mean(m))                    mean over the tensor's elements

τ = 0 with the mask rule is ERM. Weight decay comes after the mask, in the optimiser, so it also shrinks what the mask
holds still: that is how features on which environments disagree are forgotten.

Variants elsewhere: the linear unit tests have a > τ (`strict`; nothing survives at τ = 1), no scaling, and divide each
environment's gradient of the weights, not of the biases, by its norm first (`normalise`). DomainBed always scales.

**Extension, not in the released code**: `temporal_memory` β compares signs over time as well as over environments. The
paper names a "temporal AND-mask" without defining it; this is the simplest rule of that kind. With the mean sign
s_t over the environments of step t, which may be one alone, a is the running mean

    a = |c_t| / (1 - β^t),    c_t = β c_{t-1} + (1 - β) s_t,    c_0 = 0

Deviations from the authors' code: none in the rule. The sum of signs is exact, as sums of ±1 are in floating point,
and then divided once by E, so that τ on the lattice k/E is compared without rounding. A penalty of another method is
added after the mask, as weight decay is.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invbench.core.method import Gradients, Method, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, Uniform, setting

TINY = 1e-10


@register_method("and_mask")
class ANDMask(Method):
    """Keep a gradient element only where the environments agree on its sign."""

    display_name: ClassVar[str] = "AND-mask"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    threshold: float = setting(
        1.0,
        "agreement τ that an element needs to survive; 1 is unanimity",
        ge=0,
        le=1,
        search=Uniform(0, 1),
        fusable=True,
    )
    rule: Literal["mask", "geometric_mean"] = setting(
        "mask", "size of a surviving element: arithmetic or geometric mean", search=Choice(("mask", "geometric_mean"))
    )
    scale_by_inverse_sparsity: bool = setting(
        True, "divide each tensor by the fraction of its elements that survived", search=Choice((False, True))
    )

    strict: bool = setting(False, "an element needs more than τ, not at least τ")
    normalise: bool = setting(False, "divide each environment's gradient of a weight matrix by its norm first")
    temporal_memory: float | None = setting(
        None, "β of the running mean of signs over steps, an extension; null for the paper's rule", gt=0, lt=1
    )

    @property
    def min_environments(self) -> int:
        return 2 if self.temporal_memory is None else 1

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        """Return the share of elements that survived the last step, for the curves; with a memory, c too."""
        state: State = {"surviving_fraction": next(iter(parameters.values())).new_ones(())}
        if self.temporal_memory is not None:
            state["signs"] = {name: torch.zeros_like(value) for name, value in parameters.items()}
        return state

    def moments(self, gradient: Tensor) -> tuple[Tensor, ...]:
        if self.normalise and gradient.ndim > 2:
            norms = gradient.flatten(1).norm(dim=1).clamp(min=TINY)
            gradient = gradient / norms.reshape(-1, *[1] * (gradient.ndim - 1))
        if self.rule == "mask":
            return gradient, gradient.sign()
        return gradient, gradient.sign(), (gradient.abs() + TINY).log()

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        gradients: Gradients = {}
        surviving: list[Tensor] = []
        if self.temporal_memory is not None:
            moments, state = self._remembered(self.temporal_memory, moments, state)
        for name, (mean, mean_sign, *mean_log) in moments.items():
            agreement = mean_sign.abs()
            mask = (agreement > self.threshold if self.strict else agreement >= self.threshold).to(mean.dtype)
            size = mean.sign() * mean_log[0].exp() if mean_log else mean
            scale = 1 / (TINY + mask.mean()) if self.scale_by_inverse_sparsity else 1
            gradients[name] = scale * mask * size + penalty_grad[name]
            surviving.append(mask.sum())
        elements = sum(mean.numel() for mean, *_ in moments.values())
        return gradients, state | {"surviving_fraction": torch.stack(surviving).sum() / elements}

    def _remembered(
        self, memory: float, moments: Mapping[str, tuple[Tensor, ...]], state: State
    ) -> tuple[dict[str, tuple[Tensor, ...]], State]:
        """Replace the signs in the moments by running means. Returns the moments, and the state with the means."""
        old = state["signs"]
        signs = {name: memory * old[name] + (1 - memory) * sign for name, (_, sign, *_) in moments.items()}
        weight = 1 - memory ** (state["step"] + 1)
        with_means = {name: (mean, signs[name] / weight, *rest) for name, (mean, _, *rest) in moments.items()}
        return with_means, state | {"signs": signs}
