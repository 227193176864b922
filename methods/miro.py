"""MIRO: a representation that keeps what the first weights say ("Mutual-Information Regularization with Oracle").

Cha, Lee, Park, Chun (2022), "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", arXiv
2203.10789. With the outputs f_l of layers l of the network, those f⁰_l of the same layers with the first weights, which
stay, and a variance σ²_lc = softplus(b_lc) + 1e-5 for each channel c of a layer:

    objective = R + λ Σ_l mean ((f_l - f⁰_l)² / σ²_l + log σ²_l) / 2,   R = (1/E) Σ_e R_e

the mean over examples and entries. σ² is `variance` at first, and b learns `variance_rate` times as fast as the rest.
It is meant for pretrained networks (`backbone.weights`): drawn ones have nothing to keep. Where the body has batch
normalisation, f⁰ has the statistics of the first weights. Defaults and the search range are the released code's, whose
layers are a ResNet's stages and every third block of a transformer; here they are the parts of the body that return a
row for each example, else the body as a whole, or `layers`. An operation in place that follows a layer counts to it.
In evaluation f⁰ is not computed.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.core.backbone import FeaturesAndHead, is_frozen
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Update, UpdateSchedule
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting
from invbench.errors import UserError, did_you_mean

LEAST_VARIANCE = 1e-5
DIFFERENCE = "difference_from_first_weights"


@register_method("miro")
class MIRO(UpdateSchedule):
    """Keep what layers compute close to what they computed with the first weights."""

    display_name: ClassVar[str] = "MIRO"

    weight: float = setting(0.1, "λ", ge=0, search=Choice((1.0, 0.1, 0.01, 0.001)), fusable=True)
    layers: tuple[str, ...] = setting((), "modules of the body, such as network.layer1; none: its parts")
    variance: float = setting(0.1, "σ² of the first step", gt=LEAST_VARIANCE, le=100)
    variance_rate: float = setting(10.0, "multiple of the learning rate for σ²", gt=0)

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        if not isinstance(model, FeaturesAndHead):
            raise UserError("miro needs a network with one linear head, not changed by another method")
        if is_frozen(model.features):
            raise UserError(
                "miro keeps a body near its first weights, but it is not trained; leave out backbone.freeze"
            )
        examples = problem.splits["train"].x[:2].to("cpu", torch.float32)  # networks are built there, in that type
        return Guided(model, self.layers, examples, self.variance)

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        return Update({name: self.variance_rate if ".variances." in f".{name}" else 1.0 for name in names}, count)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weight * outputs.further[DIFFERENCE].mean(), state


class Guided(nn.Module):
    """A network, its body with the first weights, and variances of the channels of its layers.

    Args:
        network: as it is at first.
        layers: modules of its features; none: its parts.
        x: some inputs (N, ...), for the sizes.
        variance: of all channels.
    """

    def __init__(self, network: FeaturesAndHead, layers: Sequence[str], x: Tensor, variance: float) -> None:
        super().__init__()
        self.network = network
        self.body = (network.features,)  # as it is now, whatever another method puts around it
        self.first = copy.deepcopy(network.features).requires_grad_(False)
        self.layers = tuple(dict.fromkeys(_checked(network.features, layers))) or (*parts_of(network.features), "")
        self.train(False)
        with torch.no_grad(), recorded(self.first, self.layers) as values:
            self.first(x)
        fit = tuple(name for name, value in values.items() if len(value) == len(x))  # nodes of a graph are more
        if unfit := [name for name in layers if name not in fit]:
            raise UserError(f"method.layers: the module '{unfit[0]}' returns no tensor with a row for each example")
        self.layers = fit if layers else fit[:-1] or fit
        start = math.log(math.expm1(variance - LEAST_VARIANCE))
        shapes = [_channels_of(self.first.get_submodule(name), values[name]) for name in self.layers]
        learns = any(True for _ in network.features.parameters())  # else there is nothing to keep
        self.variances = nn.ParameterList([nn.Parameter(torch.full(shape, start), learns) for shape in shapes])
        self.train()

    def forward(self, x: Tensor) -> Outputs:
        if not (self.training or torch.is_grad_enabled()):  # whoever differentiates the penalty may do so in any mode
            outputs: Outputs = self.network(x)
            return outputs
        with recorded(self.body[0], self.layers) as values:
            outputs = self.network(x)
        with torch.no_grad(), recorded(self.first, self.layers) as first:
            self.first(x)
        terms = []
        for name, b in zip(self.layers, self.variances, strict=True):
            variance = F.softplus(b) + LEAST_VARIANCE
            difference = (values[name] - first[name]).square() / variance + variance.log()
            terms.append(difference.flatten(1).mean(1) / 2)
        return outputs._replace(further={DIFFERENCE: torch.stack(terms).sum(0)[:, None]})

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.first.eval()
        return self


@contextmanager
def recorded(body: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record what layers of a body return during a block, by their names."""
    values: dict[str, Tensor] = {}

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim > 1:
                values[name] = output

        return body.get_submodule(name).register_forward_hook(keep)

    handles = [record(name) for name in layers]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def parts_of(body: nn.Module) -> tuple[str, ...]:
    """Name the modules with parameters of which a body is made, below all that have only one such part."""
    module, path = body, ""
    while True:
        parts = {name: part for name, part in _children(module) if any(True for _ in part.parameters())}
        if not parts:
            return (path,)
        if len(parts) > 1:
            return tuple(f"{path}.{name}".lstrip(".") for name in parts)
        ((name, module),) = parts.items()
        path = f"{path}.{name}".lstrip(".")


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a module, those of lists in the place of the lists, which are never called."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{inner}", part) for inner, part in _children(child))
        else:
            yield name, child


def _checked(body: nn.Module, layers: Iterable[str]) -> tuple[str, ...]:
    """Raise UserError where a layer is no module of the body."""
    known = dict(body.named_modules())
    for name in layers:
        if name not in known:
            raise UserError(f"method.layers: the body has no module '{name}'{did_you_mean(name, filter(None, known))}")
    return tuple(layers)


def _channels_of(layer: nn.Module, value: Tensor) -> tuple[int, ...]:
    """Return the shape of one number for each channel of what a layer returns.

    Images (N, C, H, W) have channels first, tokens (N, T, C) last, and so have images (N, H, W, C) of networks that
    normalise channels as those of tokens.
    """
    normalised = {part.normalized_shape for part in layer.modules() if isinstance(part, nn.LayerNorm)}
    channels_last = value.ndim != 4 or ((value.shape[3],) in normalised and (value.shape[1],) not in normalised)
    channel = value.ndim - 1 if channels_last else 1
    return tuple(size if dimension == channel else 1 for dimension, size in enumerate(value.shape))[1:]
