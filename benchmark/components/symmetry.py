"""What modules tell about symmetry: the distribution that they have learned, or how their outputs turn with inputs."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class LearnedSymmetry(nn.Module):
    """Base of modules with a distribution of transformations that may be compared with a problem's own."""

    def extent(self, x: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return by generator the lowest and the highest coefficient: (1,), or (N,) for inputs x (N, ...)."""
        return {}

    def algebra(self) -> Tensor | None:
        """Return learned generators that act on vectors, (k, d, d)."""
        return None


class EquivariantLayer(nn.Module):
    """Base of layers of images whose outputs turn as their inputs do, each by a representation of a group."""

    @abstractmethod
    def turned_inputs(self, inputs: tuple[Any, ...], quarters: int) -> tuple[Any, ...] | None:
        """Turn the arguments of `forward` by so many quarters; None where these are not of the layer's group."""

    @abstractmethod
    def turned_outputs(self, outputs: Tensor, quarters: int, inputs: tuple[Any, ...]) -> Tensor | None:
        """Turn what `forward` makes of `inputs` by so many quarters; None where these are not of the layer's group."""
