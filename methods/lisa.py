"""LISA: mix examples that share the label or the attribute, but not both.

Yao, Wang, Li, Zhang, Liang, Zou, Finn (2022), "Improving Out-of-Distribution Robustness via Selective Augmentation",
arXiv 2201.00299. In each step, with probability p, every example i gets a partner j at random with the same label and
another attribute; else one with another label and the same attribute. With λ_i ~ Beta(α, α) for every example

    x = λ_i x_i + (1 - λ_i) x_j        loss = λ_i ℓ(f(x), y_i) + (1 - λ_i) ℓ(f(x), y_j)

or, of images, `cutmix`: a rectangle of x_i is that of x_j, with sides √(1 - λ_i) of the image's, cut off at its border;
λ_i is then the share that is left. Examples without such a partner in the step stay as they are: all of them, in steps
of the first kind, where training does not know the attribute. Defaults and search ranges are SubpopBench's. Deviation:
there a step has equally many pairs of each class (or attribute), as many as its smallest group in the step has
examples, all of two attributes (or classes), until the batch is full, and one λ.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Beta

from invbench.core.data import Batch, PairedTargets
from invbench.core.hooks import BatchMixing
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, Uniform, setting
from invbench.errors import UserError
from invbench.tensors import scalar


@register_method("lisa")
class LISA(BatchMixing):
    """Train on mixtures of examples of one label and two attributes, or of two labels and one attribute."""

    display_name: ClassVar[str] = "LISA"
    requires: ClassVar[tuple[str, ...]] = ("vector or image", "classification")

    alpha: float = setting(2.0, "α, of the Beta distribution", gt=0, search=LogUniform(1e-1, 1e1))
    same_label: float = setting(0.5, "p, probability of one label and two attributes", ge=0, le=1, search=Uniform(0, 1))
    mixture: Literal["mixup", "cutmix"] = setting(
        "mixup", "means of inputs, or images with a part of another", search=Choice(("mixup", "cutmix"))
    )

    def mix(self, batch: Batch, state: State) -> Batch:
        environments, size = batch.y.shape
        x, y = batch.x.flatten(0, 1), batch.y.flatten()
        attribute = torch.zeros_like(y) if batch.attribute is None else batch.attribute.flatten()
        partner = partners(y, attribute, torch.rand((), device=x.device) < self.same_label)
        alpha = scalar(self.alpha, x)
        share = Beta(alpha, alpha, validate_args=False).sample((len(x),))  # λ
        if self.mixture == "mixup":
            weight = share.reshape(-1, *[1] * (x.ndim - 1))
            mixed = weight * x + (1 - weight) * x[partner]
        else:
            mixed, share = cutmix(x, x[partner], share)
        targets = PairedTargets(batch.y, y[partner].reshape(batch.y.shape), share.reshape(batch.y.shape))
        return batch._replace(x=mixed.unflatten(0, (environments, size)), y=targets)  # type: ignore[arg-type]


def partners(y: Tensor, attribute: Tensor, same_label: Tensor) -> Tensor:
    """Draw a partner (N,) for each example: of its label and another attribute, or the other way round, else itself."""
    shared, other = torch.where(same_label, y, attribute), torch.where(same_label, attribute, y)
    width = other.max() + 1
    group = shared * width + other
    ordered, order = group.sort()  # examples that share lie together, and in these those of one group
    first, last = torch.searchsorted(ordered, shared * width), torch.searchsorted(ordered, (shared + 1) * width)
    begin, end = torch.searchsorted(ordered, group), torch.searchsorted(ordered, group, right=True)
    allowed = last - first - (end - begin)
    drawn = (torch.rand(len(y), dtype=torch.float64, device=y.device) * allowed).long() + first
    drawn = torch.where(drawn < begin, drawn, drawn + (end - begin))
    return torch.where(allowed > 0, order[drawn.clamp(max=len(y) - 1)], torch.arange(len(y), device=y.device))


def cutmix(x: Tensor, other: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Put a rectangle of other images (N, C, H, W) into some; return them, and the share (N,) of each that is left."""
    if x.ndim != 4:
        raise UserError("method.mixture=cutmix needs images; use mixup")
    sides, centres = (1 - share).sqrt() / 2, torch.rand(2, len(x), device=x.device)
    inside = []
    for centre, length in zip(centres, x.shape[2:], strict=True):
        position = (torch.arange(length, device=x.device) + 0.5) / length
        inside.append((position - centre[:, None]).abs() < sides[:, None])
    cut = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(cut[:, None], other, x), 1 - cut.to(x.dtype).mean((1, 2))
