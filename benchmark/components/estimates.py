"""Numbers that a method has estimated beside its network, such as p-values and intervals, for the record."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Estimates(nn.Module):
    """Part of a network that holds named numbers and computes nothing; records have them as `estimate.<name>`."""

    estimated: Tensor

    def __init__(self, numbers: Mapping[str, float]) -> None:
        super().__init__()
        self.names = tuple(numbers)
        self.register_buffer("estimated", torch.tensor(list(numbers.values()), dtype=torch.float64))

    def numbers(self) -> dict[str, float]:
        """Return the numbers as columns of a record."""
        return {f"estimate.{name}": value for name, value in zip(self.names, self.estimated.tolist(), strict=True)}
