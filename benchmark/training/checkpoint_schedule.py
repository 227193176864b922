"""Times at which a loop writes checkpoints."""

import time

CHECKPOINT_SHARE = 0.02
"""Maximum share of the time that checkpoints may take."""


class CheckpointSchedule:
    """Checkpoints every so many seconds, or less often where writing them would take more than `CHECKPOINT_SHARE`.

    Args:
        seconds: least time between checkpoints; with 0 one is due after every step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.saved(0.0)

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.perf_counter() - self.last >= self.pause

    def saved(self, took: float) -> None:
        """Note that a checkpoint has been written just now, in so many seconds."""
        self.last = time.perf_counter()
        self.pause = max(self.seconds, took / CHECKPOINT_SHARE) if self.seconds else 0.0
