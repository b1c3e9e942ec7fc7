"""The report on a cooperation graph: Markdown, JSON, a heatmap per epoch, and tokens with and without it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from services.shared.drawing import new_axes, save
from services.shared.palette import DIVERGING, NEUTRAL
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import BASE
from services.trainer_worker.evaluation.report import spread, table
from services.trainer_worker.training.graph_report import (
    NO_GRAPH,
    GraphReport,
    GraphVariant,
    JointGains,
    RoutedToken,
)

EXAMPLES_FILE: Final = "routing_examples.jsonl"
_NUM_SHOWN: Final = 12


def write_report(report: GraphReport, folder: Path, *, about: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Write `report.md`, `report.json`, `adjacency_epoch_*.png` and `routing_examples.jsonl` into a new folder."""
    folder.mkdir(parents=True)
    document = {
        **about,
        **report.as_json(),
        "adjacency": report.graph.adjacency_EE.tolist(),
        "history": [epoch_EE.tolist() for epoch_EE in report.history],
    }
    (folder / "report.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(report, about, tokenizer), encoding="utf-8")
    columns = [*report.graph.experts, BASE]
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as lines:
        for token in report.examples:
            lines.write(json.dumps(_example(token, columns, tokenizer), ensure_ascii=False) + "\n")
    scale = max([float(np.abs(epoch_EE).max()) for epoch_EE in report.history[1:]], default=0.0) or 1.0
    for epoch, epoch_EE in enumerate(report.history):
        _draw(epoch_EE, report.graph.experts, folder / _picture(epoch), scale=scale, epoch=epoch)


def headline(report: GraphReport) -> str:
    """One sentence for the job's history."""
    over = report.gains_over[NO_GRAPH]
    verdict = "beats its controls" if report.beats_controls else "does not beat its controls, so it stays off"
    return (
        f"The graph gains {over[0]:+.4f} nats [{over[1]:+.4f}, {over[2]:+.4f}] over none, {report.sparsity:.0%} "
        f"of its edges are exactly zero, and it {verdict}."
    )


def _markdown(report: GraphReport, about: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    last = len(report.history) - 1
    parts = [
        f"# Cooperation graph over {about['release']}",
        headline(report),
        f"Base model {about['base_model']}, experts {', '.join(report.graph.experts)}; experts and router frozen, L1 "
        f"weight {about['l1']:g} by proximal steps. A[i, j] is how much of expert i's gate weight is added to j's.",
        "A graph is worth a release when it gains 0.01 nats over no graph, beats one learned scalar, random graphs of "
        "its strength and its own edges shuffled beyond doubt, and costs whole documents no more than 0.002 nats "
        "beyond doubt. Intervals are 95 %, by bootstrap over seeds and documents.",
        "## The learned graph over its controls, nats per token (above zero: the graph is better)",
        _gains(report),
        "## Every variant, on the same spliced documents",
        _variants(report.variants),
        *(("## Trained together", _joint(report.joint)) if report.joint else ()),
        "## Before and after",
        f"![Before]({_picture(0)}) ![After]({_picture(last)})",
        _edges(report),
        "## Tokens whose readers the graph changed most",
        _changed(report, tokenizer),
    ]
    return "\n\n".join(parts) + "\n"


def _gains(report: GraphReport) -> str:
    rows = [[f"over {name}", spread(gain, signed=True)] for name, gain in report.gains_over.items()]
    rows.append(["over no graph, whole documents", spread(report.gain_on_whole, signed=True)])
    rows += [
        [f"over no graph, both with {k} experts per token", spread(gain, signed=True)]
        for k, gain in report.gains_at_top_k.items()
    ]
    return table(["learned graph, all seeds", "gain and 95 % interval"], rows)


def _variants(variants: Sequence[GraphVariant]) -> str:
    names = list(dict.fromkeys(variant.name for variant in variants))
    rows = []
    for name in names:
        of_name = [variant for variant in variants if variant.name == name]
        rows.append(
            [
                name,
                str(len(of_name)),
                f"{np.mean([variant.loss for variant in of_name]):.4f}",
                over_seeds([variant.gain for variant in of_name]),
                over_seeds([variant.gain_on_whole for variant in of_name]),
                f"{np.mean([variant.sparsity for variant in of_name]):.2f}",
                f"{np.mean([variant.largest_edge for variant in of_name]):.3f}",
            ]
        )
    header = [
        "variant", "seeds", "loss", "gain over no graph, mean ± sd of seeds", "on whole documents", "exact zeros",
        "largest edge",
    ]  # fmt: skip
    return table(header, rows)


def over_seeds(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):+.4f}"
    return f"{mean} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


def _joint(joint: JointGains) -> str:
    parts = " and ".join(joint.parts)
    rows = [
        [name, *(spread(gain, signed=True) for gain in gains)]
        for name, gains in (
            (f"{parts} with a graph, over the release as it is", joint.gain),
            (f"{parts} without a graph, over the release as it is", joint.gain_without_graph),
            (f"{parts} with a graph, over {parts} without one", joint.gain_of_graph),
        )
    ]
    lines = [
        f"As many steps on the same documents, {parts} moving too. {joint.sparsity:.0%} of the edges are exactly zero. "
        "Nothing of this is published: it says whether a graph is worth more where the rest learns with it.",
        table(["trained", "gain on spliced documents", "on whole documents"], rows),
    ]
    for name, pairs in joint.constants.items():
        found = "; ".join(f"{stickiness:.4f}, {temper:.3f}" for stickiness, temper in pairs)
        lines.append(f"Stickiness and temper of the filter after the training, {name}, by seed: {found}.")
    return "\n\n".join(lines)


def _edges(report: GraphReport) -> str:
    """Which edges are the same in all seeds."""
    adjacency_SEE = np.stack([graph.adjacency_EE for graph in report.graphs])
    experts = report.graph.experts
    off_diagonal = ~np.eye(len(experts), dtype=bool)
    same_EE = (np.abs(np.sign(adjacency_SEE).sum(axis=0)) == len(adjacency_SEE)) & off_diagonal
    ever_EE = adjacency_SEE.any(axis=0) & off_diagonal
    strongest = sorted(zip(*np.nonzero(same_EE), strict=True), key=lambda at: -abs(adjacency_SEE[:, *at].mean()))
    shown = ", ".join(
        f"{experts[source]} to {experts[target]} {adjacency_SEE[:, source, target].mean():+.3f}"
        for source, target in strongest[:_NUM_SHOWN]
    )
    told = f"Of {off_diagonal.sum()} edges {ever_EE.sum()} live in some seed, {same_EE.sum()} in all with one sign"
    return f"{told}: {shown}." if shown else f"{told}."


def _changed(report: GraphReport, tokenizer: Tokenizer) -> str:
    columns = [*report.graph.experts, BASE]
    moved = sorted(report.examples, key=_change, reverse=True)[:_NUM_SHOWN]
    rows = [
        [
            str(token.sample),
            str(token.position),
            f"`{tokenizer.token_text(token.token_id).strip().replace('|', '¦') or ' '}`",
            _speakers(token.weights_C, columns),
            _speakers(token.with_graph_C, columns),
        ]
        for token in moved
        if _change(token) > 0
    ]
    if not rows:
        return "None of the documents shown has such a token."
    return table(["document", "position", "token", "without the graph", "with it"], rows)


def _change(token: RoutedToken) -> float:
    return sum(abs(after - before) for before, after in zip(token.weights_C, token.with_graph_C, strict=True))


def _speakers(weights_C: Sequence[float], columns: Sequence[str]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in zip(columns, weights_C, strict=True) if weight >= 0.005)


def _example(token: RoutedToken, columns: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "sample": token.sample,
        "position": token.position,
        "token": tokenizer.token_text(token.token_id),
        "columns": list(columns),
        "weights": [round(weight, 5) for weight in token.weights_C],
        "with_graph": [round(weight, 5) for weight in token.with_graph_C],
    }


def _picture(epoch: int) -> str:
    return f"adjacency_epoch_{epoch:02d}.png" if epoch else "adjacency_epoch_initial.png"


def _draw(adjacency_EE: np.ndarray, experts: Sequence[str], path: Path, *, scale: float, epoch: int) -> None:
    axes = new_axes(5.6, 4.8)
    image = axes.imshow(adjacency_EE, cmap=DIVERGING, vmin=-scale, vmax=scale)
    rows, columns = np.nonzero(adjacency_EE == 0)
    axes.scatter(columns, rows, s=8, color=NEUTRAL, label="exactly 0")
    places = range(len(experts))
    axes.set_xticks(places, experts, rotation=45, ha="right")
    axes.set_yticks(places, experts)
    axes.set(title=f"epoch {epoch}" if epoch else "before training", xlabel="recruited j", ylabel="expert i")
    axes.figure.colorbar(image, ax=axes, label="A[i, j]")
    save(axes, path)
