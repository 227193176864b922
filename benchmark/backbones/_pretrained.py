"""What networks of other packages share: weights from files, standardisation, frozen parts, a new head."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Pixels, Problem
from invbench.core.settings import setting
from invbench.datafiles.checksums import is_regular, sha256
from invbench.datafiles.release import at_home
from invbench.errors import UserError, brief

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MAX_BYTES = 1 << 34
"""Most bytes of a file of weights."""
SUFFIXES = (".pt", ".pth", ".safetensors")


class Pretrained(Backbone):
    """Network of another package, without its head; a linear one is put on its features."""

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    model: str = setting("resnet18", "name of the network")
    weights: str = setting(
        "none", "none: random; default: the published ones; or the path of a .pth or .safetensors file"
    )
    freeze: bool = setting(False, "train the head only, on the network in evaluation mode")
    freeze_batch_norm: bool = setting(False, "keep batch norm in evaluation mode, so that rows do not mix")
    dropout: float = setting(0.0, "probability of dropping a feature in training", ge=0, lt=1)
    image_size: int | None = setting(
        None,
        "side to which images are resized; null takes that of published weights, and else leaves images alone",
        ge=8,
    )

    @abstractmethod
    def network(self) -> "tuple[nn.Module, Pixels, int | None]":
        """Make the network without its head, with published weights where these are asked for.

        Returns:
            The network (N, 3, H, W) -> (N, width), the standardisation that it expects, and its size of images, None
            where any will do.
        """

    def build(self, problem: Problem) -> nn.Module:
        network, expected, size = self.network()
        file = None if self.weights in ("none", "default") else at_home(self.weights)
        if file is not None:
            load_weights(network, file, self.model)
        channels = problem.input_shape[0]
        if channels not in (1, 3):
            adapt_channels(network, channels, self.model)
            expected = Pixels(tuple(_repeated(expected.mean, channels)), tuple(_repeated(expected.deviation, channels)))
        side = self.image_size or size
        body = Body(network, problem.pixels, expected, side, self.freeze, self.freeze_batch_norm)
        features = nn.Sequential(body, nn.Dropout(self.dropout)) if self.dropout else body
        width = _width(body, problem.input_shape)
        model = FeaturesAndHead(features, nn.Linear(width, problem.task.outputs))
        if self.freeze:
            body.requires_grad_(False)
        return model


class Body(nn.Module):
    """Network that takes images as the data have them: (N, C, H, W) -> (N, width).

    Args:
        network: (N, C, H, W) -> (N, width).
        given, expected: standardisation of the images that come, and of those that the network expects.
        size: side to which images are resized, bilinear and smoothed; None leaves them alone.
        frozen: whether it is always in evaluation mode.
        batch_norm_frozen: whether batch norm is.
    """

    def __init__(
        self,
        network: nn.Module,
        given: Pixels,
        expected: Pixels,
        size: int | None,
        frozen: bool,
        batch_norm_frozen: bool,
    ) -> None:
        super().__init__()
        self.network, self.given, self.expected, self.size = network, given, expected, size
        self.frozen, self.batch_norm_frozen = frozen, batch_norm_frozen

    def forward(self, x: Tensor) -> Tensor:
        if self.given != self.expected:
            x = self.expected.standardised(self.given.restored(x))
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        features: Tensor = self.network(x)
        return features

    def train(self, mode: bool = True) -> Self:
        super().train(mode and not self.frozen)
        if self.batch_norm_frozen:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def load_weights(network: nn.Module, path: Path, model: str) -> None:
    """Load weights from a file; those of a head are left out.

    Raises:
        UserError: no such file, a damaged one, or one of another network.
    """
    weights = read_weights(path)
    expected = network.state_dict()
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"the weights {path} are not those of {model}: they have no {missing[0]}")
    for name, value in expected.items():
        if name in weights and weights[name].shape != value.shape:
            raise UserError(
                f"the weights {path} are not those of {model}: {name} is {tuple(weights[name].shape)}, "
                f"not {tuple(value.shape)}"
            )
    network.load_state_dict({name: weights.get(name, value) for name, value in expected.items()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file. Raises UserError as `load_weights` does."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"backbone.weights is {brief(str(path))}; it is none, default, or a file {', '.join(SUFFIXES)}")
    if not is_regular(path):
        raise UserError(f"backbone.weights: there is no file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"backbone.weights: {path} has more than {MAX_BYTES} bytes")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"the weights {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # unpickling raises all sorts of them
        raise UserError(f"the weights {path} are no tensors by name: {' '.join(str(error).split())[:200]}") from None
    for key in ("state_dict", "model", "model_state_dict"):  # as many training scripts save them
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"the weights {path} are no tensors by name, as `model.state_dict()` returns them")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def weights_of(settings: Any) -> dict[str, str]:
    """Describe the weights that a network began with, for the record; empty where they were random."""
    if not isinstance(settings, Pretrained) or settings.weights == "none":
        return {}
    if settings.weights == "default":
        return {"weights": "default"}
    path = at_home(settings.weights)
    return {"weights": path.name, "sha256": sha256(path)}


def adapt_channels(network: nn.Module, channels: int, model: str) -> None:
    """Let the first convolution take other channels: its weights are repeated, modulo 3, as DomainBed does it."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.in_channels == 3 and child.groups == 1:
                options = {
                    "kernel_size": child.kernel_size,
                    "stride": child.stride,
                    "padding": child.padding,
                    "bias": child.bias is not None,
                }
                other = nn.Conv2d(channels, child.out_channels, **options)  # type: ignore[arg-type]
                with torch.no_grad():
                    other.weight.copy_(child.weight[:, [i % 3 for i in range(channels)]])
                    if child.bias is not None and other.bias is not None:
                        other.bias.copy_(child.bias)
                setattr(parent, name, other)
                return
    raise UserError(f"backbone.model: {model} has no convolution that could take images of {channels} channels")


def _repeated(values: tuple[float, ...], count: int) -> list[float]:
    return [values[i % len(values)] for i in range(count)]


def _width(body: Body, shape: tuple[int, ...]) -> int:
    """Return the number of features for images of this shape (C, H, W)."""
    training = body.training
    with torch.no_grad():
        features = body.eval()(torch.zeros(1, *shape))
    body.train(training)
    if features.ndim != 2:
        raise UserError(
            f"the network returns features of shape {tuple(features.shape)}, not (N, width); choose another"
        )
    return math.prod(features.shape[1:])
