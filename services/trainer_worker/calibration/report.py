"""A calibration's report: Markdown around a picture, from its figures alone."""

import json
from pathlib import Path
from typing import Any, Final

from services.shared.drawing import new_axes, save
from services.shared.palette import NEUTRAL
from services.trainer_worker.calibration.calibrating import Figures

_RELIABILITY: Final = "reliability.png"


def write_report(figures: Figures, folder: Path) -> None:
    """`report.json`, `report.md` and the picture in it, into a new folder."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(figures), encoding="utf-8")
    _draw_reliability(figures["reliability"], folder / _RELIABILITY)


def headline(figures: Figures) -> str:
    """One line for the job's history."""
    told = f"expected calibration error {figures['ece']:.3f}, known requests flagged {figures['false_flags']:.1%}"
    if figures["detection"] is None:
        return told
    found = figures["detection"]["methods"]["confidence"]
    return f"{told}; unknown domains: AUROC {found['mean']:.3f}, the worst {found['worst']:.3f}"


def markdown(figures: Figures) -> str:
    """The whole report; the picture lies beside it."""
    classification = figures["classification"]
    parts = [
        f"# Calibration of {figures['release']}",
        "Confidence is the estimated probability that the mixture's loss on what follows a prompt is at most "
        f"{figures['highest_excess']:.4f} nats per token above that of the best voice for it, the base model or its "
        f"own domain's expert: {figures['range_share']:.0%} of the known documents are in that range. Requests below "
        f"{figures['threshold']:.3f} are flagged. Figures are of documents that nothing was fitted on.",
        "## Domains",
        _table(
            ("domain", "documents", "base", "mixture", "without its expert", "flagged", "flagged without its expert"),
            [
                (name, one["documents"], one["base"], one["routed"], one["left_out"], _share(one["flagged"]),
                 _share(one["flagged_left_out"]))
                for name, one in figures["domains"].items()
            ],
        ),
        "Losses in nats per token of what follows the prompt.",
        f"The domain is right for {classification['accuracy']:.1%} of {classification['documents']} documents, "
        f"{classification['with_unknown']:.1%} when each that is flagged counts as wrong.",
        "## Calibration",
        f"Expected calibration error {figures['ece']:.3f}, with known text and text whose expert is left out in equal "
        f"parts. Known requests in range that are flagged: {figures['false_flags']:.1%}, with {figures['risk']:.1%} as "
        "the risk that the threshold was set for.",
        f"![Reliability]({_RELIABILITY})",
        "## Unknown domains",
        _detection(figures["detection"]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _detection(found: Figures | None) -> str:
    if found is None:
        return "Not measured: it takes three domains or more to leave one out and still learn from two."
    domains = list(found["methods"]["confidence"]["domains"])
    rows = [
        (method, one["mean"], one["worst"], one["fpr_at_95"], *(_interval(one["domains"][name]) for name in domains))
        for method, one in found["methods"].items()
    ]
    return "\n\n".join(
        (
            "Each domain in turn plays the unknown one: its expert is left out of the mixture and its text of the fit. "
            "Area under the ROC curve with 95 % bootstrap intervals; FPR is the share of known requests flagged where "
            f"95 % of the unknown are. Expected calibration error on unknown domains: {found['ece']:.3f}.",
            _table(("by", "mean", "worst", "FPR at 95 %", *domains), rows),
        )
    )


def _interval(one: Figures) -> str:
    return f"{one['auroc']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _draw_reliability(bins: list[Figures], path: Path) -> None:
    axes = new_axes(5, 4)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.8)
    total = sum(one["documents"] for one in bins)
    axes.scatter(
        [one["confidence"] for one in bins],
        [one["in_range"] for one in bins],
        s=[20 + 300 * one["documents"] / total for one in bins],
    )
    axes.set(
        xlabel="confidence", ylabel="share of losses in range", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
        title=f"{total} documents; area: how many",
    )  # fmt: skip
    save(axes, path)
