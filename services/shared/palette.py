"""Colours of figures, the same on the page and in Matplotlib's: to be told apart by people who are colour-blind.

The categorical ones are those of Okabe and Ito (2008), without black; the scales go by names that Matplotlib and d3
know.
"""

from typing import Final

CATEGORICAL: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""For experts and domains, in their order; beyond the seventh they repeat and something else must tell them apart."""
NEUTRAL: Final = "#8c8c8c"
"""The base model, and whatever a figure is compared with."""
SEQUENTIAL: Final = "cividis"
DIVERGING: Final = "PuOr"
