"""`POST /route`: where a prompt would go, without generating."""

from fastapi import APIRouter

from services.router_service.api.examples import ERRORS
from services.router_service.api.tgi_request import read_tgi
from services.router_service.dependencies import ResourcesDep
from services.router_service.pipeline import RoutedPrompt
from services.router_service.schemas.generation import Plan
from services.router_service.schemas.routing_log import RouteRequest, RouteResponse, ScoredToken

router = APIRouter(tags=["generation"], responses=ERRORS)


@router.post("/route")
async def route(body: RouteRequest, resources: ResourcesDep) -> RouteResponse:
    """Score a prompt: its tokens, the gate's scores and weights after each, and the plan of a request with it."""
    prompt = await resources.pipeline.route(read_tgi(body.inputs, body.parameters))
    texts = resources.tokenizer.tokens(prompt.token_ids)
    known = prompt.assessment
    return RouteResponse(
        release=prompt.plan.release,
        confidence=known and known.confidence,
        domain=known and known.domain,
        domain_probability=known and known.domain_probability,
        gap=known and known.gap,
        plan=Plan.of(prompt.plan),
        num_tokens=len(prompt.token_ids),
        tokens=_scored(prompt, texts),
    )


def _scored(prompt: RoutedPrompt, texts: list[str]) -> list[ScoredToken]:
    scores_TC = prompt.scores.scores_TC.tolist() if prompt.scores else [[]] * len(texts)
    columns = prompt.scores.columns if prompt.scores else ()
    return [
        ScoredToken(id=token_id, text=text, scores=dict(zip(columns, scores_C, strict=True)), weights=dict(weights))
        for token_id, text, scores_C, weights in zip(prompt.token_ids, texts, scores_TC, prompt.gates(), strict=True)
    ]
