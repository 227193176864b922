"""Four points, five inputs: what the mean of gradients, the AND-mask and the geometric mean make of them.

Each point has a strong input of its own and a weak one that all share (notebook of arXiv 2009.00329). A patchwork of
private inputs fits as well as the shared one does, and the mean finds it, since each point pulls at its own.

    python linear_regression.py     prints the coefficients, and draws linear_regression.png
"""

from matplotlib.figure import Figure

import invbench

WAYS = {
    "mean of gradients": ("erm", {}),
    "AND-mask": ("and_mask", {}),
    "geometric mean": ("and_mask", {"method.rule": "geometric_mean"}),
}


def main() -> None:
    """Train all three, print and draw."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, len(WAYS), sharey=True)
    for ax, (name, (method, settings)) in zip(axes, WAYS.items(), strict=True):
        metrics = invbench.run(method, "and_mask_regression", settings=settings).metrics
        coefficients = [metrics[f"coefficient.{i}"] for i in range(5)]
        print(f"{name:<18}", " ".join(f"{value:7.3f}" for value in coefficients))
        ax.bar(range(5), coefficients, color=["#0072b2"] * 4 + ["#d55e00"])
        ax.axhline(10 / 3, color="#606060", linestyle="--", linewidth=0.8)
        ax.set(title=name, xticks=range(5), xticklabels=["1", "2", "3", "4", "shared"])
    axes[0].set_ylabel("coefficient (dashed: invariant)")
    figure.savefig("linear_regression.png", dpi=110)


if __name__ == "__main__":
    main()
