"""What a training needs to go on after any step as if nothing had happened: safetensors and JSON, no pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.trainer_worker.checkpoints import keep_only_last, last_complete, mark_complete
from services.trainer_worker.image_cooperation.measures import EpochMeasures
from services.trainer_worker.image_cooperation.recipe import Recipe

_TENSORS = "state.safetensors"
_HISTORY = "history.json"


@dataclass
class Record:
    """How far a training has come: the figures of its epochs, and the losses of the steps of the one begun."""

    history: list[EpochMeasures] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    *,
    recipe: Recipe,
    network: torch.nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    record: Record,
    number: int,
) -> None:
    """Write the state; `number` grows with every step and measurement. Older checkpoints go once it is whole."""
    target = folder / f"checkpoint-{number}"
    target.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, target / _TENSORS)
    history = [asdict(measures) for measures in record.history]
    document = {"recipe": asdict(recipe), "history": history, "losses": record.losses}
    (target / _HISTORY).write_text(json.dumps(document) + "\n")
    mark_complete(target)
    keep_only_last(folder)


def load_checkpoint(
    folder: Path, *, recipe: Recipe, network: torch.nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]
) -> Record:
    """Put the newest whole checkpoint of this very recipe into the network and optimizers; its record, or a blank."""
    found = last_complete(folder)
    if found is None:
        return Record()
    document = json.loads((found / _HISTORY).read_text())
    if document["recipe"] != asdict(recipe):
        return Record()
    tensors = load_file(found / _TENSORS)
    network.load_state_dict(_below("network", tensors))
    for name, optimizer in optimizers.items():
        parameters = optimizer.param_groups[0]["params"]
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(f"optimizer.{name}", tensors).items():
            index, _, field = key.partition(".")
            states.setdefault(int(index), {})[field] = _laid_out_like(parameters[int(index)], value)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return Record([_measures(entry) for entry in document["history"]], document["losses"])


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """In the parameter's memory format, if it is of its shape: a fused optimizer pairs their numbers by address."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _measures(entry: dict[str, Any]) -> EpochMeasures:
    adjacency = entry["adjacency"]
    return EpochMeasures(
        **{
            **entry,
            "team_sizes": {int(size): count for size, count in entry["team_sizes"].items()},
            "expert_usage": tuple(entry["expert_usage"]),
            "adjacency": None if adjacency is None else tuple(tuple(row) for row in adjacency),
        }
    )
