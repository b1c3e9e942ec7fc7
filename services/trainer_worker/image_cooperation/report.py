"""An image experiment in words: summary, heatmaps, teams, routing examples."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_SHOWN: Final = 5


def report_text(figures: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown report. Pictures are named as they lie beside it."""
    parts = ["# Report on expert cooperation", "## 1. Summary", _summary(figures), _recipe(figures["recipe"])]
    if figures["edges"] is not None:
        parts += ["## 2. Adjacency matrix", _heatmaps(figures)]
    parts += ["## 3. Epochs", _epochs(figures), "## 4. Teams", _teams(figures)]
    shown = "\n".join(json.dumps(example) for example in examples[:_SHOWN])
    parts += [
        "## 5. Routing examples",
        "The first pictures of the test set. `weights` are the gate's values for all experts, `indices` the experts "
        "with the highest, best first; all examples are in `routing_examples.jsonl`.",
        f"```json\n{shown}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(figures: Mapping[str, Any]) -> str:
    data, recipe, edges = figures["data"], figures["recipe"], figures["edges"]
    text = (
        f"{recipe['num_experts']} experts, {recipe['top_k']} of them on each picture, trained for "
        f"{recipe['num_epochs']} epochs on {data['train_images']} pictures of {data['origin']}. "
        f"**Accuracy on {data['test_images']} test pictures: {figures['accuracy']:.2%}.**"
    )
    if edges is not None:
        text += (
            f" Of the edges between different experts, {edges['exact_zeros']:.1%} are exactly zero and "
            f"{edges['nearly_zero']:.1%} are below 0.01; the largest is {edges['largest']:.3f}."
        )
    if figures["diversity"] is not None:
        text += f" Diversity (1 - mean cosine of a team's answers): {figures['diversity']:.3f}."
    return text


def _recipe(recipe: Mapping[str, Any]) -> str:
    return "Recipe: " + ", ".join(f"{name} {value}" for name, value in recipe.items()) + "."


def _heatmaps(figures: Mapping[str, Any]) -> str:
    last = figures["recipe"]["num_epochs"]
    others = ", ".join(f"[{epoch}](adjacency_matrix_epoch_{epoch}.png)" for epoch in range(1, last))
    text = (
        "### Before training\n\n![A before training](adjacency_matrix_epoch_initial.png)\n\n"
        f"### After {last} epochs\n\n![A after training](adjacency_matrix_epoch_{last}.png)"
    )
    return text + (f"\n\nEpochs between: {others}." if others else "")


def _epochs(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            str(epoch["epoch"]),
            "" if epoch["train_loss"] is None else f"{epoch['train_loss']:.4f}",
            f"{epoch['test_loss']:.4f}",
            f"{epoch['accuracy']:.2%}",
            "" if epoch["diversity"] is None else f"{epoch['diversity']:.3f}",
        ]
        for epoch in figures["epochs"]
    ]
    return _table(["epoch", "training loss, with penalties", "test loss", "accuracy", "diversity"], rows)


def _teams(figures: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{count} of {size}" for size, count in figures["team_size_distribution"].items())
    usage = [f"{share:.3f}" for share in figures["expert_usage_frequency"]]
    header = [f"expert {index}" for index in range(len(usage))]
    return f"Test pictures by the size of their team: {sizes}. Each expert's share of all places:\n\n" + _table(
        header, [usage]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
