"""IRMv1: penalise the gradient of each risk by a dummy classifier ("Invariant Risk Minimization").

Arjovsky, Bottou, Gulrajani, Lopez-Paz (2019), arXiv 1907.02893, with the risk R_e(w·Φ) of environment e when the
network's prediction Φ goes through a classifier w that is held at w = 1:

    objective = (1/E) Σ_e R_e + λ (1/E) Σ_e ‖∇_w R_e(w·Φ)‖²  at w = 1

With z an example's prediction and δ = ∂loss/∂z its loss gradient, no second backward pass is needed:

    scale             w multiplies z:           ∇_w R_e = mean_i Σ_c z_ic δ_ic      (cross-entropy: Σ_c p_c z_c - z_y)
    scale_and_offset  and b = 0 is added to it: ∇_b R_e = mean_i Σ_c δ_ic           (linear unit tests)
    head              w is the last linear layer's weights on φ: mean_i δ_i φ_iᵀ    (the IRM chain; λ has their D in it)
    split             w are the parameters from block `split_position` on: by automatic differentiation, twice
    unbiased          the product of the gradients of even and of odd rows in the place of the square (DomainBed)

Defaults and search ranges are DomainBed's, except that the estimate is biased, as in the paper's code. Deviations:
adaptive regularisation's code makes a network of one block its own split with a scale on top: here say `scale`; the
linear unit tests add the environments' penalties up where this takes their mean.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from invbench.components.penalty import ANNEALING, PenaltyMethod, loss_gradients, representation
from invbench.core.data import Batch
from invbench.core.hooks import GradientPenalty
from invbench.core.method import Gradients, Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("irmv1")
class IRMv1(GradientPenalty, PenaltyMethod):
    """Penalise the gradient of each environment's risk by a dummy classifier."""

    display_name: ClassVar[str] = "IRM"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(100.0, "λ", ge=0, search=LogUniform(1e-1, 1e5), fusable=True)
    anneal_steps: int = setting(
        500, "first steps, with `weight_before` in the place of λ", ge=0, search=ANNEALING, fusable=True
    )
    reset_optimizer: bool = setting(True, "start the optimiser afresh when the weight changes")
    classifier: Literal["scale", "scale_and_offset", "head", "split"] = setting("scale", "what w is")
    split_position: int = setting(-1, "split: first block of w, counted as in Python; -1 is the last layer")
    estimate: Literal["biased", "unbiased"] = setting(
        "biased", "square over all rows, or product over even and odd rows, which may be negative"
    )

    @property
    def min_examples(self) -> int:
        return 2 if self.estimate == "unbiased" else 1

    @property
    def penalises_gradients(self) -> bool:
        return self.classifier == "split"

    @property
    def uses_moments_only(self) -> bool:
        return self.estimate == "biased"

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        if self.classifier == "split":
            return risks.new_zeros(()), state
        if self.estimate == "biased":
            squares = self._gradients(outputs, slice(None)).square()
        else:
            squares = self._gradients(outputs, slice(0, None, 2)) * self._gradients(outputs, slice(1, None, 2))
        return self.weighted(squares.sum(1).mean(), state), state

    def _gradients(self, outputs: Outputs, rows: slice) -> Tensor:
        """Compute ∇_w R_e on these rows of every environment: (E, size of w)."""
        delta, z = loss_gradients(outputs)[:, rows], outputs.prediction[:, rows]
        if self.classifier == "head":
            phi = representation(outputs, "classifier head")[:, rows]
            return (torch.einsum("ebc,ebf->ecf", delta, phi) / z.shape[1]).flatten(1)
        scale = (z * delta).sum(-1).mean(1)
        if self.classifier == "scale":
            return scale[:, None]
        return torch.stack([scale, delta.sum(-1).mean(1)], 1)

    def gradient_penalty(self, risk_grads: Gradients, state: State) -> tuple[Tensor, State]:
        blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in risk_grads))
        chosen = set(blocks[self.split_position :])
        squares = [g.square().flatten(1).sum(1) for name, g in risk_grads.items() if name.rpartition(".")[0] in chosen]
        return self.weighted(torch.stack(squares).sum(0).mean(), state), state
