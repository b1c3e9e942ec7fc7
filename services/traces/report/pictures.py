"""The pictures of an analysis, drawn from its figures alone: what was found, its interval, and what it would be by
chance, in grey."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from services.shared.drawing import new_axes
from services.shared.palette import CATEGORICAL, DIVERGING, NEUTRAL, SEQUENTIAL
from services.traces.statistics.estimate import Number, Series
from services.traces.statistics.results import (
    Autocorrelation,
    Cache,
    CachePolicy,
    Coactivation,
    Frequency,
    LayerEstimate,
    Specialisation,
    Transitions,
)

_WIDTH: Final = 7.0
_MOST_TICKS: Final = 40
_LONGEST_NAME: Final = 24
_POLICIES: Final = {
    CachePolicy.BELADY: ("Belady, the best possible", "s"),
    CachePolicy.LRU: ("LRU", "o"),
    CachePolicy.LFU: ("LFU", "^"),
    CachePolicy.LFU_AGING: ("LFU with aging", "v"),
}

Floats = NDArray[np.float64]
Values = Sequence[Number] | None


def draw_association(estimates: Sequence[LayerEstimate]) -> Axes:
    """Cramer's V by layer."""
    axes = new_axes(_WIDTH, 4)
    layers = [each.layer for each in estimates]
    _band(axes, layers, [each.estimate.null_low for each in estimates], [each.estimate.null_high for each in estimates],
          "95 % of permutations of domains between prompts")  # fmt: skip
    axes.plot(layers, _floats([each.estimate.value for each in estimates]), "o-", markersize=4,
              label="Cramér's V, Bergsma's correction")  # fmt: skip
    corrected = _floats([each.estimate.corrected for each in estimates])
    if np.isfinite(corrected).any():
        ends = ([each.estimate.low for each in estimates], [each.estimate.high for each in estimates])
        _whiskers(axes, layers, corrected, ends, "less what so few prompts add", colour=CATEGORICAL[5])
    _by_layer(axes, "Cramér's V, domain × expert")
    axes.set_ylim(bottom=0)
    return axes


def draw_stickiness(repetition: Sequence[LayerEstimate], popularity: Sequence[LayerEstimate], num_experts: int) -> Axes:
    """Repetition of the first choice by layer."""
    axes = new_axes(_WIDTH, 4)
    layers = [each.layer for each in repetition]
    _band(axes, layers, [each.estimate.null_low for each in repetition],
          [each.estimate.null_high for each in repetition], "95 % of shuffles within the prompt")  # fmt: skip
    axes.plot(layers, _floats([each.estimate.value for each in popularity]), ":", color=NEUTRAL,
              label="by popularity, Σp²")  # fmt: skip
    axes.axhline(1 / num_experts, color=NEUTRAL, linewidth=0.8, linestyle="--", label="all experts alike, 1/E")
    values = _floats([each.estimate.value for each in repetition])
    axes.plot(layers, values, "-", color=CATEGORICAL[0], linewidth=1)
    ends = ([each.estimate.low for each in repetition], [each.estimate.high for each in repetition])
    _whiskers(axes, layers, values, ends, "repetition", colour=CATEGORICAL[0])
    _by_layer(axes, "next token has the same first choice")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    return axes


def draw_frequency(
    frequency: Frequency, specialisation: Specialisation | None, domains: Sequence[str], experts: Sequence[str]
) -> Axes:
    """Heatmap domain x expert; a dot where lift is not chance."""
    share_DE = _floats(frequency.share.value) * 100
    present = np.flatnonzero(np.isfinite(share_DE).any(axis=1))
    axes = new_axes(max(_WIDTH, 0.26 * len(experts) + 2.4), 1.6 + 0.34 * len(present))
    image = axes.imshow(share_DE[present], cmap=SEQUENTIAL, aspect="auto", vmin=0)
    _colour_bar(axes, image, "share of the domain's\nassignments, %")
    if specialisation is not None and specialisation.lift.q_value is not None:
        rows, columns = np.nonzero(_floats(specialisation.lift.q_value)[present] < 0.05)
        axes.scatter(columns, rows, s=14, color="white", edgecolors="black", linewidths=0.6)
    axes.set_yticks(range(len(present)), [_short(domains[each]) for each in present.tolist()])
    _expert_ticks(axes, experts)
    axes.set_xlabel("expert")
    return axes


def draw_autocorrelation(figure: Autocorrelation) -> Axes:
    """Of the experts' indicators, over lags."""
    axes = new_axes(_WIDTH, 4)
    indicator = figure.indicator
    _band(axes, figure.lags, indicator.null_low, indicator.null_high, "95 % of shuffles within the prompt")
    axes.axhline(0, color=NEUTRAL, linewidth=0.8)
    _series(axes, figure.lags, indicator, "autocorrelation of experts' indicators")
    axes.set(xlabel="lag, tokens", ylabel="autocorrelation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return axes


def draw_transitions(figure: Transitions, experts: Sequence[str]) -> Axes:
    """P(next | this) over the next one's share, on a scale of doublings; never seen is blank."""
    probability_EE = _floats(figure.probability.value)
    share_E = _floats((figure.probability.null or figure.probability.value)[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        doublings_EE = np.log2(probability_EE / share_E)
    axes = _square(doublings_EE, experts, "log₂ of P(next | this)\nover the share of the next")
    axes.set(xlabel="first choice of the next token", ylabel="first choice of a token")
    return axes


def draw_coactivation(figure: Coactivation, experts: Sequence[str]) -> Axes:
    """N_ij / N_i less what popularity makes of it."""
    observed_EE, null_EE = (
        _floats(figure.probability.value),
        _floats(figure.probability.null or figure.probability.value),
    )
    axes = _square((observed_EE - null_EE) * 100, experts, "more tokens than by\npopularity, % of the row's")
    axes.set(xlabel="comes too", ylabel="given expert")
    return axes


def draw_cache(cache: Cache) -> Axes:
    """Hit rates over slots."""
    axes = new_axes(_WIDTH, 4.2)
    for curve, colour in zip(sorted(cache.curves, key=lambda each: [*_POLICIES].index(each.policy)), CATEGORICAL,
                             strict=False):  # fmt: skip
        label, marker = _POLICIES[curve.policy]
        values = _floats(curve.hit_rate.value)
        if curve.hit_rate.null is not None:
            axes.plot(cache.slots, _floats(curve.hit_rate.null), "--", color=colour, linewidth=0.8, alpha=0.7)
        axes.plot(cache.slots, values, "-", color=colour, marker=marker, markersize=4, label=label)
        if curve.hit_rate.low is not None and curve.hit_rate.high is not None:
            axes.fill_between(cache.slots, _floats(curve.hit_rate.low), _floats(curve.hit_rate.high), color=colour,
                              alpha=0.15, linewidth=0)  # fmt: skip
    axes.plot([], [], "--", color=NEUTRAL, linewidth=0.8, label="tokens shuffled within the prompt")
    axes.axhline(1 - (cache.compulsory_misses or 0), color=NEUTRAL, linewidth=0.8, linestyle=":")
    axes.set(xlabel="slots, (layer, expert)", ylabel="hit rate", ylim=(0, 1.02), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(axes)
    return axes


def _square(values_EE: Floats, experts: Sequence[str], label: str) -> Axes:
    size = min(max(5.6, 0.2 * len(experts) + 2.2), 12)
    axes = new_axes(size, size * 0.86)
    finite = values_EE[np.isfinite(values_EE)]
    most = float(np.percentile(np.abs(finite), 99)) if len(finite) else 1.0
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(np.where(np.isfinite(values_EE), values_EE, np.nan), cmap=DIVERGING, vmin=-(most or 1.0),
                        vmax=most or 1.0)  # fmt: skip
    _colour_bar(axes, image, label)
    _expert_ticks(axes, experts)
    shown = range(0, len(experts), _tick_step(experts))
    axes.set_yticks(shown, [_short(experts[each]) for each in shown])
    return axes


def _expert_ticks(axes: Axes, experts: Sequence[str]) -> None:
    shown = range(0, len(experts), _tick_step(experts))
    labels = [_short(experts[each]) for each in shown]
    named = any(not label.isdigit() for label in labels)
    axes.set_xticks(shown, labels, rotation=35 if named else 0, ha="right" if named else "center", fontsize="small")


def _tick_step(experts: Sequence[str]) -> int:
    return 1 if len(experts) <= 12 else max(2, -(-len(experts) // _MOST_TICKS) * 2)


def _colour_bar(axes: Axes, image: AxesImage, label: str) -> None:
    axes.figure.colorbar(image, ax=axes, label=label)


def _by_layer(axes: Axes, label: str) -> None:
    axes.set(xlabel="layer", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above, where it hides nothing."""
    axes.figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize="small")


def _band(axes: Axes, places: Sequence[int], low: Values, high: Values, label: str) -> None:
    lower, upper = _floats(low), _floats(high)
    if np.isfinite(lower).any():
        # One layer is a place and no stretch.
        if len(places) == 1:
            axes.vlines(places, lower, upper, color=NEUTRAL, alpha=0.35, linewidth=14, label=label)
        else:
            axes.fill_between(places, lower, upper, color=NEUTRAL, alpha=0.35, linewidth=0, label=label)


def _whiskers(
    axes: Axes, places: Sequence[int], values: Floats, ends: tuple[Values, Values], label: str, *, colour: str
) -> None:
    low, high = (_floats(end) for end in ends)
    known = np.isfinite(low).any()
    reach = np.clip(np.nan_to_num(np.stack((values - low, high - values))), 0, None) if known else None
    told = f"{label}, 95 % interval" if known else label
    axes.errorbar(places, values, yerr=reach, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1, label=told)


def _series(axes: Axes, places: Sequence[int], series: Series, label: str) -> None:
    values = _floats(series.value)
    axes.plot(places, values, "-", color=CATEGORICAL[0], linewidth=1)
    nothing = (None,) * len(places)
    _whiskers(axes, places, values, (series.low or nothing, series.high or nothing), label, colour=CATEGORICAL[0])


def _floats(values: Any) -> Floats:
    """NaN where something is not known."""
    return np.array(values, dtype=np.float64)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
