"""Averaging is a logical OR: a minimum that appears only where observations are pooled, and one that each of them has.

Two observations A and B and a model of two parameters, as in figure 1 of "Learning explanations that are hard to vary"
(arXiv 2009.00329). Each observation alone is explained along a valley of its own (θ₂ = 1 for A, θ₁ = 1 for B) or at a
bowl that both share, at (-1, -1). The valleys cross at (1, 1): there the mean is zero as well, but neither observation
would have led there alone. Where they disagree the AND-mask stops.

    python or_against_and.py        prints the consistency of both minima, and draws or_against_and.png
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from invbench.analysis.consistency import by_path, by_sampling, largest
from invbench.core.method import Method
from invbench.methods.and_mask import ANDMask

SHARPNESS, RATE, STEPS, EPSILON = 3.0, 0.05, 400, 0.02
STARTS = torch.tensor([[0.4, 2.4], [2.2, 0.2], [-1.8, 1.2], [-2.2, -2.2], [-0.3, -0.5]], dtype=torch.float64)
PATCHWORK, SHARED = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)


def risks(theta: Tensor) -> Tensor:
    """Compute R_A and R_B (2, ...) at parameters (..., 2): the soft minimum of a valley and the shared bowl."""
    first, second = theta[..., 0], theta[..., 1]
    bowl = (first + 1) ** 2 + (second + 1) ** 2
    both = [torch.stack([(along - 1) ** 2, bowl]) for along in (second, first)]
    return torch.stack([-torch.logsumexp(-SHARPNESS * two, 0) / SHARPNESS for two in both])


def descend(rule: Method) -> Tensor:
    """Follow a method's rule from each start: paths (STEPS + 1, starts, 2)."""
    ways = [STARTS]
    for _ in range(STEPS):
        theta = ways[-1].clone().requires_grad_()
        each = torch.stack([torch.autograd.grad(risk.sum(), theta, retain_graph=True)[0] for risk in risks(theta)])
        gradients, _ = rule.combine({"theta": each}, {"theta": torch.zeros_like(theta)}, torch.arange(len(each)), {})
        ways.append(ways[-1] - RATE * gradients["theta"])
    return torch.stack(ways)


def main() -> None:
    """Score both minima, and draw."""
    angles = torch.linspace(0, 2 * torch.pi, 181, dtype=torch.float64)[:-1]
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    for name, minimum in {"patchwork (1, 1)": PATCHWORK, "shared (-1, -1)": SHARED}.items():
        estimates = (
            by_sampling(risks, minimum, EPSILON, rays, 1.0),
            by_path(risks, minimum, EPSILON, 100, 1.0, rays[10]),
        )
        score = -max(largest(gaps.tolist()) for gaps in estimates)
        print(f"{name:<16} consistency {score:.3f}")
    grid = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="xy")
    surface = risks(torch.stack([x, y], -1)).clamp_min(0)
    panels = {"A": surface[0], "B": surface[1], "the mean, an OR": surface.mean(0), "AND-mask": surface.mean(0)}
    rules = {"the mean, an OR": Method(), "AND-mask": ANDMask(scale_by_inverse_sparsity=False)}
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    for ax, (title, height) in zip(figure.subplots(1, 4, sharey=True), panels.items(), strict=True):
        ax.contourf(x, y, height.sqrt(), levels=24, cmap="viridis")
        ax.set(title=title, aspect="equal", xlabel="θ₁")
        for way in descend(rules[title]).unbind(1) if title in rules else ():
            ax.plot(*way.T, color="white", linewidth=1.5)
            ax.plot(*way[0], "o", color="white", markersize=5)
            ax.plot(*way[-1], "*", color="#d55e00", markeredgecolor="white", markersize=13)
    figure.savefig("or_against_and.png", dpi=110)


if __name__ == "__main__":
    main()
