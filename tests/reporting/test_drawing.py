"""Names in figures."""

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

from invbench.reporting.drawing import drawn
from invbench.reporting.style import finish


def figure() -> Figure:
    made = Figure(layout="constrained")
    axes = made.subplots()
    axes.loglog([1e-3, 1e3], [1e-3, 1e3], label=r"a$\frac$ and b$_2$")
    axes.set_title("$\\what{$\x1b")
    axes.legend()
    other = made.add_axes((0, 0, 0.1, 0.1))
    other.set_yticks([0, 1], [r"c$\frac$", "plain"])
    return made


def test_dollars_are_dollars_but_powers_are_powers() -> None:
    """On an axis that gets more ticks while it is drawn, too."""
    made = drawn(figure)
    made.axes[0].set_xlim(1e-9, 1e9)
    picture = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        made.savefig(picture, format="svg")
    text = re.sub("<!--.*?-->", "", picture.getvalue().decode(), flags=re.DOTALL)
    for name in (r"a$\frac$ and b$_2$", r"$\what{$\x1b", r"c$\frac$"):
        assert f">{name}</text>" in text
    assert "mathdefault" not in text


def test_a_long_legend_leaves_the_axes_their_room() -> None:
    """Constrained layout warns where it does not, and warnings are errors."""
    heights = []
    for curves in (4, 40):
        figure = Figure(figsize=(4, 3), layout="constrained")
        ax = figure.subplots()
        for i in range(curves):
            ax.plot([0, 1], label=f"a method with settings, number {i}")
        finish(figure, [ax])
        figure.savefig(io.BytesIO())
        heights.append(ax.get_position().height * figure.get_figheight())
    assert heights[1] > 0.8 * heights[0]
