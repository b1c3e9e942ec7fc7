"""`/analysis`: what the routing log says of the experts, as an analysis of a trace does."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.traces import LiveAnalysis

router = APIRouter(prefix="/analysis", tags=["traces"], responses=ERRORS)

_A_DAY: Final = timedelta(days=1)


@router.get("")
async def analyse_log(
    resources: ResourcesDep,
    since: Annotated[datetime | None, Query(description="ISO 8601. Default: a day ago.")] = None,
) -> LiveAnalysis:
    """Every figure over the newest 20,000 requests since then that the router decided and that kept their tokens.

    Domains are those that requests were classified as, else `unclassified`. 429 while another one is being computed.
    """
    moment = since if since is not None else datetime.now(UTC) - _A_DAY
    return await resources.live_analyses.run(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
