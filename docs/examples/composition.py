"""`augerino+and_mask`: two methods in one, where either alone fails.

Fours and sevens, 8x8, upright. Beside the image, four channels are filled with a note: each of the 16 environments
has four random numbers for its fours and four for its sevens. The test turns the digits to any angle and writes notes
at random. It takes an invariance (to turns), and indifference to what only one environment knows (the notes):

    ERM                 learns the digits, since upright ones are easier than notes, and fails when they are turned
    AND-mask            the same
    Augerino            widens the rotation to all angles; now notes are the easier thing to learn, and it takes them
    augerino+and_mask   averages over rotations, and keeps what all environments' gradients agree on: it passes

    python composition.py           prints the accuracies on four kinds of test, and draws composition.png
"""

from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

import invbench
from invbench.components.images import rotate
from invbench.core.data import Dataset, Problem, Split, floats
from invbench.core.registry import register_dataset
from invbench.core.task import Classification

ENVIRONMENTS, NUMBERS, LOUDNESS, TRAIN, SIDE = 16, 4, 0.3, 256, 12


@register_dataset("noted_digits")
class NotedDigits(Dataset):
    """Fours and sevens with a note of their class in the language of their environment."""

    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments")

    def load(self, seed: np.random.SeedSequence) -> Problem:
        """Train, and tests with other notes, other angles, both, and neither; images (N, 5, 12, 12)."""
        rng = np.random.default_rng(seed)
        pixels, digits = load_digits(return_X_y=True)
        order = rng.permutation(np.flatnonzero(np.isin(digits, [4, 7])))
        images = torch.nn.functional.pad(floats(pixels[order] / 16).reshape(-1, 1, 8, 8), (2, 2, 2, 2))
        y, env = torch.from_numpy((digits[order] == 7).astype(int)), torch.arange(len(order)) % ENVIRONMENTS
        notes = LOUDNESS * floats(rng.normal(size=(ENVIRONMENTS, 2, NUMBERS)))
        angles = floats(rng.uniform(-np.pi, np.pi, len(order)))
        turned, guessed = rotate(images, angles), torch.from_numpy(rng.integers(0, 2, len(order)))
        train, test = slice(None, TRAIN), slice(TRAIN, None)
        splits = {
            "train": Split(beside(images, notes[env, y])[train], y[train], env[train]),
            "upright": Split(beside(images, notes[env, y])[test], y[test]),
            "upright, wrong notes": Split(beside(images, notes[env, guessed])[test], y[test]),
            "turned": Split(beside(turned, notes[env, y])[test], y[test]),
            "test": Split(beside(turned, notes[env, guessed])[test], y[test]),
        }
        return Problem(splits, Classification(2), "image", "synthetic", classes=("four", "seven"))


def beside(images: Tensor, notes: Tensor) -> Tensor:
    """Join images (N, 1, S, S) and notes (N, K) as channels (N, 1 + K, S, S)."""
    return torch.cat([images, notes[:, :, None, None].expand(-1, -1, SIDE, SIDE)], dim=1)


SETTINGS = {
    "backbone.name": "mlp",
    "backbone.width": 64,
    "backbone.depth": 2,
    "trainer.steps": 300,
    "trainer.batch_size": None,
    "trainer.optimizer": "adam",
    "trainer.learning_rate": 1e-2,
    "trainer.weight_decay": 1e-3,
}
TURNS = {
    "method.generators": ["rotation"],
    "method.initial_width": 1.0,
    "method.regularisation": 0.05,
    "method.learning_rate": 3e-2,
}
COLOURS = ("#999999", "#e69f00", "#56b4e9", "#0072b2")
METHODS = {"erm": {}, "and_mask": {}, "augerino": TURNS, "augerino+and_mask": TURNS}
SPLITS = ("upright", "upright, wrong notes", "turned", "test")


def main() -> None:
    """Train all four, print and draw."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    ax = figure.subplots()
    for row, (method, settings) in enumerate(METHODS.items()):
        metrics = invbench.run(method, "noted_digits", settings=SETTINGS | settings).metrics
        accuracies = [metrics[f"{split}_accuracy"] for split in SPLITS]
        print(
            f"{method:<18}", "  ".join(f"{split} {value:.2f}" for split, value in zip(SPLITS, accuracies, strict=True))
        )
        ax.bar(np.arange(len(SPLITS)) + 0.2 * row - 0.3, accuracies, 0.19, label=method, color=COLOURS[row])
    ax.axhline(0.5, color="#606060", linestyle="--", linewidth=0.8)
    ax.set(xticks=range(len(SPLITS)), xticklabels=[*SPLITS[:-1], "test: both"], ylabel="accuracy (dashed: chance)")
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig("composition.png", dpi=110)


if __name__ == "__main__":
    main()
