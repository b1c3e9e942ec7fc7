"""How good a release is by domain, and where one is worse than another (DESIGN D5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

_ROUNDING: Final = 1e-9
"""1.02 - 1.0 is a little more than 0.02: what is as much worse as is tolerated must pass."""

Domain = Annotated[str, Field(min_length=1, max_length=200)]
Loss = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class Evaluation(BaseModel):
    """Losses of a release on held-out text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"losses": {"math": 1.31, "code": 0.94}, "data": "held out, 2026-11"}]},
    )

    losses: dict[Domain, Loss] = Field(
        min_length=1, max_length=1000, description="Mean loss by domain, in nats per token."
    )
    data: str = Field(
        default="",
        max_length=200,
        description="What was measured on. Only losses on the same data are compared with each other.",
    )


@dataclass(frozen=True)
class LossChange:
    """A domain's loss in two releases, in nats per token."""

    domain: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """Above zero: the second is worse."""
        return self.after - self.before

    def is_regression(self, tolerance: float) -> bool:
        """Worse by more than `tolerance` nats per token."""
        return self.difference > tolerance + _ROUNDING


def loss_changes(before: Evaluation | None, after: Evaluation | None) -> list[LossChange]:
    """The domains that both evaluations measured on the same data, by name; none where either is missing."""
    if before is None or after is None or before.data != after.data:
        return []
    common = sorted(before.losses.keys() & after.losses.keys())
    return [LossChange(domain, before.losses[domain], after.losses[domain]) for domain in common]


def stored_evaluation(stored: Mapping[str, object] | None) -> Evaluation | None:
    """An evaluation as a row keeps it."""
    return None if stored is None else Evaluation.model_validate(stored)
