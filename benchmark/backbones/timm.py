"""Any network of timm, with its published weights, weights from a file, or random ones; needs the extra timm."""

from typing import Any, ClassVar

from torch import nn

from invbench.backbones._pretrained import IMAGENET, Pretrained
from invbench.core.data import Pixels
from invbench.core.registry import register_backbone
from invbench.errors import UserError, did_you_mean
from invbench.system.workarounds import torchvision as load_torchvision


@register_backbone("timm")
class Timm(Pretrained):
    """A network of timm: resnet18, convnext_tiny, vit_small_patch16_224, ...

    The new head is linear; the published one is left out. `weights: default` are timm's, from the cache of
    huggingface_hub; without a network give the path of the downloaded file.
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    def network(self) -> tuple[nn.Module, Pixels, int | None]:
        load_torchvision()  # which timm imports
        try:
            import timm
        except ImportError:
            raise UserError("backbone timm needs the extra timm: pip install 'invbench[timm]'") from None
        if not timm.is_model(self.model):
            known = timm.list_models()
            raise UserError(f"backbone.model: timm has no network '{self.model}'{did_you_mean(self.model, known)}")
        try:
            network = timm.create_model(self.model, pretrained=self.weights == "default", num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"backbone.model: {self.model} cannot be made ({why}); of weights that cannot be downloaded give the "
                "path of the file as backbone.weights"
            ) from None
        described: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        expected = Pixels(tuple(described["mean"]), tuple(described["std"])) if "mean" in described else IMAGENET
        size = described.get("input_size", (3, 224, 224))[1]
        fixed = described.get("fixed_input_size", False)
        return network, expected, size if self.weights == "default" or fixed else None
