"""The requests that an analysis looks at: those of a span of time, flagged ones and ordinary ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, String, cast, exists, false, func, literal, select, true
from sqlalchemy.orm import Session

from services.shared.database.rows import GapRequestRow, GapRow, ReleaseRow, RequestRow
from services.shared.packed_states import unpack_states
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.shared.vocabulary import GapStatus

_READ_CHARACTERS: Final = 4000
"""Of a prompt: enough for keywords and to see what it is about."""


@dataclass(frozen=True)
class Prompt:
    """What is known of one request. `text` is its beginning, None where prompts are not kept."""

    id: str
    at: datetime
    release: str
    domain: str | None
    text: str | None
    states_D: NDArray[np.float32]
    nats: float | None  # per token of the prompt, under the mixture
    base_nats: float | None  # and under the base model alone
    attribution: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Window:
    """Oldest first. `num_flagged` counts those that there are, of which `flagged` may be the newest only."""

    since: datetime
    until: datetime
    flagged: Sequence[Prompt]
    ordinary: Sequence[Prompt]
    num_flagged: int

    def told(self) -> dict[str, Any]:
        """How far it reaches and what it holds, for a job's result."""
        return {
            "window": {"since": self.since.isoformat(), "until": self.until.isoformat()},
            "num_flagged": self.num_flagged,
            "num_read": len(self.flagged),
            "num_ordinary": len(self.ordinary),
        }


def read_window(session: Session, spec: GapAnalysisJobSpec, *, base_fingerprint: str, until: datetime) -> Window:
    """Of releases on that base model; but for requests of closed gaps, which an expert has been made for."""
    since = until - timedelta(seconds=spec.window_s)
    releases = select(literal("release-").concat(cast(ReleaseRow.number, String)))
    # NOT EXISTS, which stays a join however many rows there are.
    is_closed = exists().where(
        GapRequestRow.request_id == RequestRow.id,
        GapRow.id == GapRequestRow.gap_id,
        GapRow.status == GapStatus.CLOSED.value,
    )
    inside: list[ColumnElement[bool]] = [
        RequestRow.at >= since,
        RequestRow.at < until,
        RequestRow.states.is_not(None),
        RequestRow.release.in_(releases.where(ReleaseRow.base_fingerprint == base_fingerprint)),
    ]
    is_flagged: list[ColumnElement[bool]] = [*inside, RequestRow.flagged == true(), ~is_closed]
    flagged = _newest(session, is_flagged, limit=spec.max_requests)
    ordinary = _newest(session, [*inside, RequestRow.flagged == false()], limit=spec.max_requests)
    return Window(
        since=since,
        until=until,
        flagged=flagged,
        # Another calibration may read another layer: only states of one width can be compared.
        ordinary=[prompt for prompt in ordinary if flagged and len(prompt.states_D) == len(flagged[-1].states_D)],
        num_flagged=session.scalar(select(func.count()).select_from(RequestRow).where(*is_flagged)) or 0,
    )


def _newest(session: Session, conditions: Sequence[ColumnElement[bool]], *, limit: int) -> list[Prompt]:
    """Oldest first, all with finite states as wide as the newest one's."""
    query = (
        select(
            RequestRow.id,
            RequestRow.at,
            RequestRow.release,
            RequestRow.domain,
            func.left(RequestRow.prompt, _READ_CHARACTERS),
            RequestRow.states,
            RequestRow.prompt_nats,
            RequestRow.base_nats,
            RequestRow.attribution,
        )
        .where(*conditions)
        .order_by(RequestRow.at.desc(), RequestRow.id.desc())
        .limit(limit)
    )
    read = [_prompt(row) for row in session.execute(query)][::-1]
    prompts = [prompt for prompt in read if np.isfinite(prompt.states_D).all()]
    return [prompt for prompt in prompts if len(prompt.states_D) == len(prompts[-1].states_D)]


def _prompt(row: Row[*tuple[Any, ...]]) -> Prompt:
    request_id, at, release, domain, text, states, nats, base_nats, attribution = row
    return Prompt(request_id, at, release, domain, text, unpack_states(states), nats, base_nats, attribution)
