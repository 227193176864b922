"""What a module that has learned a distribution of transformations tells about it."""

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
