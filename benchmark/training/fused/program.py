"""Programs: the step of one run, mapped over runs and recorded, as a list of operations."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from invbench.errors import CannotFuse
from invbench.pytree import Tree
from invbench.system.device import out_of_memory
from invbench.training.fused.batches import StackedBatchLoader, Tensors
from invbench.training.recording import traced

RunStep = Callable[[Tree, Tensors, Tensors, Tensors], tuple[Tree, Tree]]
"""Function from a run, its settings, its batch and what all runs share, to the run after the step and its parts."""


StepResult = tuple[list[Tensor], Callable[[], Tree]]
"""Tensors of the runs after a step, and a function that returns the step's parts."""


class Call(NamedTuple):
    """Call of a program: a step of all runs, or an update of a critic ahead of it.

    Args:
        step: of one run.
        loader: of the batches.
        counter: name of what numbers the batches: the critic's, or empty for the step.
        number: of the batch.
        shared: further numbers, the same for all runs.
    """

    step: RunStep
    loader: StackedBatchLoader
    counter: str
    number: int
    shared: dict[str, float]

    @property
    def key(self) -> str:
        """Name under which a group keeps the program that such calls are made by."""
        return "/".join(self.shared) + str(getattr(self.step, "args", ""))


class Program:
    """Step of one run, mapped over runs, as a recorded list of operations.

    Args:
        step: of one run.
        runs, settings, batch: of all runs, with a leading axis.
        shared: what is the same for all.
        batch_axis: 0, or None where all runs have the same batch, without that axis.
        is_compiled: have torch's compiler make a function of them.

    Raises:
        CannotFuse: the step does something that cannot be mapped or repeated.
    """

    def __init__(
        self,
        step: RunStep,
        runs: Tree,
        settings: Tensors,
        batch: Tensors,
        shared: Tensors,
        batch_axis: int | None,
        is_compiled: bool = False,
    ) -> None:
        leaves, treedef = tree_flatten((runs, settings, batch, shared))
        self.kept = len(tree_leaves(runs))
        self.settings = list(settings.values())

        def one_run(*arguments: Any) -> tuple[Tree, Tree]:
            after, aux = step(*arguments)
            return _match_structure(arguments[0], after), aux

        def flat(*tensors: Tensor) -> list[Tensor]:
            arguments = tree_unflatten(list(tensors), treedef)
            after, aux = vmap(one_run, in_dims=(0, 0, batch_axis, None), randomness="different")(*arguments)
            aux_leaves, self.aux_treedef = tree_flatten(aux)
            return [*tree_leaves(after), *aux_leaves]

        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of slow mapping, which is done once
                self.operations = traced(flat, leaves, is_compiled)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise CannotFuse(f"a step of these runs cannot be mapped: {str(error).partition(chr(10))[0]}") from error

    def __call__(self, leaves: list[Tensor], batch: Tensors, shared: Tensors) -> StepResult:
        """Compute the runs' tensors after the step, and its parts."""
        results = list(self.operations(*leaves, *self.settings, *batch.values(), *shared.values()))
        return results[: self.kept], partial(tree_unflatten, results[self.kept :], self.aux_treedef)


def _match_structure(before: Tree, after: Tree) -> Tree:
    """Put the tree into the order and types of the one before. Raises CannotFuse where its names differ."""
    if before.keys() != after.keys():
        raise CannotFuse(f"a step changes what a run consists of: {', '.join(before.keys() ^ after.keys())}")
    return {
        name: _match_structure(old, after[name]) if isinstance(old, dict) else after[name].to(old.dtype)
        for name, old in before.items()
    }
