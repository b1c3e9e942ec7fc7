"""A gap's own prompts under the release that is to close it: does it hear them, and is their loss known ground now?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.shared.database.rows import GapRequestRow, RequestRow
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.calibration import Calibration
from services.shared.training_text import Example
from services.trainer_worker.activation_gate import Candidate
from services.trainer_worker.calibration.hearing import hear
from services.trainer_worker.evaluation.subject import Subject
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


@dataclass(frozen=True)
class Closing:
    """The releases between which a gap is to close: what `newcomer` has joined in `release`; None where nothing was
    active. `known_loss` is the highest that is known ground, in nats per token; `calibration` the folder of what both
    flag requests by. Either may not be there."""

    present: Candidate | None
    release: Candidate
    newcomer: str
    known_loss: float | None
    calibration: Path | None


def remeasure(
    prompts: list[str], closing: Closing, base: LoadedBase, *, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Shares of the prompts: routed to the newcomer (its mean weight is the largest), with a loss that is known ground,
    and flagged as outside of it before and after. Raises TrainingStopped."""
    if not prompts:
        return {"num_prompts": 0, "because": "none of its prompts are stored"}
    examples = [Example(prompt, None) for prompt in prompts]
    documents = Documents.of({_GROUP: examples}, base, max_length=_MOST_TOKENS, are_whole=False)
    reading = read_release(base, closing.release, documents, should_stop)
    own_share_B = reading.shares_BE[:, reading.experts.index(closing.newcomer)]
    base_share_B = 1.0 - reading.shares_BE.sum(axis=1)
    is_routed_B = (own_share_B >= reading.shares_BE.max(axis=1)) & (own_share_B > base_share_B)
    known = closing.known_loss
    return {
        "num_prompts": len(prompts),
        "routed_to_the_expert": float(is_routed_B.mean()),
        "within_known_loss": float((reading.losses() <= known).mean()) if known is not None else None,
        "known_loss": known,
        "mean_loss": float(reading.losses().mean()),
        "flagged_before": _flagged(closing.present, closing.calibration, prompts, base),
        "flagged_after": _flagged(closing.release, closing.calibration, prompts, base),
    }


def _flagged(
    release: Candidate | None, calibration_dir: Path | None, prompts: Sequence[str], base: LoadedBase
) -> float | None:
    """The share that would be flagged when asked, as the router service sees them; None without a calibration."""
    if release is None or calibration_dir is None:
        return None
    calibration = Calibration.load(calibration_dir)
    scorer = Subject(base, release.experts, release.router_dir, release.graph_dir).scorer()
    calibration.check_fits(scorer)
    ends = []
    for token_ids in base.tokenizer.encode_batch(list(prompts)):
        heard = hear(scorer, base, torch.tensor(token_ids[-base.max_context :]))
        ends.append(float(calibration.confidence(*heard)[-1]))
    return sum(map(calibration.is_gap, ends)) / len(ends)
