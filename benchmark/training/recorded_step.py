"""Steps of a single run that are recorded and repeated: the same numbers, without deriving the operations anew.

A step of a small network spends more time in torch.func and in autograd than in arithmetic. After a few steps the
operations of one are recorded (`invbench.training.recording`), those of its backward passes among them, and repeated in
the same order. So the numbers are the same to the last bit, which is checked in the step after that; random numbers are
drawn from torch's generator in turn. What cannot be recorded goes on as it is: a step that reads the number of a
tensor, or a network whose Python numbers change.

With `trainer.compile` torch's compiler makes one function of the operations. Its numbers differ by rounding, so it is
used from the first step on: a run that is resumed then gives the same ones.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import Enum

import numpy as np
import torch
from torch import Tensor, nn

from invbench.core.data import Batch
from invbench.core.method import State
from invbench.errors import UserError
from invbench.pytree import Tree, flatten, map_leaves
from invbench.runs.checkpoint import random_state, restore_random_state
from invbench.tensors import scalar
from invbench.training.gradients import Objective, Step
from invbench.training.phases import Phases
from invbench.training.recording import Flat, Recorder

EARLIER = 5
"""Number of calls with tensors of the same shapes before one is recorded."""
KNOWN = ("invbench", "torch", "torchvision", "timm")
"""Packages whose methods and networks only compute. Others may print or wait, which a recorded step would not do."""
MOST_BYTES = 2**29
"""Largest memory of the tensors of a step that is recorded unasked: all of them are held until its end."""
MOST_PROGRAMS = 32
"""Largest number of steps with different shapes, or of different parameters, that are recorded."""
SEPARATOR = "/"
Call = Callable[[Tree], Tree]
"""Function of a tree of tensors."""


def only_computes(*parts: object) -> bool:
    """Tell whether methods and networks are known to do nothing but compute."""
    return all(type(part).__module__.partition(".")[0] in KNOWN for part in parts)


class Recording(Enum):
    """What is done with the operations of a step."""

    NONE = "they are derived in every step"
    REPEATED = "they are recorded after some steps"
    COMPILED = "they are recorded in the first step, and compiled"


class Recorded:
    """Function of a tree of tensors that is recorded.

    Args:
        call: the function. It may differentiate, and change tensors in place that it is given.
        modules: networks that it applies.
        recording: what to do.
    """

    def __init__(self, call: Call, *modules: nn.Module, recording: Recording = Recording.REPEATED) -> None:
        self.call, self.modules = call, modules
        self.calls: dict[object, int] = {}
        self.unchecked: dict[object, Program] = {}
        self.programs: dict[object, Program] = {}
        self.is_compiled, self.is_given_up = recording is Recording.COMPILED, recording is Recording.NONE

    def __call__(self, inputs: Tree) -> Tree:
        if self.is_given_up or Phases.watching is not None:  # phases are those of the call
            return self.call(inputs)
        flat = flatten(inputs, SEPARATOR)
        layout = tuple([(name, value.shape, value.dtype) for name, value in flat.items()])
        if layout in self.unchecked:
            return self._check(inputs, layout)
        if (program := self.programs.get(layout)) is not None:
            return program(list(flat.values()))
        if self.is_compiled:
            return self._compile(inputs, layout)
        self.calls[layout] = self.calls.get(layout, 0) + 1
        if self.calls[layout] <= EARLIER or len(self.programs) == MOST_PROGRAMS:
            return self.call(inputs)
        return self._record(inputs, layout)

    def _record(self, inputs: Tree, layout: object) -> Tree:
        """Make a call and record its operations, to be compared with the next call."""
        recorder, result = self._recorded(inputs, MOST_BYTES)
        self.is_given_up = bool(recorder.obstacle)
        if not self.is_given_up:
            recorder.end(list(flatten(result).values()))
            self.unchecked[layout] = Program(recorder.function(), result)
        return result

    def _compile(self, inputs: Tree, layout: object) -> Tree:
        """Make a call and record its operations, compile these, and make the call again by what comes out."""
        tensors = list(flatten(inputs).values())
        copies, before = [value.detach().clone() for value in tensors], random_state(tensors[0].device)
        recorder, result = self._recorded(inputs, math.inf)
        if recorder.obstacle:
            raise UserError(f"trainer.compile is on, but {recorder.obstacle}; leave trainer.compile out, or that")
        recorder.end(list(flatten(result).values()))
        self.programs[layout] = Program(recorder.compiled(copies), result)
        self.unchecked[layout] = Program(recorder.function(), result)
        return self._again(layout, tensors, copies, before)

    def _again(self, layout: object, tensors: list[Tensor], copies: list[Tensor], before: State) -> Tree:
        """Make a call again by its program, from the same numbers."""
        restore_random_state(before, tensors[0].device)
        for value, copy in zip(tensors, copies, strict=True):
            value.detach().copy_(copy)
        return self.programs[layout](tensors)

    def _recorded(self, inputs: Tree, most_bytes: float) -> tuple[Recorder, Tree]:
        """Make a call and record its operations."""
        before = self._hidden_state()
        recorder = Recorder(list(flatten(inputs).values()), is_alone=True, most_bytes=most_bytes)
        with recorder:
            result = self.call(inputs)
        if self._hidden_state() != before:
            recorder.obstacle = "a step changes numbers that are no tensors"
        return recorder, result

    def _check(self, inputs: Tree, layout: object) -> Tree:
        """Make a call; use the program of an earlier one from now on if it gives the same numbers."""
        tensors, program = list(flatten(inputs).values()), self.unchecked.pop(layout)
        copies, before = [value.detach().clone() for value in tensors], random_state(tensors[0].device)
        result = self.call(inputs)
        after = random_state(tensors[0].device)
        restore_random_state(before, tensors[0].device)
        is_same = _is_same(program([copy.clone() for copy in copies]), result)
        if self.is_compiled:
            if not is_same:
                raise UserError(
                    "trainer.compile is on, but a step depends on more than its tensors, such as a number that Python "
                    "counts; leave trainer.compile out, or that"
                )
            return self._again(layout, tensors, copies, before)
        self.programs[layout], self.is_given_up = program, not is_same
        restore_random_state(after, tensors[0].device)
        return result

    def _hidden_state(self) -> object:
        """Return what a call may change besides tensors, which a program would not: Python's numbers."""
        numbers = [
            {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
            for network in self.modules
            for module in network.modules()
        ]
        return numbers, random.getstate(), str(np.random.get_state())


class Program:
    """Operations of a call, as a function of the leaves of its tree; its result tells the form of others."""

    def __init__(self, operations: Flat, result: Tree) -> None:
        self.operations = operations
        self.form = map_leaves(lambda value: None, result)

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> Tree:
        return _filled(self.form, self.operations(*tensors))


def _filled(form: Tree, tensors: Iterable[Tensor]) -> Tree:
    """Return a tree of this form with other leaves."""
    rest = iter(tensors)
    return map_leaves(lambda _: next(rest), form)


def _is_same(first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same leaves, to the last bit."""
    ours, theirs = flatten(first), flatten(second)
    return list(ours) == list(theirs) and all(_is_equal(ours[name], value) for name, value in theirs.items())


def _is_equal(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


class RecordedStep:
    """Step of an objective, recorded.

    Args:
        objective: of the run.
        recording: what to do.
    """

    def __init__(self, objective: Objective, recording: Recording) -> None:
        self.objective = objective
        self.recorded = Recorded(self._call, objective.model, recording=recording)

    def step(
        self,
        parameters: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        batch: Batch,
        state: State,
        rate: float | Tensor | None,
    ) -> Step:
        """Compute the gradient of one step by `parameters`, and change the network's buffers; `others` stay.

        Args:
            rate: the learning rate of a step that is made of inner ones, else None.
        """
        buffers = dict(self.objective.model.named_buffers())
        tensors: Tree = {"parameters": parameters, "others": others, "buffers": buffers}
        if rate is not None:
            tensors["rate"] = scalar(rate, batch.x.new_empty((), dtype=torch.float64))
        return Step(**self.recorded(tensors | {"batch": batch.tensors(), "state": state}))

    def _call(self, inputs: Tree) -> Tree:
        others = {name: value.detach() for name, value in inputs["others"].items()}
        objective = replace(self.objective, buffers=others) if others else self.objective
        batch = Batch(**inputs["batch"])
        return objective.step(inputs["parameters"], batch, inputs["state"], inputs.get("rate"))._asdict()
