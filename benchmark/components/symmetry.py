"""What a module that has learned a distribution of transformations tells about it."""

from collections.abc import Mapping

from torch import Tensor, nn


class LearnedSymmetry(nn.Module):
    """Base of modules with a distribution of transformations that may be compared with a problem's own."""

    def half_widths(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return by generator how far the distribution reaches to either side: (1,), or (N,) for inputs x."""
        return {}

    def algebra(self) -> Tensor | None:
        """Return learned generators that act on vectors, (k, d, d)."""
        return None
