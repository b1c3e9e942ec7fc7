"""A gap's own prompts under the release that is to close it: does it hear them, and is their loss known ground now?"""

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.shared.database.rows import GapRequestRow, RequestRow
from services.shared.modeling.base_model import LoadedBase
from services.shared.training_text import Example
from services.trainer_worker.activation_gate import Candidate
from services.trainer_worker.expert_creation.documents import Documents
from services.trainer_worker.expert_creation.reading import read_release

_MOST_PROMPTS: Final = 200
_MOST_TOKENS: Final = 512
_GROUP: Final = "prompts"


def stored_prompts(session: Session, gap_id: str) -> list[str]:
    """The newest of those that were kept."""
    query = (
        select(RequestRow.prompt)
        .join(GapRequestRow, GapRequestRow.request_id == RequestRow.id)
        .where(GapRequestRow.gap_id == gap_id, RequestRow.prompt.is_not(None), RequestRow.prompt != "")
        .order_by(RequestRow.at.desc(), RequestRow.id)
        .limit(_MOST_PROMPTS)
    )
    return [prompt for prompt in session.scalars(query) if prompt is not None]


def remeasure(
    prompts: list[str],
    release: Candidate,
    newcomer: str,
    base: LoadedBase,
    *,
    known_loss: float | None,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Shares of the prompts: routed to the newcomer (the largest mean weight is its own), and within `known_loss`, in
    nats per token of the prompt."""
    if not prompts:
        return {"num_prompts": 0, "because": "none of its prompts are stored"}
    examples = [Example(prompt, None) for prompt in prompts]
    documents = Documents.of({_GROUP: examples}, base, max_length=_MOST_TOKENS, are_whole=False)
    reading = read_release(base, release, documents, should_stop)
    column = reading.experts.index(newcomer)
    base_share_B = 1.0 - reading.shares_BE.sum(axis=1)
    own_share_B = reading.shares_BE[:, column]
    is_routed_B = (own_share_B >= reading.shares_BE.max(axis=1)) & (own_share_B > base_share_B)
    is_known_B = reading.losses() <= known_loss if known_loss is not None else None
    return {
        "num_prompts": len(prompts),
        "routed_to_the_expert": float(is_routed_B.mean()),
        "within_known_loss": float(is_known_B.mean()) if is_known_B is not None else None,
        "known_loss": known_loss,
        "mean_loss": float(reading.losses().mean()),
    }
