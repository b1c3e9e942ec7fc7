"""The analysis of traces over the routing log, bounded in requests and tokens, one at a time and off the event loop."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.router_service.live_choices import LoggedTokens, live_choices
from services.router_service.schemas.traces import LiveAnalysis
from services.router_service.token_log import unpack_token_log
from services.router_service.transactions import Transactions
from services.shared.database.rows import RequestRow
from services.shared.errors import Overloaded
from services.shared.registry import active_release
from services.shared.vocabulary import PlanMode
from services.traces.analysis import analyse
from services.traces.statistics.results import AnalysisOptions

MAX_REQUESTS: Final = 20_000
_MAX_TOKENS: Final = 4_000_000
_ROWS_AT_ONCE: Final = 500
_RETRY_AFTER_S: Final = 5.0
_OPTIONS: Final = AnalysisOptions(
    num_permutations=199,
    num_resamples=199,
    num_matrix_resamples=50,
    max_shuffles=19,
    shuffled_tokens=500_000,
    cache_tokens=0,  # one layer of experts that are all resident, or not: nothing to simulate
)


class LiveAnalyses:
    """Analyses the requests of the last while."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._is_busy = False

    async def run(self, since: datetime) -> LiveAnalysis:
        """Of the routed requests since then. Raises Overloaded while another one is being computed."""
        if self._is_busy:
            raise Overloaded(
                "Another analysis of the routing log is being computed: ask again in a moment.",
                code="analysis_in_work",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._is_busy = True
        try:
            logged = await self._transactions.run(_read, since)
            return await asyncio.to_thread(_analyse, logged, since)
        finally:
            self._is_busy = False


@dataclass(frozen=True)
class _Logged:
    requests: list[LoggedTokens]
    releases: Counter[str]
    experts: tuple[str, ...]
    is_whole: bool


def _read(session: Session, since: datetime) -> _Logged:
    release = active_release(session)
    experts = tuple(column.version.expert_name for column in release.experts) if release is not None else ()
    query = (
        select(RequestRow.domain, RequestRow.release, RequestRow.token_log)
        .where(
            RequestRow.at >= since,
            RequestRow.token_log.is_not(None),
            RequestRow.plan["mode"].astext == PlanMode.ROUTED.value,
        )
        .order_by(RequestRow.at.desc(), RequestRow.id.desc())
        .limit(MAX_REQUESTS + 1)
    )
    requests: list[LoggedTokens] = []
    releases: Counter[str] = Counter()
    num_tokens = 0
    for domain, of_release, packed in session.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE}):
        assert packed is not None
        log = unpack_token_log(packed)
        num_tokens += len(log.token_ids)
        if num_tokens > _MAX_TOKENS or len(requests) == MAX_REQUESTS:
            return _Logged(requests[::-1], releases, experts, is_whole=False)
        requests.append(LoggedTokens(domain, log))
        releases[of_release or ""] += 1
    return _Logged(requests[::-1], releases, experts, is_whole=True)


def _analyse(logged: _Logged, since: datetime) -> LiveAnalysis:
    analysis = analyse(live_choices(logged.requests, logged.experts), options=_OPTIONS)
    return LiveAnalysis(
        since=since,
        num_requests=len(logged.requests),
        is_whole=logged.is_whole,
        releases=dict(logged.releases),
        overview=analysis.overview,
        layer=analysis.layers[0] if analysis.layers else None,
    )
