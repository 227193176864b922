"""Numbers that a method learns beside the network's weights and that a reader wants to see, such as widths."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from invbench.errors import UserError


class LearnedScalars(nn.Module):
    """Vector of named numbers, each a function of a free parameter.

    Wherever one is part of a model, the engine gives it its own learning rate and neither weight decay nor l1, and
    writes the numbers and the gradients of their parameters into the run's curves.

    Args:
        what: the quantity, in front of the names in the curves, e.g. `width`.
        raw: first values of the parameters by name.
        function: from the parameters (k,) to the numbers (k,), element by element.
        learning_rate: of the parameters; None takes the trainer's. Both follow the trainer's schedule.
    """

    def __init__(
        self, what: str, raw: Mapping[str, float], function: Callable[[Tensor], Tensor], learning_rate: float | None
    ) -> None:
        super().__init__()
        self.what, self.names, self.function, self.learning_rate = what, tuple(raw), function, learning_rate
        self.raw = nn.Parameter(torch.tensor(list(raw.values())))

    def forward(self) -> Tensor:
        """Compute the numbers (k,)."""
        return self.function(self.raw)

    def columns(self, gradient: Tensor | None) -> dict[str, Tensor]:
        """Return columns of the curves: the numbers and, where it is given, the gradient by their parameters.

        Args:
            gradient: of the step, after the method's rule (k,).
        """
        columns = {f"{self.what}.{name}": value for name, value in zip(self.names, self().detach(), strict=True)}
        if gradient is not None:
            pairs = zip(self.names, gradient, strict=True)
            columns |= {f"{self.what}_gradient.{name}": value for name, value in pairs}
        return columns


def learned_parameters(model: nn.Module) -> dict[str, LearnedScalars]:
    """Find every such vector in a model, by the name of its parameter.

    Raises:
        UserError: two of them are of one quantity, so that a record could not tell them apart.
    """
    parts = {
        f"{path}.raw".lstrip("."): part for path, part in model.named_modules() if isinstance(part, LearnedScalars)
    }
    names = [part.what for part in parts.values()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two of these methods learn a '{name}'; run each without the other")
    return parts
