"""Standardisation of images."""

from typing import NamedTuple

import torch
from torch import Tensor

from invbench.tensors import scalar


class Pixels(NamedTuple):
    """Standardisation of images: x = (pixel - mean) / deviation, channel by channel, pixels in [0, 1]."""

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def standardised(self, pixels: Tensor) -> Tensor:
        """Standardise pixels (..., C, H, W) to what a network is given."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.deviation, pixels)

    def standardise_(self, pixels: Tensor) -> Tensor:
        """Do the same in the memory of the pixels, of which large images take much."""
        return pixels.sub_(self._channels(self.mean, pixels)).div_(self._channels(self.deviation, pixels))

    def restored(self, x: Tensor) -> Tensor:
        """Turn standardised images back into pixels in [0, 1], as `standardised` took them."""
        return x * self._channels(self.deviation, x) + self._channels(self.mean, x)

    def black(self, x: Tensor) -> Tensor:
        """Return the value of a black pixel in standardised images like x (C or 1, 1, 1)."""
        return self.standardised(torch.zeros(1, 1, 1, dtype=x.dtype, device=x.device))

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.stack([scalar(value, like) for value in values])[:, None, None]


AS_THEY_ARE = Pixels()
"""Not standardised."""
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Standardisation by mean and deviation of ImageNet's colours, as torchvision's networks expect it."""
