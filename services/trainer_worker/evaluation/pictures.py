"""The pictures of an evaluation's report, drawn from its figures alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes

from services.shared.drawing import new_axes, save
from services.shared.palette import CATEGORICAL, NEUTRAL
from services.trainer_worker.evaluation.release_figures import Figures

KEPT: Final = "kept.png"
UTILISATION: Final = "utilisation.png"
RELIABILITY: Final = "reliability.png"
AROUND_SWITCH: Final = "around_switch.png"
SWEEP: Final = "sweep.png"


def draw_pictures(figures: Figures, folder: Path) -> None:
    """Write those PNGs that there are figures for."""
    first = figures["seeds"][0]
    _draw(folder / KEPT, lambda axes: _kept(axes, first["systems"]))
    _draw(folder / UTILISATION, lambda axes: _utilisation(axes, first, [*figures["experts"], "base"]))
    _draw(folder / RELIABILITY, lambda axes: _reliability(axes, first["routing"]["calibration"]))
    if first["around_switch"] is not None:
        _draw(folder / AROUND_SWITCH, lambda axes: _around_switch(axes, first["around_switch"]))
    if figures["sweep"]:
        _draw(folder / SWEEP, lambda axes: _sweep(axes, figures["sweep"]))


def _draw(path: Path, paint: Callable[[Axes], None]) -> None:
    axes = new_axes(7, 4)
    paint(axes)
    save(axes, path)


def _kept(axes: Axes, systems: Figures) -> None:
    names = [name for name, row in systems.items() if (row["whole"].get("kept") or [None])[0] is not None]
    for offset, (part, label) in enumerate((("whole", "whole documents"), ("switching", "switching documents"))):
        known = [name for name in names if (systems[name][part].get("kept") or [None])[0] is not None]
        values = [systems[name][part]["kept"] for name in known]
        axes.barh(
            [names.index(name) + (offset - 0.5) * 0.4 for name in known],
            [value for value, _, _ in values],
            0.38,
            xerr=[[value - low for value, low, _ in values], [high - value for value, _, high in values]],
            label=label,
            capsize=2,
        )
    # A wrong expert may cost many times the gain; what matters lies around 0 to 1.
    axes.set(xlim=(-1, 1.15), yticks=range(len(names)), yticklabels=names, xlabel="share of the oracle's gain kept")
    axes.axvline(1.0, color=NEUTRAL, linewidth=0.8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize="small")


def _utilisation(axes: Axes, seed: Figures, names: list[str]) -> None:
    used = seed["routing"]["utilisation"]
    places = range(len(names))
    axes.bar([place - 0.2 for place in places], used["weight_C"], 0.38, label="mean gate weight")
    axes.bar([place + 0.2 for place in places], used["tokens_C"], 0.38, label="share of tokens")
    axes.set(ylabel="share", title=f"load imbalance {used['imbalance']:.3f}, MaxVio {used['max_violation']:.3f}")
    axes.set_xticks(places, names, rotation=30, ha="right")
    axes.legend(frameon=False, fontsize="small")


def _reliability(axes: Axes, found: Figures) -> None:
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.8)
    for one in found["bins"]:
        axes.bar(
            (one["low"] + one["high"]) / 2,
            one["accuracy"],
            0.09,
            color=CATEGORICAL[0],
            alpha=0.25 + 0.75 * one["share"],
        )
        axes.plot(one["confidence"], one["accuracy"], "o", color=CATEGORICAL[1])
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="highest score",
        ylabel="right",
        title=f"expected calibration error {found['ece']:.3f} (darker: more tokens)",
    )


def _around_switch(axes: Axes, found: Figures) -> None:
    for name, losses in found["losses"].items():
        axes.plot(found["distance"], losses, label=name)
    axes.axvline(0, color=NEUTRAL, linewidth=0.8)
    # The first token after a switch can hardly be foreseen and costs ten times as much as the others.
    axes.set(xlabel="tokens from the switch", ylabel="loss, nats per token", yscale="log")
    axes.legend(frameon=False, fontsize="small")


def _sweep(axes: Axes, rows: list[Figures]) -> None:
    for gate_type, marker in (("threshold", "o"), ("topk", "s")):
        points = [row for row in rows if row["gate_type"] == gate_type]
        for part, style in (("whole", "-"), ("switching", "--")):
            known = [row for row in points if part in row]
            if not known:
                continue
            places = [row[part]["experts_per_token"] for row in known]
            losses = [row[part]["loss"] for row in known]
            axes.plot(places, losses, style, marker=marker, label=f"{gate_type}, {part} documents")
            for end in {0, len(known) - 1}:  # those between lie too close together to be told apart
                axes.annotate(known[end]["gate"], (places[end], losses[end]), fontsize="x-small")
    axes.set(xlabel="experts per token", ylabel="loss, nats per token")
    axes.legend(frameon=False, fontsize="small")
