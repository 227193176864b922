"""LDAM: ask rare classes to be told by a larger margin ("Label-Distribution-Aware Margin Loss").

Cao, Wei, Gaidon, Arechiga, Ma (2019), arXiv 1906.07413, equation 13. With n_k training examples of class k, logits z
and a scale s, the loss is the cross-entropy of logits from which that of the label y has lost a margin m_y:

    m_k = m (n_k)^(-1/4) / max_j (n_j)^(-1/4)       ℓ' = CE(s (z - m_y e_y), y)

Defaults and search ranges are SubpopBench's. Deviation: the authors' last layer has normalised weights and features,
SubpopBench's and this one have not; the weights of later epochs, which the authors call DRW, are `group_weights`.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.logits import take_from_true_logit
from invbench.core.data import Batch
from invbench.core.hooks import ExampleCounts, LossChange, LossFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, setting


@register_method("ldam")
class LDAM(LossChange, ExampleCounts):
    """Subtract a margin from the label's logit that is larger for rare classes."""

    display_name: ClassVar[str] = "LDAM"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    margin: float = setting(0.5, "m, of the rarest class", ge=0, search=LogUniform(10**-1, 10**-0.1), fusable=True)
    scale: float = setting(30.0, "s, by which logits are multiplied", gt=0, search=Choice((10.0, 30.0)), fusable=True)

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        n = state["counts"]["groups"].sum(1)
        relative = n.clamp(min=1) ** -0.25 * (n > 0)  # a class that training lacks has no margin
        margins = self.margin * relative / relative.max()
        return loss(self.scale * take_from_true_logit(outputs.prediction, batch.y, margins), batch.y)
