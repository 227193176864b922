"""Images that stay in a file: bytes of pixels that become standardised numbers when some of them are selected."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.pixels import Pixels
from invbench.tensors import copy_from_host

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFile:
    """Images (N, C, H, W) in a memory-mapped file, with the part of a tensor's interface that training needs.

    Selecting images returns a tensor with the numbers that the same images in memory have, to the bit. Memory is that
    of the images selected.

    Args:
        pixels: of all images of the file (M, C, H, W), such as a `numpy.memmap`.
        index: which of them these are (N,), on the CPU.
        standardisation: of the pixels.
        dtype: of the selected images.
        device: where selected images are copied to.
    """

    pixels: Bytes
    index: Tensor
    standardisation: Pixels
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """Shape (N, C, H, W)."""
        return torch.Size((len(self.index), *self.pixels.shape[1:]))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return 4

    def to(self, device: torch.device, dtype: torch.dtype) -> "ImageFile":
        """Have images copied to another device, as another type, when they are selected."""
        return replace(self, dtype=dtype, device=device)

    def rows(self, index: slice | Tensor) -> "ImageFile":
        """Select images by slice, indices or mask, without reading them."""
        return replace(self, index=self.index[index if isinstance(index, slice) else index.cpu()])

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Read images."""
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        rows = self.rows(index).index
        return self.standardised(self.read(rows, self.buffer(len(rows))))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Read the images of these indices (K,)."""
        return self[index]

    def split(self, count: int) -> Iterator[Tensor]:
        """Read all images in parts of so many, each while the one before is worked on."""
        with ThreadPoolExecutor(1) as executor:
            # Two buffers in turn, which a CPU has copied from when it goes on; a GPU may not have.
            on_cpu = self.device.type == "cpu"
            buffers = [self.buffer(min(count, len(self))) for _ in range(2)] if on_cpu else []
            coming: list[Future[Tensor]] = []
            for number, part in enumerate(self.index.split(count)):
                buffer = buffers[number % 2][: len(part)] if buffers else self.buffer(len(part))
                coming.append(executor.submit(self.read, part, buffer))
                if len(coming) > 1:
                    yield self.standardised(coming.pop(0).result())
            if coming:
                yield self.standardised(coming.pop().result())

    def buffer(self, count: int) -> Tensor:
        """Make room for the pixels of so many images, where the device can copy them from at once.

        It is made ahead of reading, since memory that a thread has taken stays with that thread.
        """
        shape = (count, *self.pixels.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def read(self, index: Tensor, buffer: Tensor) -> Tensor:
        """Read pixels of the file by their indices in it (K,) into a buffer of that size, and return it."""
        self.pixels.take(index.numpy(), axis=0, out=buffer.numpy(), mode="clip")  # other modes need a second buffer
        return buffer

    def standardised(self, pixels: Tensor) -> Tensor:
        """Copy pixels to the device and standardise them."""
        on_device = copy_from_host(pixels, self.device)
        return self.standardisation.standardise_(on_device / 255).to(self.dtype)
