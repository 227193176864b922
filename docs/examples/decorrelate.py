"""Learning to pivot: keep a classifier's score from telling a nuisance.

Two Gaussians, one of which is shifted by a continuous nuisance (arXiv 1611.01046). Trained on labels alone, the score
tells the nuisance; with a penalty on an estimate of their mutual information it hardly does, at some cost of accuracy.

    python decorrelate.py           prints both, and draws the scores' densities at three values: decorrelate.png
"""

from pathlib import Path

import invbench
from invbench.reporting.nuisance_figures import densities

OUT = Path("results/decorrelate")
SETTINGS = {
    "dataset.train_examples": 10_000,
    "dataset.test_examples": 10_000,
    "trainer.epochs": 4,
    "trainer.optimizer": "adam",
    "trainer.learning_rate": 3e-3,
}


def main() -> None:
    """Train both, print and draw."""
    for method, settings in {"erm": {}, "mutual_information": {"method.weight": 10.0}}.items():
        metrics = invbench.run(method, "pivot", settings=SETTINGS | settings, out=OUT).metrics
        auc, mi = metrics["test_roc_auc"], metrics["test_mutual_information"]
        print(f"{method:<20} area under the ROC curve {auc:.3f}, mutual information with the nuisance {mi:.3f} nat")
    densities([OUT], [-1.0, 0.0, 1.0]).savefig("decorrelate.png", dpi=110)


if __name__ == "__main__":
    main()
