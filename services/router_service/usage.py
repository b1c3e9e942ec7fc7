"""What the routing log says of a window of time: how much each expert spoke, and what failed."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from services.shared.schemas.sequences import EXPERT_FIELD
from services.shared.vocabulary import FinishReason


@dataclass(frozen=True)
class Spoken:
    """One expert's, or the base's, part in the answers of a window."""

    num_requests: int
    num_tokens: float
    last_at: datetime


@dataclass(frozen=True)
class Failed:
    """Requests that one expert's adapter made impossible, as the expert service said of it."""

    num_requests: int
    last_at: datetime


@dataclass(frozen=True)
class Usage:
    """A window's requests: a calibration judged `num_judged` of them, `num_confident` have a confidence."""

    num_requests: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    num_judged: int = 0
    num_flagged: int = 0
    num_confident: int = 0
    num_unsure: int = 0
    spoken: dict[str, Spoken] = field(default_factory=dict)
    failed: dict[str, Failed] = field(default_factory=dict)


_RECENT: Final = """
    WITH recent AS (
        SELECT at, attribution, num_generated_tokens, finish_reason, error, confidence, flagged
        FROM requests WHERE at >= :since AND at < :until ORDER BY at DESC, id DESC LIMIT :max_requests
    )
"""
_COUNTS: Final = text(
    _RECENT
    + """
    SELECT count(*), count(*) FILTER (WHERE finish_reason = :error), coalesce(sum(num_generated_tokens), 0),
        count(flagged), count(*) FILTER (WHERE flagged), count(confidence),
        count(*) FILTER (WHERE confidence < :unsure_below)
    FROM recent
    """
)
_SPOKEN: Final = text(
    _RECENT
    + """
    SELECT part.expert, count(*), sum(part.share * num_generated_tokens), max(at)
    FROM recent CROSS JOIN LATERAL jsonb_to_recordset(attribution) AS part(expert text, share float8)
    WHERE part.share > 0 GROUP BY part.expert
    """
)
_FAILED: Final = text(
    _RECENT
    + """
    SELECT substr(error ->> 'param', length(:field) + 1) AS expert, count(*), max(at)
    FROM recent WHERE starts_with(error ->> 'param', :field) GROUP BY expert
    """
)


def read_usage(session: Session, *, since: datetime, until: datetime, unsure_below: float, max_requests: int) -> Usage:
    """Of the newest `max_requests` requests between two times."""
    window = {"since": since, "until": until, "max_requests": max_requests}
    counts = session.execute(_COUNTS, {**window, "error": FinishReason.ERROR.value, "unsure_below": unsure_below})
    spoken = session.execute(_SPOKEN, window)
    failed = session.execute(_FAILED, {**window, "field": EXPERT_FIELD})
    return replace(
        Usage(*counts.one()),
        spoken={name: Spoken(*part) for name, *part in spoken},
        failed={name: Failed(*part) for name, *part in failed},
    )
