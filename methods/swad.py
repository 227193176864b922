"""SWAD: predict with the mean of the weights over a flat valley of the validation loss ("Dense Weight Averaging").

Cha, Chun, Lee, Cho, Lee, Park, Lee (2021), "SWAD: Domain Generalization by Seeking Flat Minima", arXiv 2102.08604,
algorithm 1. Windows are the steps between evaluations (`trainer.evaluate_every`), ℓ_t is the validation loss after
window t:

    start  t_s: the first t with ℓ_t = min(ℓ_t, ..., ℓ_{t + N_s - 1}),   l = (1 + r) mean(ℓ_t, ..., ℓ_{t + N_s - 1})
    end    t_e: the first t ≥ t_s + max(1, N_s - N_e + 1) with min(ℓ_t, ..., ℓ_{t + N_e - 1}) > l, or the end of the run
    prediction by the mean of the weights after every step of the windows t_s, ..., t_e - 1

As a method it composes with others: `miro+swad` averages what MIRO trains. Evaluations during the run are of the
weights themselves, the last one is of the mean; statistics of batch normalisation are taken anew for it. If no window
was the start, the mean is of the last one.

Deviations: the released code also averages up to N_e - N_s windows ahead of t_s, and t_s twice; it ends the run at t_e.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from invbench.core.hooks import Valley, WeightAveraging
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting


@register_method("swad")
class SWAD(WeightAveraging):
    """Predict with the mean of the weights over a valley of the validation loss."""

    display_name: ClassVar[str] = "SWAD"
    small: ClassVar[Mapping[str, Any]] = {"dataset.validation_share": 0.5}

    start_windows: int = setting(3, "N_s, windows without a lower loss that make a start", ge=1)
    end_windows: int = setting(6, "N_e, windows of higher losses that make an end", ge=1)
    tolerance: float = setting(0.3, "r, part by which these losses must be higher", ge=0, search=Choice((0.2, 0.3)))

    def averaging(self) -> Valley:
        return Valley(self.start_windows, self.end_windows, self.tolerance)
