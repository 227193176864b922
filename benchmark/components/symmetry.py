"""What modules tell about symmetry: the distribution that they have learned, or how their outputs turn with inputs."""

from collections.abc import Mapping

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
    """Base of layers of images whose outputs turn with them, by a representation of a group."""

    def turned(self, maps: Tensor, quarters: int) -> Tensor | None:
        """Turn outputs (N, C, H, W) as inputs do by so many quarters; None where these are not of the layer's group."""
        return None
