"""Every number that decides what the demo build makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.trainer_worker.demo.pretraining import BaseShape, Schedule

DEFAULT_SEED = 1
_TOKENS_PER_ITEM = 40
BASE_NAME = "adaptive-moe-demo-base"
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ExpertPlan:
    """How each expert is trained: all alike, but for the number of steps."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    num_steps: int = 600
    num_steps_of: Mapping[str, int] = field(default_factory=lambda: {"creative": 1_400, "math": 1_400})
    """Domains that take longer: sums, and keeping track of who is who, are learned more slowly than forms and facts."""
    batch_size: int = 4
    block_length: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    warmup_ratio: float = 0.05
    num_validation_items: int = 100

    def steps_for(self, domain: str) -> int:
        """Optimizer steps of the domain's expert."""
        return self.num_steps_of.get(domain, self.num_steps)

    def items_for(self, domain: str) -> int:
        """Training items for about one pass."""
        return self.steps_for(domain) * self.batch_size * self.block_length // _TOKENS_PER_ITEM


@dataclass(frozen=True)
class DemoPlan:
    """The whole build: data, base model, experts, evidence exemplars and measurement."""

    num_documents: int = 82_419
    """A few more than fill the blocks that the base model is trained on."""
    domain_share: float = 0.20
    """Share of the base model's documents that are demo items, all five domains together."""
    num_tokenizer_texts: int = 30_000
    shape: BaseShape = field(default_factory=BaseShape)
    pretraining: Schedule = field(default_factory=Schedule)
    expert: ExpertPlan = field(default_factory=ExpertPlan)
    exemplar_bytes: int = 80_000
    """Text kept beside each expert, from which evidence tables are made: about the same for all."""
    num_base_row_tokens: int = 30_000
    """How much the base model writes for its own row of the router."""
    num_held_out_items: int = 200
