"""Augerino finds out how far figures may be turned: up to where upright and upside-down meet.

Two figures, upright within 45 degrees or upside-down within 45 degrees, four classes (arXiv 2010.11882, section 4.2).
Rotations from an interval of width π/2 change no class; the regulariser widens the interval until the risk objects.

    python rotation_range.py        prints what was learned, and draws it over the steps: rotation_range.png
"""

import math
from pathlib import Path

import invbench
from invbench.reporting.run_figures import widths

OUT = Path("results/rotation_range")
SETTINGS = {
    "dataset.train_examples": 1600,
    "dataset.test_examples": 400,
    "backbone.width": 8,
    "trainer.epochs": 12,
    "trainer.evaluate_every": 1000,
    "method.learning_rate": 3e-2,
    "method.test_copies": 1,
}


def main() -> None:
    """Train, print and draw."""
    metrics = invbench.run("augerino", "mario_iggy", settings=SETTINGS, out=OUT).metrics
    for name in ("rotation", "scale", "translation_x"):
        print(f"width of {name:<14} {metrics[f'width.{name}']:.3f}")
    print(f"ideal for the rotation {math.pi / 2:.3f}; test accuracy {metrics['test_accuracy']:.3f}")
    widths([OUT], [math.pi / 4]).savefig("rotation_range.png", dpi=110)


if __name__ == "__main__":
    main()
