"""A network as a function of one vector of weights, which is faster to update than many small tensors."""

from torch import Tensor, cat, nn
from torch.func import functional_call

from invbench.core.hooks import CriticFn
from invbench.pytree import Tree


class FlatModule:
    """Module as a function of its weights; its own tensors only give sizes and first values."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shapes = {name: value.shape for name, value in module.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]

    def weights(self) -> Tensor:
        """Return the first values of all parameters, in one vector."""
        return cat([value.detach().flatten() for value in self.module.parameters()])

    def buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers."""
        return {name: value.clone() for name, value in self.module.named_buffers()}

    def bind(self, tensors: Tree) -> CriticFn:
        """Return the module as a function, with the `weights` and the `buffers` of a critic's state."""
        parts = tensors["weights"].split(self.sizes)
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        values = named | tensors["buffers"]
        return lambda *arguments: functional_call(self.module, values, arguments, tie_weights=False)
