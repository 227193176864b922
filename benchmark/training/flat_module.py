"""A network as a function of one vector of weights: an update of many small tensors costs as much as one of one."""

from torch import Tensor, cat, nn
from torch.func import functional_call

from invbench.core.hooks import CriticFn
from invbench.pytree import Tree


class FlatModule:
    """A module whose own tensors only give sizes and first values."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shapes = {name: value.shape for name, value in module.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]

    def weights(self) -> Tensor:
        """The first values of all parameters, in one vector."""
        return cat([value.detach().flatten() for value in self.module.parameters()])

    def buffers(self) -> dict[str, Tensor]:
        """The values of what is not trained."""
        return {name: value.clone() for name, value in self.module.named_buffers()}

    def player(self, tensors: Tree) -> CriticFn:
        """The module with the `weights` and the `buffers` of a critic's state."""
        parts = tensors["weights"].split(self.sizes)
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        values = named | tensors["buffers"]
        return lambda *arguments: functional_call(self.module, values, arguments, tie_weights=False)
