"""The contract of a backbone: a network that a method starts from. One file in `benchmark/backbones/` each."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from invbench.core.data import Problem
from invbench.core.method import Outputs
from invbench.core.settings import Settings
from invbench.errors import UserError


class Backbone(Settings):
    """Typed settings of a network, and the function that makes it."""

    accepts: ClassVar[tuple[str, ...]] = ()
    """Kinds of input; a plain tuple, read without importing the file."""

    @abstractmethod
    def build(self, problem: Problem) -> nn.Module:
        """Build a network for this problem's inputs and outputs, initialised by torch's generator."""

    def weights_file(self) -> Path | None:
        """Return the file that the settings name for the first weights; a run is made anew once it has changed."""
        return None


class FeaturesAndHead(nn.Module):
    """The usual network: features of the input, then a linear head.

    Args:
        features: (N, ...) -> (N, width).
        head: (N, width) -> (N, outputs).
        features_rate: multiple of the learning rate for the parameters of the features.
        weights: where the first weights of the features are from: their name, and the sha256 of their file.
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Linear,
        features_rate: float = 1.0,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.features_rate, self.weights = features_rate, dict(weights or {})

    def forward(self, x: Tensor) -> Outputs:
        representation = self.features(x)
        return Outputs(self.head(representation), representation)


class FeaturesOnly(nn.Module):
    """Features of a network without a head.

    Args:
        features: (N, ...) -> (N, width).
        features_rate: multiple of the learning rate for their parameters.
    """

    def __init__(self, features: nn.Module, features_rate: float = 1.0) -> None:
        super().__init__()
        self.features, self.features_rate = features, features_rate

    def forward(self, x: Tensor) -> Tensor:
        representation: Tensor = self.features(x)
        return representation


class EnvironmentNetwork(nn.Module):
    """A network that predicts examples of one environment together. Subclasses define `forward(x, env=None)`.

    `x` (E * B, ...) are the examples of environments env (E,), one after another. Without `env`, as in evaluation,
    they are of one environment, whose number is not known.

    Args:
        support: number of examples that are predicted together in evaluation.
    """

    def __init__(self, support: int) -> None:
        super().__init__()
        self.support = support


def network_with_head(model: nn.Module) -> tuple[str, FeaturesAndHead]:
    """Return the part of a model that ends in a linear head, with its name.

    Raises:
        UserError: there is none, or there are several.
    """
    networks = _networks(model)
    if len(networks) != 1:
        raise UserError("the method needs a network with one linear head; choose another backbone")
    return next(iter(networks.items()))


def is_frozen(module: nn.Module) -> bool:
    """Tell whether a module has parameters, none of which is trained."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)


def is_of_head(name: str) -> bool:
    """Tell whether a parameter of this name is of the linear head of a network."""
    return ".head." in f".{name}"


def features_rates(model: nn.Module) -> dict[str, float]:
    """Return the multiple of the learning rate of every parameter whose network gives one to its features, by name."""
    return {
        f"{path}.features.{name}".lstrip("."): network.features_rate
        for path, network in model.named_modules()
        if isinstance(network, FeaturesAndHead | FeaturesOnly) and network.features_rate != 1
        for name, _ in network.features.named_parameters()
    }


def first_weights(model: nn.Module) -> dict[str, str]:
    """Return where a model's first weights are from: their name, and the sha256 of their file; empty where drawn."""
    return next((network.weights for network in _networks(model).values() if network.weights), {})


def _networks(model: nn.Module) -> dict[str, FeaturesAndHead]:
    return {path: module for path, module in model.named_modules() if isinstance(module, FeaturesAndHead)}


def couples_rows(model: nn.Module) -> bool:
    """Tell whether a layer of a model normalises over the batch, in the mode that each is in.

    Batch normalisation that stays in evaluation mode treats each row by itself.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(layer.training or layer.running_mean is None for layer in layers)
