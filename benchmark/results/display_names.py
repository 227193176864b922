"""What methods, datasets and metrics are called in a paper; programs and the command line know registered names.

A class may say its own: `display_name: ClassVar[str] = "Worst-case risk"`.
"""

import re

from invbench.core.registry import DATASETS, METHODS, Registry
from invbench.errors import UserError

NAMES_OF_METHODS = {
    "adareg": "AdaReg", "adversary": "Adversary", "and_mask": "AND-mask", "augerino": "Augerino",
    "augerino_color": "Augerino (color)", "coral": "CORAL", "erm": "ERM", "fish": "Fish", "fishr": "Fishr",
    "fixed_augmentation": "Fixed augmentation", "group_dro": "GroupDRO", "ib_erm": "IB-ERM", "ib_irm": "IB-IRM",
    "icp": "ICP", "iga": "IGA", "inverse_adareg": "Inverse AdaReg", "irm_games": "IRM Games", "irmv1": "IRM",
    "mm_rex": "MM-REx", "mmd": "MMD", "mutual_information": "Mutual information", "oracle": "Oracle",
    "pcgrad": "PCGrad", "sand_mask": "SAND-mask", "sd": "SD", "simple_adareg": "Simple AdaReg",
    "soft_adareg": "Soft AdaReg", "steerable": "Steerable CNN", "vrex": "V-REx",
}  # fmt: skip
NAMES_OF_DATASETS = {
    "and_mask_regression": "AND-mask regression", "chain_sem": "Chain SEM", "cifar10": "CIFAR-10",
    "colored_digits": "Colored digits", "colored_mnist": "Colored MNIST", "digits": "Rotated digits",
    "irm_regression": "IRM regression", "linear_unit_tests": "Linear unit tests", "mario_iggy": "Mario & Iggy",
    "mi_toy": "MI toy", "olivetti": "Olivetti faces", "pivot": "Pivot", "qm9": "QM9", "rotmnist": "Rotated MNIST",
    "spirals": "Spirals", "tabular_nuisance": "Tabular nuisance",
}  # fmt: skip
ENDINGS = {"average": "average over environments", "worst": "worst environment"}
"""Of metrics that sum environments up."""
METRIC = re.compile(r"(?P<metric>.+?)_(?P<ending>env\d+|average|worst)")


def display_method(name: str) -> str:
    """What a method is called in a paper, or each part of a composition."""
    return " + ".join(_displayed(METHODS, NAMES_OF_METHODS, part) for part in name.split("+"))


def display_dataset(name: str) -> str:
    """What a dataset is called in a paper."""
    return _displayed(DATASETS, NAMES_OF_DATASETS, name)


def display_metric(name: str) -> str:
    """A metric, such as `test accuracy (worst environment)`."""
    if match := METRIC.fullmatch(name):
        ending = match["ending"].replace("env", "environment ", 1)
        return f"{display_metric(match['metric'])} ({ENDINGS.get(ending, ending)})"
    words = name.removeprefix("cost.").replace("test_out_", "test-out ").replace("_", " ").replace(".", ": ")
    return words.replace("roc auc", "ROC AUC").replace("memory bytes", "memory (bytes)")


def _displayed(registry: Registry, ours: dict[str, str], name: str) -> str:
    """Ours, or what the class says; results may be of a method that is not installed here, which has no other name."""
    if name in ours:
        return ours[name]
    try:
        return str(registry.literal(name, "display_name", name))
    except UserError:
        return name
