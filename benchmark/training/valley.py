"""The mean of a run's weights over a valley of its validation loss."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from invbench.core.hooks import Valley
from invbench.pytree import Tree
from invbench.training.averaging import AveragedWeights, mix


class ValleyWeights(AveragedWeights):
    """Mean of the weights after all steps of some windows, which are the steps between two evaluations.

    Evaluations ahead of the end are of the weights themselves. Means of single windows are kept as long as they may
    still join: those of as many as the rule looks at.

    Args:
        rule: which windows.
        model, parameters, passes: as of `AveragedWeights`.
        windows: number of windows of the run.
    """

    def __init__(
        self,
        rule: Valley,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        passes: Callable[[int], None],
        windows: int,
    ) -> None:
        super().__init__(model, parameters, passes)
        self.rule = rule
        self.kept = min(max(rule.start_windows, rule.end_windows), windows)
        self.window = {name: value.clone() for name, value in self.means.items()}  # mean of the present one
        self.ended = {name: value.new_zeros(self.kept, *value.shape) for name, value in self.means.items()}
        self.joined = {name: value.clone() for name, value in self.means.items()}  # mean of all that certainly count
        self.losses = torch.zeros(windows, dtype=torch.float64)  # of the windows that have ended
        self.sizes = torch.zeros(windows, dtype=torch.int64)  # steps of each, of the present one so far
        self.number = torch.zeros((), dtype=torch.int64)  # of the present window, from 0

    @property
    def tensors(self) -> Tree:
        windows = {"window": self.window, "ended": self.ended, "joined": self.joined}
        numbers = {"losses": self.losses, "sizes": self.sizes, "number": self.number}
        return {**super().tensors, "windows": windows, "numbers": numbers}

    def load(self, tensors: Tree) -> None:
        super().load(tensors)
        self.window, self.ended, self.joined = (
            dict(tensors["windows"][name]) for name in ("window", "ended", "joined")
        )
        numbers = tensors["numbers"]
        self.losses, self.sizes, self.number = (numbers[name].cpu() for name in ("losses", "sizes", "number"))

    @property
    def running(self) -> dict[str, Tensor]:
        return self.window

    def count(self, step: int) -> float:
        self.sizes[self.number] += 1
        return 1 / int(self.sizes[self.number])

    def steps(self, done: int) -> tuple[int, int]:
        ends = self.sizes.cumsum(0).tolist()
        first, stop = valley(self.losses[: int(self.number)].tolist(), self.rule, is_over=True)
        return (ends[first - 1] if first else 0) + 1, ends[stop - 1]

    def summary(self, done: int) -> str:
        line, windows = super().summary(done), int(self.number)
        if start_of(self.losses[:windows].tolist(), self.rule) is not None:
            return line
        return (
            f"warning: {line}, the last window: the loss fell until the end, or so few windows ({windows}) have no "
            f"start (start_windows={self.rule.start_windows})"
        )

    @torch.no_grad()
    def end_window(self, loss: float) -> None:
        """End the present window, if it has a step, with this validation loss after it, and average anew."""
        window = int(self.number)
        if window == len(self.sizes) or not self.sizes[window]:  # it is measured twice after the same step
            return
        _, joined = valley(self.losses[:window].tolist(), self.rule, is_over=False)  # those so far
        self.losses[window] = loss
        for name, value in self.window.items():
            self.ended[name][window % self.kept] = value
        self.number = self.number + 1
        losses = self.losses[: window + 1].tolist()
        start, stop = valley(losses, self.rule, is_over=False)
        self._join(self.joined, start, max(start, joined), stop)
        self.means = {name: value.clone() for name, value in self.joined.items()}
        start, end = valley(losses, self.rule, is_over=True)
        self._join(self.means, start, max(start, stop), end)

    def _join(self, mean: dict[str, Tensor], start: int, first: int, stop: int) -> None:
        """Add windows to the mean of those from the start of the valley to the first of them."""
        for index in range(first, stop):
            share = int(self.sizes[index]) / int(self.sizes[start : index + 1].sum())
            mix(mean, {name: each[index % self.kept] for name, each in self.ended.items()}, share)


def valley(losses: Sequence[float], rule: Valley, is_over: bool) -> tuple[int, int]:
    """Return the first window of the valley, and the one after its last, by the validation loss of each.

    It starts with a window after which no lower loss comes among the next, `start_windows` with it, and ends ahead of
    the first of `end_windows` whose losses are all above the mean of those, and `tolerance` times that more.

    Args:
        losses: of all windows so far.
        is_over: whether the run is over; otherwise windows are left out that may still be after the end. If no valley
            has started until the end, it is the last window.
    """
    count, start = len(losses), start_of(losses, rule)
    if start is None:
        return (count - 1, count) if is_over else (0, 0)
    limit = (1 + rule.tolerance) * sum(losses[start : start + rule.start_windows]) / rule.start_windows
    for stop in range(start + max(1, rule.start_windows - rule.end_windows + 1), count):
        if not is_over and stop + rule.end_windows > count:
            return start, stop
        if min(losses[stop : stop + rule.end_windows]) > limit:
            return start, stop
    return start, count


def start_of(losses: Sequence[float], rule: Valley) -> int | None:
    """Return the window with which the valley starts; None where there is none."""
    starts = range(len(losses) - rule.start_windows + 1)
    return next((s for s in starts if losses[s] == min(losses[s : s + rule.start_windows])), None)
