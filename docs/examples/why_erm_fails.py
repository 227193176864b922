"""Why ERM fails: cows stand on grass, camels on sand, and the background is the easier thing to see.

Example 2 of the linear unit tests (arXiv 2102.10867). Five numbers tell the animal without error but are small; five
large ones tell the background, which goes with the animal in 95 to 99 % of the training examples, and in the test is
shuffled. ERM explains nearly every example by the background and stays there; the oracle, whose backgrounds are
shuffled in training too, shows that the animal can be learned in as many steps. The few cows on sand do pull ERM to
the animal: with ten times the learning rate it arrives. So "ERM fails" is a statement about what is learned first, and
an accuracy of 97 % on data like the training data does not tell which of the two it was. Knowing the environments is
no cure by itself: IRMv1, whose penalty is small where all predictions are, loses the background and gains nothing.

    python why_erm_fails.py         prints the accuracies, and draws the data and the courses: why_erm_fails.png
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import invbench
from invbench.core.data import Split
from invbench.training.restored import load_run

OUT = Path("results/why_erm_fails")
SETTINGS = {
    "dataset.example": "example2",
    "dataset.examples": 1000,
    "trainer.steps": 1000,
    "trainer.evaluate_every": 50,
}
RUNS = {
    "ERM": ("erm", 1e-2),
    "IRMv1": ("irmv1", 1e-2),
    "oracle": ("oracle", 1e-2),
    "ERM, rate 0.1": ("erm", 1e-1),
}
COLOURS = ("#d55e00", "#cc79a7", "#009e73", "#0072b2")


def draw_data(ax: Axes, name: str, data: Split) -> None:
    """Draw animal against background, the mean of five numbers each."""
    for label, animal, colour in ((1, "cow", "#303030"), (0, "camel", "#e69f00")):
        x = data.x[data.y == label]
        ax.plot(x[:, 5:].mean(1), 100 * x[:, :5].mean(1), ".", color=colour, markersize=2, label=animal)
    ax.set(title=name, xlabel="background", ylabel="100 times animal")
    ax.legend(markerscale=5)


def main() -> None:
    """Train, print and draw."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    *axes, course = figure.subplots(1, 3)
    for (name, (method, rate)), colour in zip(RUNS.items(), COLOURS, strict=True):
        record = invbench.run(method, "linear_unit_tests", settings=SETTINGS | {"trainer.learning_rate": rate}, out=OUT)
        print(f"{name:<14} training {record.metrics['train_accuracy']:.3f}  test {record.metrics['test_accuracy']:.3f}")
        curves = invbench.load_curves(OUT / record.run_id)
        for split, style in (("validation", ":"), ("test", "-")):
            course.plot(
                curves["step"],
                curves[f"{split}_accuracy"],
                style,
                color=colour,
                label=name if split == "test" else None,
            )
    for ax, split in zip(axes, ("train", "test"), strict=True):
        draw_data(ax, split, load_run(OUT / record.run_id).problem.splits[split])
    course.set(title="dotted: validation, as in training", xlabel="step", ylabel="accuracy")
    course.legend()
    figure.savefig("why_erm_fails.png", dpi=110)


if __name__ == "__main__":
    main()
