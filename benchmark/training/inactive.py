"""Checks whether a method could act in a run as its settings say."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from invbench.components.eval_mode import eval_mode
from invbench.core.composition import Composition
from invbench.core.data import Batch
from invbench.core.hooks import WithCritic
from invbench.core.method import Method, State, overrides
from invbench.runs.spec import LATE_STARTS, late_effect
from invbench.training.gradients import Objective


def never_reached(method: Composition, total: int) -> list[str]:
    """Describe, a line each, the settings that last at least as long as a run of so many steps."""
    return [line for prefix, part in _prefixed(method) for line in _late(part, total, prefix)]


def why_inactive(
    method: Composition, total: int, rows: Sequence[Mapping[str, float]], idle_parts: Callable[[], list[str]]
) -> str:
    """Return, in one line, why the method of a finished run never acted as its settings say; empty where it did.

    That is a penalty without its weight, or what begins after the last step.

    Args:
        total: steps of the run.
        rows: of its curves.
        idle_parts: the parts of the method whose penalty autograd cannot follow back to what is trained.
    """
    if not total:
        return ""
    weighted = [part for part in method.parts.values() if hasattr(part, "weight") and method.has_penalty]
    parts = [part for part in weighted if any(_weights(part))] or weighted
    others = [part for part in method.parts.values() if not hasattr(part, "weight") and _starts(part)]
    for acting in (parts, others):
        if acting and all(len(_late(part, total)) == len(_starts(part)) > 0 for part in acting):
            return next(
                line for prefix, part in _prefixed(method) if part in acting for line in _late(part, total, prefix)
            )
    if not weighted:  # some use the hook for what is no penalty
        return ""
    penalties = [row["penalty"] for row in rows if "penalty" in row]
    if penalties and not any(penalties) and not any(map(_has_weight_before, parts)):
        return f"the penalty was 0 in {_each_step(len(penalties))}"
    if not method.has_gradient_penalty and (idle := idle_parts()):
        whose = "the penalty" if len(idle) == len(weighted) else f"the penalty of {' and '.join(idle)}"
        return f"{whose} does not depend on what is trained, so it moves nothing"
    return ""


def idle_parts(objective: Objective, parameters: Mapping[str, Tensor], batch: Batch, state: State) -> list[str]:
    """List the parts of the method whose penalty does not depend on the parameters, by autograd on one batch.

    A penalty has a weight; another part may use the hook for what it computes in training only.
    """
    # Batch normalisation must not learn from this pass.
    with eval_mode(objective.model), torch.random.fork_rng():
        risks, outputs = objective.joint(parameters, batch, state)
        return [
            name
            for name, part in objective.method.parts.items()
            if hasattr(part, "weight")
            and overrides(part, "penalty")
            and not isinstance(part, WithCritic)
            and not part.penalty(risks, outputs, batch, state[name])[0].requires_grad
        ]


def _prefixed(method: Composition) -> list[tuple[str, Method]]:
    """List the parts with what the names of their settings begin with."""
    parts = method.parts
    return [(f"method.{name}." if len(parts) > 1 else "method.", part) for name, part in parts.items()]


def _weights(part: Method) -> list[float]:
    """List the weights of a method's penalties, those of early steps too."""
    return [getattr(part, name) for name in ("weight", "bottleneck_weight", "weight_before") if hasattr(part, name)]


def _starts(part: Method) -> list[str]:
    """List the settings of a method that delay a weight."""
    return [name for name, (weight, _) in LATE_STARTS.items() if hasattr(part, name) and hasattr(part, weight)]


def _late(part: Method, total: int, prefix: str = "") -> list[str]:
    """Describe, a line each, the delays that last as long as a run of so many steps and should change a weight then."""
    lines = []
    for name in _starts(part):
        weight, earlier = LATE_STARTS[name]
        before = getattr(part, earlier, 0) if earlier else 0
        if getattr(part, name) >= total > 0 and getattr(part, weight) != before:
            throughout = f"; the penalty has {prefix}{earlier} ({before}) throughout" if before else ""
            length = f"{prefix}{name} is {getattr(part, name)}, and the run has {_steps(total)}"
            lines.append(f"{length}, so {late_effect(name, prefix)} never takes effect{throughout}")
    return lines


def _has_weight_before(part: Method) -> bool:
    """Tell whether the penalty acts ahead of its weight, in steps that may not be measured."""
    return bool(getattr(part, "anneal_steps", 0) and getattr(part, "weight_before", 0))


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _each_step(count: int) -> str:
    return "the one step that was measured" if count == 1 else f"each of the {count} steps that were measured"
