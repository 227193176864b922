"""A method of one's own in one file: the median of the environments' gradients.

A method is ERM with one hook changed; here `combine`, which gets the gradients of all environments. For every weight

    g = median_e g_e

so that what a minority of environments asks for is not done. On the four points of `linear_regression.py` each private
input is the business of one environment, and the shared one of all. The class works with every dataset that has
environments and with every command: name it in an entry point (CONTRIBUTING.md), or put its file into `methods/`.

    python own_method.py            prints the coefficients of ERM, AND-mask and the median, and draws own_method.png
"""

from typing import ClassVar

from matplotlib.figure import Figure
from torch import Tensor

import invbench
from invbench.core.method import Gradients, Method, State
from invbench.core.registry import register_method
from invbench.core.settings import setting


@register_method("median")
class Median(Method):
    """Take each element's median over the environments instead of the mean."""

    requires: ClassVar[tuple[str, ...]] = ("environments",)

    quantile: float = setting(0.5, "of the environments' gradients, element by element", gt=0, lt=1)

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        """Combine risk_grads, (E, ...) of each parameter, into the step's gradient."""
        gradients = {name: each.quantile(self.quantile, dim=0) for name, each in risk_grads.items()}
        return {name: value + penalty_grad[name] for name, value in gradients.items()}, state


def main() -> None:
    """Train, print and draw."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    methods = ("erm", "and_mask", "median")
    for method, ax in zip(methods, figure.subplots(1, len(methods), sharey=True), strict=True):
        metrics = invbench.run(method, "and_mask_regression").metrics
        coefficients = [metrics[f"coefficient.{i}"] for i in range(5)]
        print(f"{method:<10}", " ".join(f"{value:7.3f}" for value in coefficients))
        ax.bar(range(5), coefficients, color=["#0072b2"] * 4 + ["#d55e00"])
        ax.axhline(10 / 3, color="#606060", linestyle="--", linewidth=0.8)
        ax.set(title=method, xticks=range(5), xticklabels=["1", "2", "3", "4", "shared"])
    figure.supylabel("coefficient (dashed: invariant)", fontsize="medium")
    figure.savefig("own_method.png", dpi=110)


if __name__ == "__main__":
    main()
