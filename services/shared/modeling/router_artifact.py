"""A router as an immutable folder: `router.json` and the base model's own row (DESIGN D5).

Bayes:   router.json, base_evidence/bigram.safetensors and, with trunk evidence, base_evidence/trunk.safetensors.
Learned: router.json, router.safetensors.
Experts carry their own evidence, so a Bayes router knows none of them and a newcomer needs no new router.
"""

import json
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.shared.config import RouterSettings
from services.shared.modeling.bigram_evidence import BigramEvidence
from services.shared.modeling.evidence_file import InvalidEvidence
from services.shared.modeling.gating import Gate
from services.shared.modeling.learned_gate import LearnedGate
from services.shared.modeling.size_correction import SizeCurve, size_curve
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.vocabulary import EvidenceKind, GateType, RouterKind

POSTERIOR_THRESHOLD: Final = 0.1
SIGMOID_THRESHOLD: Final = 0.3
DEFAULT_TRUNK_WEIGHT: Final = 0.05
"""Beside token pairs of weight 1."""
TRUNK_ALONE_WEIGHT: Final = 0.4
"""States of neighbouring tokens overlap: each tells less than it seems to."""

ROUTER_FILE: Final = "router.json"
NETWORK_FILE: Final = "router.safetensors"
BIGRAM_FILE: Final = "bigram.safetensors"
TRUNK_FILE: Final = "trunk.safetensors"
BASE_FOLDER: Final = "base_evidence"
EVIDENCE_FOLDER: Final = "evidence"


class RouterFile(BaseModel):
    """`router.json`: everything about a router that is not an array."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    kind: RouterKind
    router_type: GateType
    expert_selection_threshold: float = Field(ge=0.0, lt=1.0)
    max_experts_per_token: int = Field(ge=1)
    stickiness: float = Field(gt=0.0, lt=1.0)
    temper: float = Field(gt=0.0, le=1.0)
    evidence_weights: dict[EvidenceKind, float] = Field(default={}, description="Bayes: which evidence is summed.")
    size_curve: SizeCurve = Field(default=(), description="Bayes: what small tables of token pairs fall short.")
    experts: tuple[str, ...] = Field(
        default=(), description="Learned: the columns it was trained for, before the base."
    )
    filtered: bool = Field(default=False, description="Learned: its scores are the evidence of the filter.")
    tap_layer: int | None = Field(default=None, ge=0)
    hidden_size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _is_whole(self) -> "RouterFile":
        if self.kind == RouterKind.BAYES and not self.evidence_weights:
            raise ValueError("a bayes router needs evidence")
        needs_states = self.kind == RouterKind.LEARNED or EvidenceKind.TRUNK in self.evidence_weights
        if needs_states and (self.tap_layer is None or self.hidden_size is None):
            raise ValueError("a router on trunk states needs tap_layer and hidden_size")
        return self

    @property
    def gate(self) -> Gate:
        """The gate that this router's scores go through."""
        return Gate(self.router_type, self.expert_selection_threshold, self.max_experts_per_token)


def write_bayes_router(
    folder: Path,
    *,
    settings: RouterSettings,
    base_evidence: BigramEvidence,
    base_trunk: TrunkStatistics | None = None,
    evidence_weights: dict[EvidenceKind, float] | None = None,
) -> None:
    """Write a router that filters the experts' own evidence. `base_trunk` adds trunk evidence to the bigrams.

    `evidence_weights` defaults to bigrams alone, or 1 and 0.05 with trunk evidence, whose states overlap in time.
    """
    weights = evidence_weights or {EvidenceKind.BIGRAM: 1.0} | (
        {EvidenceKind.TRUNK: DEFAULT_TRUNK_WEIGHT} if base_trunk else {}
    )
    router = RouterFile(
        kind=RouterKind.BAYES,
        router_type=settings.router_type,
        expert_selection_threshold=_threshold(settings, POSTERIOR_THRESHOLD),
        max_experts_per_token=settings.max_experts_per_token,
        stickiness=settings.stickiness,
        temper=settings.temper,
        evidence_weights=weights,
        size_curve=size_curve(base_evidence),
        tap_layer=base_trunk.tap_layer if base_trunk else None,
        hidden_size=base_trunk.hidden_size if base_trunk else None,
    )
    base_evidence.save(folder / BASE_FOLDER / BIGRAM_FILE)
    if base_trunk:
        base_trunk.save(folder / BASE_FOLDER / TRUNK_FILE)
    _write_router_file(folder, router)


def write_learned_router(
    folder: Path,
    *,
    settings: RouterSettings,
    gate: LearnedGate,
    experts: tuple[str, ...],
    hidden_size: int,
    filtered: bool = False,
) -> None:
    """Write a trained network whose columns are `experts`, then the base."""
    default_threshold = POSTERIOR_THRESHOLD if filtered else SIGMOID_THRESHOLD
    router = RouterFile(
        kind=RouterKind.LEARNED,
        router_type=settings.router_type,
        expert_selection_threshold=_threshold(settings, default_threshold),
        max_experts_per_token=settings.max_experts_per_token,
        stickiness=settings.stickiness,
        temper=settings.temper,
        experts=experts,
        filtered=filtered,
        tap_layer=settings.tap_layer,
        hidden_size=hidden_size,
    )
    folder.mkdir(parents=True, exist_ok=True)
    gate.save(folder / NETWORK_FILE)
    _write_router_file(folder, router)


def read_router_file(folder: Path) -> RouterFile:
    """Read `router.json`. Raises InvalidEvidence when it is missing, damaged or of a later format."""
    try:
        return RouterFile.model_validate(json.loads((folder / ROUTER_FILE).read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise InvalidEvidence(f"{ROUTER_FILE} is missing or damaged ({error}): make the router again.") from error


def _threshold(settings: RouterSettings, default: float) -> float:
    given = settings.expert_selection_threshold
    return default if given is None else given


def _write_router_file(folder: Path, router: RouterFile) -> None:
    (folder / ROUTER_FILE).write_text(router.model_dump_json(indent=2) + "\n")
