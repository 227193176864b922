"""Group weights: let rare groups count more, by weights of their losses or by how often they are drawn.

With n_g training examples of each group g (label and attribute), or of each class (`by: class`), the weight w_g is

    inverse          1 / n_g                        (RWG, RWY; "ReWeight", "ReSample")
    square_root      1 / √n_g                       ("SqrtReWeight")
    class_balanced   (1 - β) / (1 - β^n_g)          ("CBLoss"; Cui, Jia, Lin, Song, Belongie 2019, arXiv 1901.05555)
    subsample        keep min_g n_g examples of each group, drawn once (SUBG, SUBY)

scaled to a mean of 1 over the groups that have an example; with `apply: loss` the objective is the mean of w_g ℓ, with
`apply: sampling` examples are drawn with replacement, with probabilities proportional to w_g in each environment. The
names are those of Idrissi, Arjovsky, Pezeshki, Lopez-Paz (2022), arXiv 2110.14503, and of Yang, Zhang, Katabi, Ghassemi
(2023), arXiv 2302.12254 (SubpopBench), whose default and range of β these are. Where training does not know the
attribute, groups are classes.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invbench.components.group_weights import Rule, counts_by, group_weights, subsampled
from invbench.core.data import Batch, Problem, Split, group_of
from invbench.core.hooks import ExampleChange, ExampleCounts, LossChange, LossFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting


@register_method("group_weights")
class GroupWeights(LossChange, ExampleChange, ExampleCounts):
    """Weigh or draw examples by how rare their group is."""

    display_name: ClassVar[str] = "Group weights"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    rule: Literal["inverse", "square_root", "class_balanced", "subsample"] = setting("inverse", "weights of groups")
    by: Literal["group", "class"] = setting("group", "what has a weight: label and attribute, or the label alone")
    apply: Literal["loss", "sampling"] = setting("loss", "weigh losses, or draw examples; of subsample no matter which")
    beta: float = setting(
        0.9999, "β of class_balanced", ge=0, lt=1, search=Choice(tuple(1 - 10**-k for k in (2, 2.75, 3.5, 4.25, 5)))
    )

    @property
    def changes_losses(self) -> bool:
        return self.rule != "subsample" and self.apply == "loss"

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        rule: Rule = self.rule  # type: ignore[assignment]  # the others do not come here
        weights = group_weights(counts_by(state["counts"]["groups"], self.by), rule, self.beta)
        groups = batch.y.long() if self.by == "class" else self.group(batch, state)
        w = weights.index_select(0, groups.flatten()).reshape(groups.shape)
        return w * loss(outputs.prediction, batch.y)

    def examples(self, given: Split, problem: Problem, generator: np.random.Generator) -> Split:
        if self.changes_losses:
            return given
        attribute = given.attribute if self.by == "group" else None
        groups = group_of(given.y, attribute, problem.attributes).cpu()
        counts = torch.bincount(groups)
        if self.rule == "subsample":
            return given.rows(subsampled(groups, counts, generator).to(given.y.device))
        weights = group_weights(counts.double(), self.rule, self.beta)[groups]
        weights = weights if given.weights is None else weights * given.weights.cpu()
        return replace(given, weights=weights.to(given.y.device))
