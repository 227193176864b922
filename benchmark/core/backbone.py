"""The contract of a backbone: a network that a method starts from. One file in `benchmark/backbones/` each."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from invbench.core.data import Problem
from invbench.core.method import Outputs
from invbench.core.settings import Settings


class Backbone(Settings):
    """Typed settings of a network, and the function that makes it."""

    accepts: ClassVar[tuple[str, ...]] = ()
    """Kinds of input; a plain tuple, read without importing the file."""

    @abstractmethod
    def build(self, problem: Problem) -> nn.Module:
        """Build a network for this problem's inputs and outputs, initialised by torch's generator."""


class FeaturesAndHead(nn.Module):
    """The usual network: features of the input, then a linear head.

    Args:
        features: (N, ...) -> (N, width).
        head: (N, width) -> (N, outputs).
    """

    def __init__(self, features: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Outputs:
        representation = self.features(x)
        return Outputs(self.head(representation), representation)
