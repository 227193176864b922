"""Text for a terminal or a log: characters that command, hide or reorder are shown instead of obeyed."""

import io
import re
from contextlib import suppress
from typing import Any, TextIO

COMMANDS = re.compile(
    "[\0-\x08\n-\x1f\x7f-\x9f"  # C0 but the tab, DEL, C1: among them the escape that begins a terminal's commands
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # invisible or turning
    "\ud800-\udfff]"  # bytes of a file name that are not UTF-8
)


class Lasting:
    """A stream that may go away, as a terminal does: what cannot be written any more is lost, and nothing else."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream or _Nothing()  # it was closed before the start

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def close(self) -> None:
        """Do nothing: the stream is shared."""


class _Nothing(io.StringIO):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


def visible(text: object) -> str:
    r"""Format a text as one line, with control characters as escapes such as `\x1b`, `\n` and `\u202e`."""
    return COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def visible_lines(text: object) -> str:
    """Format each line of a text as `visible` does."""
    return "\n".join(map(visible, str(text).split("\n")))
