"""Settings of the training loop, and the learning-rate schedule they define."""

import math
from typing import Literal

from pydantic import model_validator

from invbench.core.settings import Depending, LogUniform, Settings, setting

Strategy = Literal["joint", "loop", "vmap"]


class TrainerConfig(Settings):
    """Settings of training, the same for every method."""

    epochs: int | None = setting(None, "passes over the smallest environment's examples; or give steps", ge=1)
    steps: int | None = setting(None, "optimiser steps; or give epochs", ge=1)
    batch_size: int | None = setting(
        64, "examples per environment and step; null takes all, and of weighted ones draws as many", ge=1
    )
    environments_per_step: int | None = setting(
        None, "environments in each step, in random groups; null takes all", ge=1
    )

    held_out_environment: int | None = setting(
        None, "training environment that is left out and becomes the split held_out, for choosing settings", ge=0
    )

    optimizer: Literal["adam", "sgd"] = setting("adam", "update rule")
    learning_rate: float = setting(
        1e-3,
        "step size",
        gt=0,
        search=Depending("optimizer", {"adam": LogUniform(10**-4.5, 10**-2.5), "sgd": LogUniform(1e-4, 1)}),
        fusable=True,
    )
    momentum: float = setting(0.0, "of sgd", ge=0, lt=1, fusable=True)
    nesterov: bool = setting(False, "Nesterov's form of sgd's momentum")
    betas: tuple[float, float] = setting((0.9, 0.999), "adam's decay rates of the two moments")
    epsilon: float = setting(1e-8, "added to adam's denominator", ge=0)
    weight_decay: float = setting(0.0, "strength of weight decay", ge=0, search=LogUniform(1e-5, 1), fusable=True)
    weight_decay_order: Literal["before", "after"] = setting(
        "before",
        "before: added to the gradient, ahead of adam's moments; after: taken off the weights once the step is made, "
        "times the step size (for adam the bias-corrected one)",
    )
    weight_decay_of: dict[str, float] = setting(
        {}, "weight decay of the parameters whose names match a pattern such as '*.bias'; the first match counts"
    )
    l1: float = setting(
        0.0, "strength of l1·sign(θ), added to the gradient after the method's rule", ge=0, fusable=True
    )

    schedule: Literal["constant", "multi_step", "exponential", "cosine"] = setting(
        "constant", "course of the learning rate"
    )
    milestones: tuple[float, ...] = setting(
        (0.75,), "multi_step: fractions of the run, rounded down to whole epochs (or steps), where it is multiplied"
    )
    decay: float = setting(0.1, "the multiplier: of multi_step at each milestone, of exponential at every step", gt=0)
    warmup: float = setting(0.0, "fraction of the run over which the rate rises linearly from 0", ge=0, lt=1)
    floor: float = setting(0.0, "cosine: least multiple of the learning rate", ge=0, le=1)

    average: Literal["none", "mean", "exponential"] = setting(
        "none", "mean of the weights over steps, which evaluations and the finished run have in place of the last ones"
    )
    average_from: int = setting(1, "step after which the weights are the first to count in it", ge=1)
    average_decay: float = setting(0.999, "exponential: share of the earlier mean in each step", gt=0, lt=1)

    strategy: Literal["auto", "joint", "loop", "vmap"] = setting(
        "auto",
        "how environment gradients are computed: one graph, one environment at a time, or mapped; auto goes by a rule",
    )
    condense: bool = setting(
        True,
        "where a linear model with squared loss sees all examples in every step, train on a few examples per "
        "environment with the same first and second moments: the same gradients up to rounding, sooner",
    )
    stop_below: float | None = setting(
        None, "accuracy on the batch of a step, in evaluation mode, below which the run ends early; null: never", ge=0
    )
    stop_after: int = setting(0, "steps that the run has at least, where stop_below is set", ge=0)
    evaluate_every: int | None = setting(None, "steps between evaluations; null makes ten in a run", ge=1)
    evaluate_splits: tuple[str, ...] | None = setting(
        None, "splits measured during training; null takes all but train. The last step always measures all"
    )
    measure_invariance: Literal["auto", "off"] | int = setting(
        "auto",
        "test images or molecules whose transformations are predicted at the end of a run; auto takes 128, or as many "
        "as cost a tenth of the training",
    )
    dtype: Literal["float32", "float64"] = setting("float32", "type of the numbers")
    autocast: bool = setting(False, "run the network's forward pass in bfloat16")
    tf32: bool = setting(
        False, "let a GPU round the factors of float32 products to TF32 (10 bits of mantissa), which is faster"
    )
    compile: bool = setting(
        False,
        "have torch's compiler make one function of a step's operations: other last digits, some seconds to minutes at "
        "the start, faster steps; for long runs, and for sweeps of runs that are trained together",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TrainerConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if any(not 0 <= milestone <= 1 for milestone in self.milestones):
            raise ValueError("milestones are fractions of the run, between 0 and 1")
        if isinstance(self.measure_invariance, int) and self.measure_invariance < 1:
            raise ValueError("measure_invariance is auto, off, or a number of examples from 1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the multiple of the learning rate for the step with this index, from 0."""
        total = self.total_steps(steps_per_epoch)
        progress = step / total
        factor = min(progress / self.warmup, 1.0) if self.warmup else 1.0
        if self.schedule == "cosine":
            return factor * max(0.5 * (1 + math.cos(math.pi * progress)), self.floor)
        if self.schedule == "exponential":
            return factor * float(self.decay**step)
        if self.schedule == "multi_step":
            passed = sum(step >= self._milestone(fraction, steps_per_epoch) for fraction in self.milestones)
            return factor * float(self.decay**passed)
        return factor

    def _milestone(self, fraction: float, steps_per_epoch: int) -> int:
        if self.steps is not None:
            return math.floor(fraction * self.steps)
        return math.floor(fraction * (self.epochs or 0)) * steps_per_epoch
