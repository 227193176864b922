"""Random numbers as a function of a method's state, for steps that are mapped over whole runs.

torch's generator gives other numbers where several runs draw from it at once, so a run that is trained together with
others would not be the run that it is alone. These come from a hash of the run's number, the step and indices, which is
the same wherever it is computed.
"""

import torch
from torch import Tensor

from invbench.core.method import State

MASK = 0xFFFFFFFF
BITS = 23
"""Of a number, one less than float32 holds, so that none is rounded to 1."""


def hashed(number: Tensor) -> Tensor:
    """Mix the low 32 bits of integers: one that differs in a bit differs in half of them (Wellons' hash-prospector)."""
    number = number & MASK
    number = ((number ^ (number >> 16)) * 0x21F0AAAD) & MASK
    number = ((number ^ (number >> 15)) * 0x735A2D97) & MASK
    return number ^ (number >> 15)


def uniform(state: State, purpose: int, *indices: Tensor, like: Tensor) -> Tensor:
    """Draw numbers from U(0, 1), one for each combination of indices, in the type of `like`.

    Args:
        state: of a method with `RandomDraws`.
        purpose: tells apart what is drawn in one step.
        indices: integers that can be broadcast, such as environments (E, 1) and rows (B,): then (E, B) numbers.
    """
    number = hashed(hashed(hashed(state["draws"][0]) + state["step"]) + purpose)
    for index in indices:
        number = hashed(number + index)
    drawn: Tensor = ((number >> (32 - BITS)).to(like.dtype) + 0.5) / 2**BITS
    return drawn


def of_examples(state: State, purpose: int, env: Tensor, examples: int, like: Tensor) -> Tensor:
    """Draw numbers from U(0, 1) for the examples (E, B) of environments env (E,), whatever order these come in."""
    rows = torch.arange(examples, device=env.device)
    return uniform(state, purpose, env[:, None], rows, like=like)


def partners(keys: Tensor, group: Tensor | None = None) -> Tensor:
    """Return for every example the next one (N,) of its group, in the order of random keys (N,), in a ring.

    Args:
        group: integers (N,); None is one group of all.
    """
    order = keys.argsort()
    if group is not None:
        order = order[group[order].argsort(stable=True)]
    position = torch.arange(len(order), device=order.device)
    following = order.roll(-1)
    if group is not None:
        ordered = group[order]
        is_last = ordered != ordered.roll(-1)
        is_first = ordered != ordered.roll(1)
        first = torch.where(is_first, position, 0).cummax(0).values
        following = torch.where(is_last, order[first], following)
    return torch.zeros_like(order).scatter(0, order, following)


def normal(state: State, purpose: int, *indices: Tensor, like: Tensor) -> Tensor:
    """Draw numbers from the standard normal distribution, as `uniform` does."""
    drawn: Tensor = torch.special.ndtri(uniform(state, purpose, *indices, like=like))
    return drawn
