"""Which symmetry do my data have? Six methods answer, each in its own words.

Four small problems:

    digits turned by up to 90 degrees   Augerino and LILA: how far one may turn them (a half-width in radians)
    a six, or its half turn             a network that is invariant to all turns, or to quarter turns, guesses; one
                                        whose layers learn to which part of the turns they are equivariant does not
    two figures, upright or not         InstaAug: how far one may turn each of them, read off the picture; shown is how
                                        far that is from the truth, 45 degrees for each
    two bodies that circle              LieGAN: a matrix that nobody named, which moves states to states as likely

Run it with

    python which_symmetry.py        prints the numbers, and draws which_symmetry.png, in two minutes on a CPU
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import invbench

OUT = Path("results/which_symmetry")


def metrics(method: str, dataset: str, **settings: Any) -> dict[str, float]:
    """Train with settings whose dots are written as `__`, and return what is measured."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return invbench.run(method, dataset, settings=named, out=OUT).metrics


def bars(axes: Axes, values: dict[str, float], title: str, label: str, truth: float | None = None) -> None:
    """Draw a bar for each value, and a line at the truth."""
    axes.bar(list(values), list(values.values()), color="#4477aa")
    if truth is not None:
        axes.axhline(truth, color="black", linestyle="--", linewidth=1)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(label)
    axes.tick_params(axis="x", labelsize=7.5)


def main() -> None:
    """Train the methods, print what they have learned, and draw the figure."""
    angle = {"dataset__max_rotation": math.pi / 2, "trainer__epochs": 30}
    widths = {
        "Augerino": metrics("augerino", "digits", backbone__width=8, **angle)["width.rotation"] / 2,
        "LILA": metrics("marginal_likelihood", "digits", **angle)["width.rotation"] / 2,
    }
    short = {"trainer__epochs": 10}
    sixes = {
        "all turns\n(partial off)": metrics("partial_steerable", "sixes", method__partial=False, **short),
        "quarter turns\n(canonical)": metrics("canonical", "sixes", **short),
        "learned\n(partial)": metrics("partial_steerable", "sixes", **short),
    }
    accuracies = {name: values["test_accuracy"] for name, values in sixes.items()}
    figures = metrics(
        "insta_aug",
        "mario_iggy",
        dataset__train_examples=800,
        dataset__test_examples=400,
        backbone__width=8,
        trainer__epochs=30,
        trainer__learning_rate=3e-3,
        method__weight=0.3,
    )
    classes = ("first\nupright", "first\nflipped", "second\nupright", "second\nflipped")
    errors = {name: figures[f"symmetry_error_class{k}"] for k, name in enumerate(classes)}
    bodies = metrics("lie_gan", "two_body", trainer__epochs=15)
    matrix = np.array([[bodies[f"generator.0.{i}.{j}"] for j in range(2)] for i in range(2)])
    print(*(f"{' '.join(name.split())} {value:.2f}" for name, value in (widths | accuracies).items()), sep="\n")
    print(f"InstaAug's mean error {figures['symmetry_error']:.2f}")
    print(f"LieGAN's angle to the truth {bodies['symmetry_angle']:.1f} degrees")

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4)
    bars(first, widths, "digits turned by up to 90°", "half-width (radians)", math.pi / 2)
    bars(second, accuracies, "a six or its half turn", "test accuracy", 0.5)
    bars(third, errors, "InstaAug on two figures", "|half-width - true one| (radians)")
    largest = np.abs(matrix).max()
    fourth.imshow(matrix, cmap="RdBu", vmin=-largest, vmax=largest)
    for (i, j), value in np.ndenumerate(matrix):
        fourth.text(
            j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > largest / 2 else "black"
        )
    fourth.set_title("LieGAN's generator of two bodies", fontsize=10)
    fourth.set_axis_off()
    figure.savefig("which_symmetry.png", dpi=110)


if __name__ == "__main__":
    main()
