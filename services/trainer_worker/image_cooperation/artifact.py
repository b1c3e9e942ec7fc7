"""What an image experiment leaves: the report as Markdown and JSON, a heatmap per epoch, examples, the weights."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from services.trainer_worker.image_cooperation.heatmap import draw_heatmap
from services.trainer_worker.image_cooperation.images import ImageData
from services.trainer_worker.image_cooperation.measures import EpochMeasures, edge_counts
from services.trainer_worker.image_cooperation.mixture import Mixed
from services.trainer_worker.image_cooperation.recipe import Recipe
from services.trainer_worker.image_cooperation.report import report_text
from services.trainer_worker.image_cooperation.training import Outcome

REPORT: Final = "report.md"
FIGURES: Final = "report.json"
EXAMPLES: Final = "routing_examples.jsonl"
TEAMS: Final = "team_stats.json"
WEIGHTS: Final = "network.safetensors"


def write_artifact(folder: Path, outcome: Outcome, *, data: ImageData, recipe: Recipe, num_examples: int) -> None:
    """Fill `folder`. Equal outcomes give equal bytes, pictures included, on one version of the plotting library."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = figures_of(outcome.history, data=data, recipe=recipe)
    examples = routing_examples(outcome.answers, top_k=recipe.top_k, limit=num_examples)
    for measures in outcome.history:
        if measures.adjacency is not None:
            draw_heatmap(
                np.array(measures.adjacency),
                folder / heatmap_name(measures.epoch),
                setting=recipe.setting,
                title=f"A {_after(measures.epoch)}",
            )
    _write_lines(folder / EXAMPLES, examples)
    teams = [
        {
            "epoch": measures.epoch,
            "team_size_distribution": {str(size): count for size, count in measures.team_sizes.items()},
            "expert_usage_frequency": list(measures.expert_usage),
        }
        for measures in outcome.history[1:]
    ]
    (folder / TEAMS).write_text(json.dumps(teams, indent=1) + "\n")
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    (folder / REPORT).write_text(report_text(figures, examples))
    save_file({name: value.contiguous() for name, value in outcome.network.state_dict().items()}, folder / WEIGHTS)


def heatmap_name(epoch: int) -> str:
    """`adjacency_matrix_epoch_initial.png`, then one for each epoch by its number."""
    return f"adjacency_matrix_epoch_{epoch or 'initial'}.png"


def figures_of(history: Sequence[EpochMeasures], *, data: ImageData, recipe: Recipe) -> dict[str, Any]:
    """The report's numbers, for report.json and the job's result."""
    last = history[-1]
    edges = None if last.adjacency is None else asdict(edge_counts(np.array(last.adjacency)))
    return {
        "data": {
            "origin": data.origin,
            "train_images": len(data.train),
            "test_images": len(data.test),
            "image_shape": list(data.image_shape),
            "classes": data.num_classes,
        },
        "recipe": asdict(recipe),
        "accuracy": last.accuracy,
        "test_loss": last.test_loss,
        "diversity": last.diversity,
        "edges": edges,
        "team_size_distribution": {str(size): count for size, count in last.team_sizes.items()},
        "expert_usage_frequency": list(last.expert_usage),
        "epochs": [{**asdict(measures), "team_sizes": _named(measures.team_sizes)} for measures in history],
    }


def routing_examples(answers: Sequence[Mixed], *, top_k: int, limit: int) -> list[dict[str, Any]]:
    """The first test pictures: all gate values as `weights`, and as `indices` the best of them, descending."""
    gate_logits_NE = torch.cat([mixed.gate_logits_NE for mixed in answers])[:limit]
    best_NK = gate_logits_NE.topk(top_k, dim=-1).indices
    return [
        {"sample": sample, "indices": indices, "weights": weights}
        for sample, (indices, weights) in enumerate(zip(best_NK.tolist(), gate_logits_NE.tolist(), strict=True))
    ]


def _after(epoch: int) -> str:
    return f"after epoch {epoch}" if epoch else "before training"


def _named(team_sizes: dict[int, int]) -> dict[str, int]:
    return {str(size): count for size, count in team_sizes.items()}


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
