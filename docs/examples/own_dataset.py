"""A dataset of one's own in one file: two moons, and a thermometer that lies.

Three inputs: where a point lies on two interleaved half circles, and a reading t = ±1. A quarter of the labels are
noise, so that no more than 75 % can be had from the moons; the reading agrees with the label in 80 % of the first
training environment, 90 % of the second, and 10 % of the test. The construction is that of coloured MNIST
(arXiv 1907.02893), small enough to see. `provides` says what there is, and every method that needs no more than that
runs on it: the class can be named in an entry point (CONTRIBUTING.md), or its file be put into `datasets/`.

    python own_dataset.py           prints a table of four methods over two seeds, and draws own_dataset.png
"""

from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

import invbench
from invbench.core.data import Dataset, Problem, Split, concatenate, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification
from invbench.seeding import children, stream


@register_dataset("thermometer")
class Thermometer(Dataset):
    """Two moons and a reading that tells the label, until the test reverses it."""

    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "environments")

    examples: int = setting(1000, "per environment and split", ge=2)
    label_noise: float = setting(0.25, "fraction of labels that are flipped", ge=0, le=0.5)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        """Make two training environments, which serve as validation too, and the test environment."""
        rng = [np.random.default_rng(child) for child in children(seed, 5)]
        splits = {
            "train": concatenate([self._drawn(0.2, 0, rng[0]), self._drawn(0.1, 1, rng[1])]),
            "validation": concatenate([self._drawn(0.2, 0, rng[2]), self._drawn(0.1, 1, rng[3])]),
            "test": self._drawn(0.9, 0, rng[4]),
        }
        return Problem(splits, BinaryClassification(), "vector", "synthetic")

    def _drawn(self, wrong: float, environment: int, rng: np.random.Generator) -> Split:
        """Draw examples whose reading is wrong with this probability."""
        points, moon = make_moons(self.examples, noise=0.1, random_state=int(rng.integers(2**31)))
        label = moon ^ (rng.random(self.examples) < self.label_noise)
        reading = 2 * (label ^ (rng.random(self.examples) < wrong)) - 1
        x = floats(np.concatenate([points, reading[:, None]], axis=1))
        return Split(x, floats(label), env=floats(np.full(self.examples, environment)).long())


SETTINGS = {
    "backbone.width": 32,
    "trainer.steps": 400,
    "trainer.batch_size": None,
    "trainer.optimizer": "adam",
    "trainer.learning_rate": 3e-3,
}
STRONG = {"method.weight": 1e4, "method.anneal_steps": 150}
METHODS = {"erm": {}, "and_mask": {}, "vrex": STRONG, "irmv1": STRONG}


def main() -> None:
    """Train all, print the table and draw."""
    for method, settings in METHODS.items():
        for seed in (0, 1):
            invbench.run(method, "thermometer", seed=seed, settings=SETTINGS | settings, out="results/own_dataset")
    means = invbench.table(invbench.load_results("results/own_dataset"))
    print(means[["method", "n", "mean"]].round(3).to_string(index=False))
    splits = Thermometer().load(stream(0, "data")).splits
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    *axes, bars = figure.subplots(1, 4)
    train, test = splits["train"], splits["test"]
    panels = {
        "environment 0: right in 80 %": train.rows(train.env == 0),
        "environment 1: right in 90 %": train.rows(train.env == 1),
        "test: right in 10 %": test,
    }
    for ax, (title, split) in zip(axes, panels.items(), strict=True):
        for label, mark in ((0, "_"), (1, "+")):
            x = split.rows(split.y == label).x[:250]
            ax.scatter(x[:, 0], x[:, 1], c=x[:, 2], marker=mark, cmap="coolwarm", linewidths=1)
        ax.set(title=title, xticks=[], yticks=[])
    axes[0].set_xlabel("colour: reading; sign: label")
    bars.barh(means["method"], means["mean"], color="#0072b2")
    bars.axvline(0.75, color="#606060", linestyle="--", linewidth=0.8)
    bars.set(title="test accuracy", xlabel="dashed: what can be had", xlim=(0, 1))
    figure.savefig("own_dataset.png", dpi=110)


if __name__ == "__main__":
    main()
