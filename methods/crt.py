"""CRT: keep the body of a trained network, and train its head again ("Decoupling Representation and Classifier").

Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis (2020), arXiv 1910.09217. With the body φ of a finished run, which
stays as it is, a fresh head h minimises the risk of h(φ(x)). How examples count is for another part to say:

    crt                                       as they are                             ("vanilla CRT")
    crt+group_weights, method.group_weights.apply=sampling    drawn by how rare their group is        ("CRT")
    crt+group_weights                         weighted by how rare their group is     ("ReWeightCRT")

The names are SubpopBench's (arXiv 2302.12254).
"""

from typing import ClassVar, Literal

import numpy as np

from invbench.core.data import Problem
from invbench.core.registry import register_method
from invbench.core.stages import FirstStage, SecondStage


@register_method("crt")
class CRT(SecondStage):
    """Train a fresh head on the features of a finished run."""

    display_name: ClassVar[str] = "CRT"
    requires: ClassVar[tuple[str, ...]] = ("classification",)
    keeps: ClassVar[Literal["nothing", "body", "network"]] = "body"

    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        return problem
