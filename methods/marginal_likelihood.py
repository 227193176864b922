"""LILA: the evidence chooses the augmentation ("Invariance Learning in Deep Neural Networks with [...] Laplace [...]").

Immer, van der Ouderaa, Rätsch, Fortuin, van der Wilk (2022), NeurIPS, arXiv 2202.10638. With generators G_k, noise
u_k ~ U(-1, 1) of every input and copy j, and layers l whose weights w_l have the prior N(0, 1/δ_l):

    g_j = exp(Σ_k u_k |θ_k| G_k)        f(x) = (1/J) Σ_j f_w(g_j x), averages of logits
    -log Z(θ, δ) = -log p(data | f) + ½ Σ_l δ_l ‖w_l‖² + ½ log|1 + Δ⁻¹ H|
    objective = -log Z / N

w gets the gradient of the first two terms, which makes it the posterior's mode; in the third it is a constant. θ and
log δ get all of it: transformations that the data do not contradict make H smaller, those that they do, the first term
larger. H is the Gauss-Newton matrix of f, in Kronecker factors of each layer's inputs a and its outputs' slopes g, both
averaged over copies (ā, ḡ; of convolutions, patches in columns, with sums over T places), and of Λ = ∂²(-log p)/∂f²:

    H_l = N A_l ⊗ B_l        A_l = mean_n ā_n ā_nᵀ        B_l = (1/T) mean_n ḡ_nᵀ Λ_n ḡ_n
    log|1 + H_l/δ_l| = Σ_ij log(1 + N α_i β_j / δ_l)        α, β eigenvalues of A_l, B_l

θ, a half-width, begins at 0; |θ| turns back at 0 and, of rotations, at π. There is no validation and no regulariser.
Gradients of single draws at θ = 0 have mean 0, but are not 0, and -log Z curves downward there if the widths should
grow. A prior of one's own beside it counts twice: leave `trainer.weight_decay` at 0. Layers are linear ones and
convolutions with their biases; others, such as batch norm, have no prior, and are as in evaluation where H is computed.
The curves' `width` is 2 |θ|, as for Augerino. What the evidence prefers is not always how far the data were turned: 8x8
digits turned by up to π/4 leave room for more, and -log Z / N with fixed θ is least near 1.15.

Deviations from the authors' code:
- A and B are means over 8 examples of the batch by default, whose slopes are all in memory at once, not over all data.
  Few examples make H's rank too small: null takes the whole batch. θ and δ move with the weights in every step, without
  a burn-in; theirs move once an epoch.
- A bias is a further input of its layer, not a block of H. One δ a layer, not one a tensor.
- A width that reaches its end turns back.
- The weights of the end are those of the last step, not of the largest evidence.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from invbench.components.affine import generators
from invbench.components.augmentation import AugmentationMethod, Averaged, RandomAffine, known_generators
from invbench.components.eval_mode import eval_mode
from invbench.components.learned import LearnedScalars
from invbench.core.data import Batch, Problem
from invbench.core.method import Outputs, State, as_outputs
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, setting
from invbench.core.task import BinaryClassification, Task
from invbench.errors import UserError

LARGEST = {"rotation": math.pi}
"""Half-width at which that of a generator turns back."""
Roots = dict[str, tuple[Tensor, Tensor]]
"""A½ (I, P) and B½ (O, Q) of each layer, by name: A = A½ A½ᵀ (I, I), B = B½ B½ᵀ (O, O)."""


@register_method("marginal_likelihood")
class MarginalLikelihood(AugmentationMethod):
    """Average over affine transformations whose widths maximise a Laplace approximation of the evidence."""

    display_name: ClassVar[str] = "LILA"
    requires: ClassVar[tuple[str, ...]] = ("image", "classification")
    small: ClassVar[Mapping[str, Any]] = {
        "method.train_copies": 2,
        "method.test_copies": 2,
        "method.curvature_examples": 3,
    }
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "image": {"method.train_copies": 0, "method.curvature_examples": None}
    }

    train_copies: int = setting(11, "J in training", ge=0, search=Choice((5, 11, 31)))
    test_copies: int = setting(11, "J in evaluation", ge=0)
    generators: tuple[str, ...] | None = setting(None, "names of the generators; null takes all", min_length=1)
    first_width: float = setting(0.0, "first θ of every generator: half of the width", ge=0, le=100)
    learning_rate: float = setting(0.03, "of θ", gt=0, search=LogUniform(3e-3, 1e-1))
    first_precision: float = setting(1.0, "first δ of every layer", gt=0, search=LogUniform(0.1, 10))
    precision_learning_rate: float = setting(0.03, "of log δ", gt=0)
    curvature: Literal["network", "last_layer"] = setting(
        "network", "layers that have a prior and a part in H; last_layer is faster with convolutions, finds less width"
    )
    curvature_examples: int | None = setting(
        8, "most examples of a batch that A and B are means of; null takes all, in memory", ge=1
    )

    def transformation(self, problem: Problem) -> nn.Module:
        names = known_generators(problem, self.generators or tuple(generators(problem)), "method.generators")
        function = partial(full_widths, largest=tuple(LARGEST.get(name, math.inf) for name in names))
        widths = LearnedScalars("width", dict.fromkeys(names, self.first_width), function, self.learning_rate)
        return RandomAffine(problem, widths, names, "symmetric")

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return WithEvidence(self, self.transformation(problem), model, problem)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return outputs.learned["occam_factor"], state


def full_widths(half_widths: Tensor, largest: tuple[float, ...]) -> Tensor:
    """Return 2 |θ| for θ (k,), where |θ| turns back at 0 and at `largest`, so that a width is held at neither."""
    magnitudes = torch.where(half_widths < 0, -half_widths, half_widths)
    # One number at a time: a tensor of the limits would be a copy to the device in every step.
    pairs = [(width % (2 * limit), limit) for width, limit in zip(magnitudes.unbind(), largest, strict=True)]
    return 2 * torch.stack([torch.where(width <= limit, width, 2 * limit - width) for width, limit in pairs])


class WithEvidence(Averaged):
    """Model averaged over copies of its input; in training its outputs carry what -log Z / N adds to the risk."""

    def __init__(
        self, method: MarginalLikelihood, transformation: nn.Module, model: nn.Module, problem: Problem
    ) -> None:
        super().__init__(method, transformation, model, problem.task)
        self.settings, self.examples = method, len(problem.splits["train"])
        layers = [name for name, part in model.named_modules() if is_layer(part)]
        if not layers:
            raise UserError("marginal_likelihood needs linear layers or convolutions; choose another backbone")
        self.layers = layers[-1:] if method.curvature == "last_layer" else layers
        self.sizes = self._sizes(next(model.parameters()).new_zeros(1, *problem.input_shape))
        first = {layer.replace(".", "_") or "layer": math.log(method.first_precision) for layer in self.layers}
        self.precisions = LearnedScalars("precision", first, torch.exp, method.precision_learning_rate)
        self.scalars = (*self.learned, self.precisions)

    def forward(self, x: Tensor) -> Outputs:
        if not self.training:
            return super().forward(x)
        copies = max(1, self.method.train_copies)
        rows = x.expand(copies, *x.shape).flatten(0, 1)
        moved = self.transformation(rows) if self.method.train_copies else rows
        each = as_outputs(self.model(moved))
        outputs = self._averaged(each.map(lambda part: part.unflatten(0, (copies, len(x)))))
        chosen = slice(None, None, -(-len(x) // (self.settings.curvature_examples or len(x))))  # of all environments
        with torch.autocast(x.device.type, enabled=False):
            occam_factor = self.occam_factor(moved.unflatten(0, (copies, len(x)))[:, chosen])
        learned = {part.what: part() for part in self.scalars} | {"occam_factor": occam_factor}
        return outputs._replace(learned={**outputs.learned, **learned})

    def occam_factor(self, copies: Tensor) -> Tensor:
        """Compute (Σ_l δ_l ‖w_l‖² + log|1 + Δ⁻¹ H|) / 2N from copies (J, M, ...) of examples."""
        total, roots = copies.new_zeros(()), self.roots(copies)
        for name, precision in zip(self.layers, self.precisions(), strict=True):
            for parameter in self.model.get_submodule(name).parameters():
                total = total + precision * parameter.square().sum()
            inputs, outputs = (_eigenvalues(root) for root in roots[name])
            total = total + (self.examples / precision * inputs[:, None] * outputs).log1p().sum()
        return total / (2 * self.examples)

    def roots(self, copies: Tensor) -> Roots:
        """Compute roots of the factors of H from copies (J, M, ...) of examples. The weights are constants."""
        with eval_mode(self.model):
            predictions, inputs, slopes = self._inputs_and_slopes(copies.flatten(0, 1))
        count = copies.shape[1]
        loss_roots = hessian_root(predictions.unflatten(0, (-1, count)).mean(0), self.task)
        roots = {}
        for name in self.layers:
            mean_input = inputs[name].unflatten(0, (-1, count)).mean(0)
            mean_slopes = slopes[name].unflatten(1, (-1, count)).mean(1)
            roots[name] = layer_roots(self.model.get_submodule(name), mean_input, mean_slopes, loss_roots)
        return roots

    def _sizes(self, x: Tensor) -> dict[str, torch.Size]:
        """Return what each layer makes of one example (1, ...), without the first dimension; training has not begun."""
        sizes: dict[str, torch.Size] = {}

        def note_size(name: str, _: Tensor, output: Tensor) -> Tensor:
            if name in sizes or len(output) != 1:
                raise UserError(
                    "marginal_likelihood needs a network whose layers see every input once, and another method's "
                    "layers see copies or turns of it: use one of the methods at a time"
                )
            sizes[name] = output.shape[1:]
            return output

        with torch.no_grad(), eval_mode(self.model):
            self._watched(x, note_size)
        return sizes

    def _watched(self, x: Tensor, watch: Callable[[str, Tensor, Tensor], Tensor]) -> Tensor:
        """Return predictions of x (N, ...), while `watch` replaces what layers return, by name, input and output."""

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            return lambda _, inputs, output: watch(name, inputs[0], output)

        handles = [self.model.get_submodule(name).register_forward_hook(hook(name)) for name in self.layers]
        constants = {name: value.detach() for name, value in self.model.named_parameters()}
        try:
            return as_outputs(functional_call(self.model, constants, (x,))).prediction
        finally:
            for handle in handles:
                handle.remove()

    def _inputs_and_slopes(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Compute predictions (N, K), inputs (N, ...) of layers, and derivatives (K, N, ...) by what layers return."""

        def shifted(shifts: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            inputs: dict[str, Tensor] = {}

            def shift(name: str, given: Tensor, output: Tensor) -> Tensor:
                inputs[name] = given
                return output + shifts[name]

            predictions = self._watched(x, shift)
            return predictions, (predictions, inputs)

        zeros = {name: x.new_zeros(len(x), *self.sizes[name]) for name in self.layers}
        result: Any = vjp(shifted, zeros, has_aux=True)
        _, pullback, (predictions, inputs) = result
        outputs = predictions.shape[-1]
        each = torch.eye(outputs, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
        (slopes,) = vmap(pullback)(each)
        return predictions, inputs, slopes


def layer_roots(layer: nn.Module, inputs: Tensor, slopes: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """Compute A½ (I, P) and B½ (O, Q).

    Args:
        layer: one that `is_layer`.
        inputs: of the layer (M, ...).
        slopes: derivatives (K, M, O, ...) of predictions by what it returns.
        roots: R (M, K, K) with R Rᵀ = Λ.
    """
    columns = inputs[..., None]
    if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, tuple):
        columns = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    if layer.bias is not None:
        columns = F.pad(columns, (0, 0, 0, 1), value=1.0)
    places = columns.shape[-1]
    columns = columns.transpose(0, 1).flatten(1)
    weighed = torch.einsum("mkl,kmop->omlp", roots, slopes.flatten(3) if slopes.ndim > 3 else slopes[..., None])
    rows = weighed.flatten(1)
    return columns / math.sqrt(len(inputs)), rows / math.sqrt(len(inputs) * places)


def hessian_root(logits: Tensor, task: Task) -> Tensor:
    """Compute R (..., K, K) with R Rᵀ the second derivative of the loss by logits (..., K)."""
    if isinstance(task, BinaryClassification):
        return (0.5 * (F.logsigmoid(logits) + F.logsigmoid(-logits))).exp()[..., None]
    logarithms = logits.log_softmax(-1)
    roots = (0.5 * logarithms).exp()  # of probabilities: a root's derivative at 0 is infinite
    return torch.diag_embed(roots) - logarithms.exp()[..., :, None] * roots[..., None, :]


def is_layer(part: nn.Module) -> bool:
    """Tell whether the factors of a layer are known."""
    if type(part) is nn.Conv2d:
        return part.groups == 1 and part.padding_mode == "zeros" and isinstance(part.padding, tuple)
    return type(part) is nn.Linear


def _eigenvalues(root: Tensor) -> Tensor:
    """Compute the eigenvalues of root rootᵀ (I, I) but for zeros, which rounding may make negative.

    They are those of the smaller of root rootᵀ and rootᵀ root. Those of a network without bounds are 0.
    """
    product = root @ root.T if root.shape[0] <= root.shape[1] else root.T @ root
    eigenvalues: Tensor = torch.linalg.eigvalsh(product.nan_to_num(posinf=0.0))
    return eigenvalues.clamp(min=0)
