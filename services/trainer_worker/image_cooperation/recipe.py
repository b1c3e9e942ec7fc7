"""Every number that decides a training, with the setting's own values filled in."""

from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from services.shared.schemas.image_cooperation import (
    GraphVariant,
    ImageCooperationJobSpec,
    ImageHyperparameters,
    ImageSetting,
)


@dataclass(frozen=True)
class Recipe:
    """One training. The names are those of the job's specification."""

    setting: ImageSetting
    graph: GraphVariant
    num_experts: int
    top_k: int
    l1: float
    num_epochs: int
    seed: int
    batch_size: int
    learning_rate: float
    graph_learning_rate: float
    weight_decay: float
    warmup_epochs: int
    diversity_weight: float
    budget_weight: float
    balance_weight: float
    l1_step: Literal["subgradient", "proximal"]

    def top_k_in(self, epoch: int) -> int:
        """Experts per picture in an epoch, from 0: the published training warms up with one."""
        return 1 if self.setting == "published" and epoch < self.warmup_epochs else self.top_k

    def graph_speaks_in(self, epoch: int) -> bool:
        """Whether the graph has its say in an epoch, from 0."""
        return self.graph != "none" and epoch >= self.warmup_epochs


_PUBLISHED: Final[dict[str, Any]] = {
    "learning_rate": 1e-3,
    "graph_learning_rate": 1e-4,
    "weight_decay": 0.01,
    "warmup_epochs": 2,
    "diversity_weight": 0.05,
    "budget_weight": 0.01,
    "balance_weight": 0.0,
    "l1_step": "subgradient",
}
_STRONG: Final[dict[str, Any]] = {
    "learning_rate": 3e-3,
    "graph_learning_rate": 1e-2,
    "weight_decay": 0.05,
    "warmup_epochs": 2,
    "diversity_weight": 0.0,
    "budget_weight": 0.0,
    "balance_weight": 0.05,
    "l1_step": "proximal",
}


def recipe_of(spec: ImageCooperationJobSpec) -> Recipe:
    """The specification's own values over those of its setting."""
    defaults = _PUBLISHED if spec.setting == "published" else _STRONG
    given = spec.hyperparameters.model_dump(exclude_none=True, exclude={"batch_size"})
    named = {field.name for field in fields(Recipe)} - (set(ImageHyperparameters.model_fields) - {"batch_size"})
    return Recipe(**{name: getattr(spec, name) for name in named}, **{**defaults, **given})
