"""Make and save figures, with names shown as they are."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from invbench.errors import UserError
from invbench.files import replacing
from invbench.terminal import visible_lines


def drawn(make: Callable[[], Figure]) -> Figure:
    """Draw a figure whose texts are shown as they are: a dollar in a name begins no formula.

    Only the ticks of logarithmic axes are formulas: powers of ten.
    """
    with mpl.rc_context({"text.parse_math": False}):
        figure = make()
    for text in figure.findobj(Text):
        text.set_text(visible_lines(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    tick.label1.set_parse_math(True)
    return figure


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure in the format that its name ends in. Raises UserError where it cannot be written."""
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=dpi)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
