"""Whether a penalty could act as its settings say; a run of which it could not must say so."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from invbench.training import Training

LATE_STARTS = ("anneal_steps", "pretrain_steps", "bottleneck_anneal_steps")
"""Settings with the step from which a penalty has its weight."""


def never_reached(training: "Training") -> list[str]:
    """Of each setting that is as long as the run, so that what comes after it never does: a line."""
    parts = training.cell.method.parts
    values = {f"method.{name}." if len(parts) > 1 else "method.": part for name, part in parts.items()}
    return [
        f"{prefix}{name} is {steps}, and the run has {training.total} steps, so the penalty never has its weight"
        for prefix, part in values.items()
        for name in LATE_STARTS
        if (steps := getattr(part, name, 0)) >= training.total > 0
        and getattr(part, "weight", None) != getattr(part, "weight_before", None)
    ]


def why_inactive(training: "Training") -> str:
    """Why the penalty of a run that is over never acted, in one line; empty where it did, or there is none."""
    method, late = training.cell.method, never_reached(training)
    parts = [part for part in method.parts.values() if hasattr(part, "weight")]
    if not training.total or not method.has_penalty or not parts:  # some use the hook for what is no penalty
        return ""
    if late and len(late) == sum(hasattr(part, name) for part in parts for name in LATE_STARTS):
        return late[0]
    penalties = [row["penalty"] for row in training.rows if "penalty" in row]
    if penalties and not any(penalties):
        return f"the penalty was 0 in each of the {len(penalties)} steps that were measured"
    if not method.has_gradient_penalty and not _depends_on_weights(training):
        return "the penalty does not depend on what is trained, so the run is the same without it"
    return ""


def _depends_on_weights(training: "Training") -> bool:
    """Whether autograd finds any way from the parameters to the penalty, on one batch."""
    objective, state = training.objective, training.method_state
    examples, env = training.sampler.epoch(0)
    batch = training.sampler.batch(examples[0], env[0])
    training.model.eval()  # batch normalisation must not learn from this pass
    with torch.random.fork_rng():
        risks, outputs = objective.joint(training.parameters, batch)
        penalty, _ = training.cell.method.penalty(risks, outputs, batch, state, objective.players(state))
    training.model.train()
    return penalty.requires_grad
