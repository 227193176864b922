"""Parts of the backbones that packages provide: first weights of a file, images as they expect them, a new head.

The first weights are those of the package's constructor, the published ones, or those of a file. The network is given
images as pixels that are standardised in the way of the weights, resized inside of it where they have another size.
"""

import zipfile
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Pixels, Problem
from invbench.core.pixels import IMAGENET
from invbench.core.settings import Choice, setting
from invbench.core.third_party import one_line
from invbench.datafiles.checksums import is_regular, sha256
from invbench.datafiles.paths import why_impossible
from invbench.errors import UserError, brief, did_you_mean
from invbench.system.device import out_of_memory

CHANNELS = 3
"""Of the images that the networks are made for."""
MOST_TIMES, ALLOWANCE = 3, 64 * 2**20
"""Maximum size of a file of weights: so many times that of the network's own, and bytes more, for a head."""
MAXIMUM_SIZE = 4096
REFUSALS = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""Errors by which packages refuse images of a size or a number of channels."""


class Preparation(NamedTuple):
    """Images as weights expect them: their standardisation, and height and width."""

    pixels: Pixels
    size: int


class PretrainedBackbone(Backbone):
    """Base of networks that a package provides."""

    model: str
    weights: str = setting("none", "first weights: none (drawn), default (the published ones), or the path of a file")
    freeze: bool = setting(False, "do not train the body, and keep it in evaluation mode")
    freeze_batch_norm: bool = setting(False, "keep batch normalisation of the body in evaluation mode")
    dropout: float = setting(
        0.0,
        "probability of dropping a feature in training, ahead of the head; search range of DomainBed",
        ge=0,
        lt=1,
        search=Choice((0.0, 0.1, 0.5)),
    )
    body_learning_rate: float = setting(1.0, "multiple of the learning rate for the body", gt=0)
    image_size: int | None = setting(
        None,
        "height and width to which images are resized; null: that of the weights, or else the images' own",
        ge=1,
        le=MAXIMUM_SIZE,
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.freeze and self.body_learning_rate != 1:
            raise ValueError("a body that is not trained has no learning rate; leave out freeze or body_learning_rate")
        return self

    def build(self, problem: Problem) -> nn.Module:
        self._check_model()
        file = self.weights_file() or (self.published_file() if self.weights == "default" else None)
        weights = {"name": self.weights, "sha256": _checked_sum(file)} if file else {}
        preparation = self.preparation() if file else None
        channels, height, width = problem.input_shape
        size = self.image_size or (preparation.size if preparation else None)
        shape = (size, size) if size else (height, width)
        try:
            network = self.network(shape, file)
            if channels not in (1, CHANNELS):
                _take_channels(network, channels)
            pixels = preparation.pixels if preparation else IMAGENET
            body = Body(network, problem.pixels, pixels, shape, self.freeze, self.freeze_batch_norm)
            count = _count_features(body, problem.input_shape)
        except REFUSALS as error:
            if out_of_memory(error):
                raise
            images = f"images of {channels} channels and {shape[0]} x {shape[1]} pixels"
            raise UserError(
                f"backbone.model {self.model} cannot be made for {images} ({one_line(error)}); set "
                "backbone.image_size, or choose another model"
            ) from error
        features = nn.Sequential(body, nn.Dropout(self.dropout)) if self.dropout else body
        head = nn.Linear(count, problem.task.outputs)
        return FeaturesAndHead(features, head, self.body_learning_rate, weights)

    def weights_file(self) -> Path | None:
        if self.weights in ("none", "default"):
            return None
        path = Path(self.weights)
        if not self.weights or why_impossible(path):
            raise UserError(f"backbone.weights: {why_impossible(path) or 'it is empty; give none, default or a path'}")
        return path

    @abstractmethod
    def models(self) -> Iterable[str]:
        """List the names of the package's models that classify images."""

    @abstractmethod
    def preparation(self) -> Preparation:
        """Return what the published weights of the model expect. A file's are taken to expect the same."""

    @abstractmethod
    def published_file(self) -> Path:
        """Return the file of the published weights, downloaded where it is not in the package's cache.

        Raises:
            UserError: there are none, or they are not here and cannot be downloaded.
        """

    @abstractmethod
    def network(self, shape: tuple[int, int], file: Path | None) -> nn.Module:
        """Make the model without its head, for images (N, 3, *shape), with the weights of the file where there is one.

        Raises:
            UserError: the file does not have the weights of the model.
        """

    def _check_model(self) -> None:
        known = set(self.models())
        if self.model not in known:
            raise UserError(f"setting 'backbone.model' is '{brief(self.model)}'{did_you_mean(self.model, known)}")


class Body(nn.Module):
    """Network without a head: from images (N, C, H, W) in a dataset's standardisation to features (N, width).

    Args:
        network: takes images (N, 3, *shape), or as many channels as there are.
        given: the standardisation of the images.
        wanted: the one that the network expects; of more than three channels they are repeated.
        shape: height and width that the network expects.
        frozen: whether it is not trained, and always in evaluation mode.
        frozen_batch_norm: whether its batch normalisation always is in evaluation mode.
    """

    def __init__(
        self,
        network: nn.Module,
        given: Pixels,
        wanted: Pixels,
        shape: tuple[int, int],
        frozen: bool,
        frozen_batch_norm: bool,
    ) -> None:
        super().__init__()
        self.network, self.given, self.wanted, self.shape = network, given, wanted, shape
        self.frozen, self.frozen_batch_norm = frozen, frozen_batch_norm
        if frozen:
            network.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.given.restored(x)
        if pixels.shape[-2:] != self.shape:
            pixels = F.interpolate(pixels, self.shape, mode="bilinear", antialias=True)
        if pixels.shape[-3] == 1:
            pixels = pixels.expand(*pixels.shape[:-3], CHANNELS, *self.shape)
        features: Tensor = self.network(_repeated(self.wanted, pixels.shape[-3]).standardised(pixels))
        return features

    def train(self, mode: bool = True) -> Self:
        super().train(mode and not self.frozen)
        if self.frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def _repeated(pixels: Pixels, channels: int) -> Pixels:
    """Return the standardisation of so many channels: those of colours again and again, as in `_take_channels`."""
    return Pixels(*(tuple(values[i % len(values)] for i in range(channels)) for values in pixels))


def _take_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take another number of channels: channel i gets the weights of i modulo 3."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != CHANNELS or first.groups != 1:
        raise ValueError("it does not begin with a convolution of three channels")
    index = torch.arange(channels) % CHANNELS
    first.weight = nn.Parameter(first.weight.detach()[:, index])
    first.in_channels = channels


def _count_features(body: Body, input_shape: tuple[int, ...]) -> int:
    """Return the number of features, by a pass over one image. Raises ValueError where they are no vector."""
    body.eval()
    with torch.no_grad():
        features = body(torch.zeros(1, *input_shape))
    body.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError("without its head it does not return one vector for each image")
    return features.shape[1]


def load_weights(network: nn.Module, state: Mapping[str, Tensor], model: str, file: Path) -> None:
    """Give a network the tensors of a file. Raises UserError, naming the first, unless they are exactly its own."""
    expected = network.state_dict()
    # Older files do not count batches, which nothing here reads.
    missing = [name for name in expected if name not in state and not name.endswith(".num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    other = [name for name in expected if name in state and _form(state[name]) != _form(expected[name])]
    if missing:
        wrong = f"lacks {missing[0]}, the first of {len(missing)} tensors"
    elif unknown:
        wrong = f"has {brief(unknown[0])}, the first of {len(unknown)} tensors that the model does not have"
    elif other:
        forms = f"{_form(state[other[0]])}, not {_form(expected[other[0]])}"
        wrong = f"has {other[0]} as {forms}, the first of {len(other)} tensors that differ"
    elif infinite := [name for name in expected if name in state and not torch.isfinite(state[name]).all()]:
        wrong = f"has numbers that are not finite in {infinite[0]}, the first of {len(infinite)} tensors"
    else:
        network.load_state_dict({name: state.get(name, value) for name, value in expected.items()})
        return
    raise UserError(f"{file} does not fit backbone.model {model} at this image size: it {wrong}; give its own weights")


def _form(tensor: Tensor) -> str:
    """Describe what must be equal of two tensors so that one can take the numbers of the other."""
    kind = "real numbers" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return f"{tuple(tensor.shape)} of {'' if plain else 'packed or absent '}{kind}"


def read_weights(file: Path, network: nn.Module) -> dict[str, Tensor]:
    """Read the tensors of a file by name.

    Raises:
        UserError: it is damaged, no table of tensors by name, or far larger than the network's own weights.
    """
    limit = MOST_TIMES * sum(tensor.nbytes for tensor in network.state_dict().values()) + ALLOWANCE
    try:
        if (size := _unpacked_size(file)) > limit:
            raise UserError(
                f"{file} has {size >> 20} MiB, more than the {limit >> 20} MiB that weights of the model may have"
            )
        state = _tensors(file)
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes a reader raise is not known
        raise UserError(f"{file} cannot be read as weights ({one_line(error)}); save them again") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds no table of tensors by name; save model.state_dict() there")
    return state


def _tensors(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _unpacked_size(file: Path) -> int:
    if file.suffix == ".safetensors" or not zipfile.is_zipfile(file):
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        return sum(part.file_size for part in archive.infolist())


def _checked_sum(file: Path) -> str:
    """Return the sha256 of a file of weights. Raises UserError where there is none, or it is of no known format."""
    if file.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserError(f"backbone.weights: {brief(str(file))} is no .pth, .pt or .safetensors file")
    if not is_regular(file):
        raise UserError(f"backbone.weights: there is no file {brief(str(file))}; give none, default or a path")
    try:
        return sha256(file)
    except OSError as error:
        raise UserError(f"backbone.weights: {brief(str(file))} cannot be read: {error.strerror or error}") from None
