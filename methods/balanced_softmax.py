"""Balanced softmax: train with logits to which how common a class is has been added.

Ren, Yu, Sheng, Ma, Zhao, Yi, Li (2020), "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv 2007.10740,
equation 3. With n_k training examples of class k and logits z,

    ℓ' = CE(z + log n, y)

so that the softmax of z alone, which predicts, is right where all classes are equally common. It has no settings.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.logits import add_to_logits
from invbench.core.data import Batch
from invbench.core.hooks import ExampleCounts, LossChange, LossFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method


@register_method("balanced_softmax")
class BalancedSoftmax(LossChange, ExampleCounts):
    """Add the logarithm of each class's number of examples to its logit, in training."""

    display_name: ClassVar[str] = "Balanced softmax"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        n = state["counts"]["groups"].sum(1).clamp(min=1)  # of a class that training lacks, log 1
        return loss(add_to_logits(outputs.prediction, n.log()), batch.y)
