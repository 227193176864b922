"""Representation self-challenging (RSC): mute the features that the prediction leans on most, and train on the rest.

Huang, Wang, Xing, Huang (2020), arXiv 2007.02454. With the representation φ of an example, its head's score z_y of the
right class and the probability p_y:

    g = ∂z_y/∂φ                            m_f = [g < the (1 - f) quantile of g], feature by feature
    c = p_y(φ) - p_y(φ m_f)                m_b = [c < the (1 - b) quantile of c over the batch], example by example
    the head gets φ · (m_f or m_b)

So in the share b of the examples whose prediction suffers most, the share f of the features that matter most is muted.
Nothing is muted in evaluation. Masks are constants to the gradient. Defaults and search ranges are DomainBed's, whose
construction this is; quantiles are interpolated linearly, as numpy's.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad

from invbench.core.data import Batch
from invbench.core.hooks import FeatureTransform, Head
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import Uniform, setting
from invbench.core.task import one_hot


@register_method("rsc")
class RSC(FeatureTransform):
    """Mute the features that matter most to the examples that need them most."""

    display_name: ClassVar[str] = "RSC"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    feature_share: float = setting(1 / 3, "f, share of the features that are muted", ge=0, le=1, search=Uniform(0, 0.5))
    batch_share: float = setting(
        1 / 3, "b, share of the examples whose features are muted", ge=0, le=1, search=Uniform(0, 0.5)
    )

    def features(self, representation: Tensor, head: Head, batch: Batch, state: State) -> Tensor:
        phi, y = representation.detach().flatten(0, 1), batch.y.flatten(0, 1)
        g = grad(lambda features: score(head(features), y).sum())(phi).detach()
        keep_feature = g < quantile(g, 1 - self.feature_share)[:, None]
        with torch.no_grad():
            change = probability(head(phi), y) - probability(head(phi * keep_feature), y)
        keep_example = change < quantile(change, 1 - self.batch_share)
        kept: Tensor = keep_feature | keep_example[:, None]
        changed: Tensor = representation * kept.unflatten(0, batch.y.shape)
        return changed


def score(prediction: Tensor, y: Tensor) -> Tensor:
    """Return z_y of each example (N,), from logits (N, classes), or (N, 1) of class 1 against class 0."""
    if prediction.shape[1] == 1:
        return prediction[:, 0] * (2 * y - 1)
    return (prediction * one_hot(y, prediction.shape[1], prediction.dtype)).sum(1)


def probability(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the probability of the right class (N,)."""
    if prediction.shape[1] == 1:
        return score(prediction, y).sigmoid()
    return (prediction.softmax(1) * one_hot(y, prediction.shape[1], prediction.dtype)).sum(1)


def quantile(values: Tensor, share: float) -> Tensor:
    """Compute a quantile along the last axis, interpolated linearly (numpy's default)."""
    last = values.shape[-1] - 1
    position = share * last
    below = min(int(position), last)
    largest = values.topk(last + 1 - below, sorted=False).values  # a third of the time of sorting
    ends = largest.topk(min(2, last + 1 - below), largest=False).values
    return ends[..., 0] + (position - below) * (ends[..., -1] - ends[..., 0])
