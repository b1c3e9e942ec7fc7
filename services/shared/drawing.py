"""Matplotlib figures that look alike: one palette, one size of pixels, nothing kept in the process."""

from pathlib import Path
from typing import Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.shared.palette import CATEGORICAL

_DOTS_PER_INCH: Final = 110


def new_axes(width: float, height: float) -> Axes:
    """Empty ones, alone in a figure of so many inches. Not pyplot's: it keeps every figure in one global place."""
    with rc_context({"axes.prop_cycle": f"cycler('color', {list(CATEGORICAL)})"}):
        return Figure(figsize=(width, height), layout="constrained").add_subplot()


def save(axes: Axes, path: Path) -> None:
    """The figure of these axes as a PNG."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=_DOTS_PER_INCH)
