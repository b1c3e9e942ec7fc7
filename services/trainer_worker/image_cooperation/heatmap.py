"""The adjacency matrix as a picture, on one scale for all epochs."""

from pathlib import Path
from typing import Final

import numpy as np

from services.shared.palette import DIVERGING, NEUTRAL

_SCALES: Final = {"published": 2.0, "strong": 0.25}
"""Both ends of the colour scale: the published one, and one for edges that add to weights of 0 to 1."""


def draw_heatmap(adjacency_EE: np.ndarray, path: Path, *, setting: str, title: str) -> None:
    """Write a PNG: A[i, j] in row i, column j; exact zeros are marked with a dot."""
    # Matplotlib takes a second to import.
    from services.shared.drawing import new_axes, save

    axes = new_axes(5.6, 4.8)
    scale = _SCALES[setting]
    image = axes.imshow(adjacency_EE, cmap=DIVERGING, vmin=-scale, vmax=scale)
    rows, columns = np.nonzero(adjacency_EE == 0)
    axes.scatter(columns, rows, s=10, color="white", edgecolors=NEUTRAL, linewidths=0.5, label="exactly 0")
    ticks = range(len(adjacency_EE))
    axes.set(title=title, xlabel="expert j", ylabel="expert i", xticks=ticks, yticks=ticks)
    if len(rows):
        axes.figure.legend(loc="outside lower center", frameon=False, fontsize="small", markerscale=2)
    axes.figure.colorbar(image, ax=axes, label="A[i, j]")
    save(axes, path)
