"""Any classification network of torchvision, with its published weights, weights from a file, or random ones."""

from typing import Any, ClassVar

from torch import nn

from invbench.backbones._pretrained import IMAGENET, Pretrained
from invbench.core.data import Pixels
from invbench.core.registry import register_backbone
from invbench.errors import UserError, did_you_mean
from invbench.system.workarounds import torchvision as load_torchvision

HEADS = ("fc", "classifier", "heads", "head")
"""Names of the last layers of torchvision's networks."""


@register_backbone("torchvision")
class Torchvision(Pretrained):
    """A network of torchvision: resnet18, resnet50, vit_b_16, ...

    The new head is linear; the published one is left out. `weights: default` are torchvision's, from its own cache;
    without a network give the path of the downloaded file.
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    def network(self) -> tuple[nn.Module, Pixels, int | None]:
        models = load_torchvision().models
        known = models.list_models(module=models)
        if self.model not in known:
            raise UserError(
                f"backbone.model: torchvision has no network '{self.model}'{did_you_mean(self.model, known)}"
            )
        published = models.get_model_weights(self.model).DEFAULT if self.weights == "default" else None
        more: dict[str, Any] = (
            {"image_size": self.image_size} if self.image_size and _has_fixed_size(self.model) else {}
        )
        try:
            network = models.get_model(self.model, weights=published, **more)
        except (OSError, ValueError) as error:
            if published is None:
                raise UserError(f"backbone.model: {self.model} cannot be made: {error}") from None
            raise UserError(
                f"the weights of {self.model} cannot be downloaded ({error}); fetch {published.url} elsewhere, and "
                "give the path of the file as backbone.weights"
            ) from None
        head = next((name for name in HEADS if hasattr(network, name)), None)
        if head is None or hasattr(network, "aux_logits"):
            raise UserError(f"backbone.model: {self.model} has no head that could be replaced; choose another network")
        setattr(network, head, nn.Identity())
        if published is None:
            return network, IMAGENET, 224 if _has_fixed_size(self.model) and not self.image_size else None
        transform = published.transforms()
        return network, Pixels(tuple(transform.mean), tuple(transform.std)), transform.crop_size[0]


def _has_fixed_size(model: str) -> bool:
    """Whether a network takes images of one size only."""
    return model.startswith("vit_")
