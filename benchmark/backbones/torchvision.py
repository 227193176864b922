"""Networks of torchvision that classify images, with random first weights, the published ones, or those of a file."""

import re
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.backbones._pretrained import Preparation, PretrainedBackbone, load_weights, read_weights
from invbench.core.data import Pixels
from invbench.core.registry import register_backbone
from invbench.core.settings import setting
from invbench.errors import UserError
from invbench.system import workarounds

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Beginnings of the names of further heads, which only their authors' training used."""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in the published weights of densenets, as torchvision itself converts them."""


@register_backbone("torchvision")
class Torchvision(PretrainedBackbone):
    """A model of torchvision without its last layer, then dropout and a new linear head.

    The body gets pixels in the standardisation of its weights, or else that of ImageNet, resized to `image_size` by
    bilinear interpolation with antialiasing. Grey images are repeated to three channels; for other numbers of channels
    the first convolution's weights are repeated. The representation is what the head gets, after dropout. With
    `freeze_batch_norm` and `dropout` this is the ResNet of DomainBed (arXiv 2007.01434, released code).
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    model: str = setting("resnet18", "name of a classification model of torchvision")

    def models(self) -> list[str]:
        models = workarounds.torchvision().models
        return list(models.list_models(module=models))

    def preparation(self) -> Preparation:
        expected = self._published().transforms()
        return Preparation(Pixels(tuple(expected.mean), tuple(expected.std)), expected.crop_size[0])

    def published_file(self) -> Path:
        url = self._published().url
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
        if file.is_file():
            return file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            prefix = file.stem.rpartition("-")[2]  # of the file's sha256
            torch.hub.download_url_to_file(url, str(file), prefix, progress=False)
        except (OSError, RuntimeError) as error:  # urllib's are OSErrors; the other one is of a wrong hash
            raise UserError(
                f"the published weights of {self.model} are not here and cannot be downloaded ({error}); put {url} "
                f"at {file}, or set backbone.weights to the path of that file"
            ) from None
        return file

    def network(self, shape: tuple[int, int], file: Path | None) -> nn.Module:
        network: nn.Module = workarounds.torchvision().models.get_model(self.model, **self._arguments(shape))
        head = _without_head(network)
        _make_mappable(network)
        if file is not None:
            state = {_present_name(name): value for name, value in read_weights(file, network).items()}
            body = {name: value for name, value in state.items() if not name.startswith((f"{head}.", *AUXILIARY))}
            load_weights(network, body, self.model, file)
        return network

    def _published(self) -> Any:
        return workarounds.torchvision().models.get_model_weights(self.model).DEFAULT

    def _arguments(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Return what the constructors of single families must be told."""
        if self.model.startswith("vit_"):
            return {"image_size": shape[0]}
        if self.model == "maxvit_t":
            return {"input_size": shape}
        if self.model in ("googlenet", "inception_v3"):  # made for pixels between -1 and 1
            return {"aux_logits": False, "transform_input": True, "init_weights": True}
        return {}


def _without_head(network: nn.Module) -> str:
    """Replace the last layer with weights by the identity, which leaves its inputs as features. Returns its name."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    name: str = layers[-1]
    path, _, last = name.rpartition(".")
    setattr(network.get_submodule(path), last, nn.Identity())
    return name


def _make_mappable(network: nn.Module) -> None:
    """Replace layers by equal ones that `torch.func.vmap` can map: torchvision's stochastic depth draws in place.

    Pooling to one pixel sets strides where channels come last, which is mapped one by one, with a warning.
    """
    stochastic_depth = workarounds.torchvision().ops.StochasticDepth
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, stochastic_depth):
                setattr(parent, name, StochasticDepth(module.p))
            elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
                setattr(parent, name, GlobalMean())


class GlobalMean(nn.Module):
    """Mean over the map: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True)


class StochasticDepth(nn.Module):
    """Drop each row with probability p in training, and divide the others by 1 - p: torchvision's of mode `row`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones_like(x.flatten(1)[:, 0]).reshape(-1, *[1] * (x.ndim - 1))
        return x * F.dropout(ones, self.p, self.training)


def _present_name(name: str) -> str:
    return OLD_DENSENET.sub(r"\1\2", name)
