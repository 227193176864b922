"""Lines of the project's code in a stack."""

from collections.abc import Iterable
from traceback import FrameSummary


def innermost(frames: Iterable[FrameSummary]) -> str:
    """Return the innermost line of this project among the frames of a stack, and its function."""
    inner = [frame for frame in frames if "/invbench/" in frame.filename or "/lib/python" not in frame.filename]
    return f"{inner[-1].filename}:{inner[-1].lineno} in {inner[-1].name}" if inner else "?"
