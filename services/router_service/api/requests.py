"""`/requests`: the routing log."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session, defer

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.routing_log import LoggedRequest, LoggedToken, RequestSummary
from services.router_service.token_log import TokenLog, decode_token_log
from services.shared.database.rows import RequestRow
from services.shared.errors import NotFound
from services.shared.tokenizer import Tokenizer

router = APIRouter(prefix="/requests", tags=["requests"], responses=ERRORS)

_SUMMARY = (
    "id", "at", "endpoint", "release", "prompt", "generated_text", "num_prompt_tokens", "num_generated_tokens",
    "confidence", "domain", "domain_probability", "flagged", "attribution", "finish_reason", "error", "timings",
)  # fmt: skip


@router.get("")
async def list_requests(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    expert: Annotated[
        str | None, Query(max_length=64, description="Only those that this expert had a share in.")
    ] = None,
    release: Annotated[str | None, Query(max_length=64, description="Only those of this release.")] = None,
) -> Listing[RequestSummary]:
    """Past requests, newest first; written a moment after they end."""
    rows = await resources.transactions.run(_list, limit=limit + 1, after=after, expert=expert, release=release)
    return page(rows, limit, _summary)


@router.get("/{request_id}")
async def get_request(request_id: str, resources: ResourcesDep) -> LoggedRequest:
    """One past request with the experts and weights of every token."""
    await resources.request_log.settled(request_id)
    row = await resources.transactions.run(_find, request_id)
    tokens = decode_token_log(row.token_log) if row.token_log else None
    return LoggedRequest(
        **_summary(row).model_dump(),
        plan=row.plan,
        parameters=row.parameters,
        tokens=_tokens(tokens, resources.tokenizer, with_text=row.prompt is not None) if tokens else [],
    )


def _find(session: Session, request_id: str) -> RequestRow:
    row = session.get(RequestRow, request_id)
    if row is None:
        raise NotFound(
            f"No request {request_id[:80]!r} in the log. "
            "It is written when it ends, unless Postgres is down or the log's queue is full.",
            param="request",
            code="request_not_found",
        )
    return row


def _list(
    session: Session, *, limit: int, after: str | None, expert: str | None, release: str | None
) -> list[RequestRow]:
    query = select(RequestRow).order_by(RequestRow.at.desc(), RequestRow.id.desc()).limit(limit)
    query = query.options(defer(RequestRow.token_log), defer(RequestRow.plan), defer(RequestRow.parameters))
    if after is not None:
        last = _find(session, after)
        query = query.where(tuple_(RequestRow.at, RequestRow.id) < tuple_(last.at, last.id))
    if expert is not None:
        query = query.where(RequestRow.attribution.contains([{"expert": expert}]))
    if release is not None:
        query = query.where(RequestRow.release == release)
    return list(session.scalars(query))


def _summary(row: RequestRow) -> RequestSummary:
    return RequestSummary.model_validate({field: getattr(row, field) for field in _SUMMARY})


def _tokens(log: TokenLog, tokenizer: Tokenizer, *, with_text: bool) -> list[LoggedToken]:
    """Without the text, when prompts are not stored, ids are not there either."""
    num_prompt = log.num_prompt_tokens
    pieces = (log.token_ids[:num_prompt], log.token_ids[num_prompt:])
    texts = [text for ids in pieces for text in (tokenizer.tokens(ids) if with_text else [""] * len(ids))]
    return [
        LoggedToken(index=index, id=token_id, text=text, generated=index >= num_prompt, weights=dict(gates))
        for index, (token_id, text, gates) in enumerate(zip(log.token_ids, texts, log.gates, strict=True))
    ]
